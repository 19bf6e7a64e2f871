"""The examples of the README and the tutorial run as written, but for their budgets."""

import importlib
import pydoc
import re
import runpy
import shlex
import tomllib
from pathlib import Path
from unittest.mock import patch

import matplotlib as mpl
import pytest
import yaml

from cet_rl.cli import main
from cet_rl.cli.train import parse_arguments
from cet_rl.recurrent import config as tasks
from cet_rl.recurrent import rules
from cet_rl.runs.folder import default_path
from cet_rl.runs.task_kinds import named_tasks
from cet_rl.sweeps.build import build
from cet_rl.sweeps.file import read_sweep
from cet_rl.traces.registry import TRACES
from cet_rl.vision import datasets

ROOT = Path(__file__).parents[1]
PAGES = {
    name: (ROOT / name).read_text(encoding="utf-8")
    for name in (
        "README.md",
        "CONTRIBUTING.md",
        *(f"docs/{page}.md" for page in ("quickstart", "agents", "vision", "rules", "sweeps")),
    )
}
PYTHON = [
    (f"{page}-{number}", code)
    for page, text in PAGES.items()
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
]
COMMANDS = [
    command for text in PAGES.values() for command in re.findall(r"^cet-rl train ([^#\n]*)", text, re.MULTILINE)
]
PUBLIC = ("", ".traces", ".credit", ".agents", ".envs", ".rl", ".vision", ".recurrent", ".report")
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")

BUDGETS = {
    "1_000_000": "2_000",
    "500_000": "4_000",
    "10_000": "2_000",
    "500000": "4000",
    "log_interval=20": "log_interval=1",
    "n_eval_episodes=100": "n_eval_episodes=2",
    "n_eval_episodes=50": "n_eval_episodes=2",
}


def small(text):
    for full, little in BUDGETS.items():
        text = text.replace(full, little)
    return text


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """What examples register is forgotten, or tests that come later in the same process would find it."""
    monkeypatch.chdir(tmp_path)
    mpl.use("agg")
    with patch.dict(rules.RULES), patch.dict(tasks.TASKS), patch.dict(datasets.DATASETS), patch.dict(TRACES):
        yield


@pytest.mark.parametrize("example", [code for _, code in PYTHON], ids=[name for name, _ in PYTHON])
def test_python_examples(example):
    exec(small(example), {})


def test_the_tutorial_from_top_to_bottom(tmp_path, capfd):
    """Its blocks share one namespace, as in a notebook; its commands run in their place between them."""
    namespace = {}
    for language, block in re.findall(r"```(python)?\n(.*?)```", small(TUTORIAL), re.DOTALL):
        if language:
            exec(block, namespace)
            continue
        for line in block.splitlines():
            if line.startswith("cet-rl"):
                short = ["--eval-episodes", "1"] * line.startswith("cet-rl train")
                assert main([*shlex.split(line)[1:], *short]) == 0, capfd.readouterr().err
    assert {"tutorial.png", "study.svg"} <= {path.name for path in tmp_path.iterdir()}
    assert re.search(r"CET 10: \d+ ± \d+\nA2C: \d+ ± \d+", capfd.readouterr().out)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command, tmp_path):
    (tmp_path / "my.yaml").write_text("delay: 8\n")
    run = tmp_path / "runs" / "CartPole-v1-cet5-8s-0"  # what one of them resumes
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("task: CartPole-v1\ndelay: 8\n")
    task = parse_arguments(shlex.split(command)).config.task
    assert task in named_tasks() or "-v" in task


@pytest.mark.parametrize(
    "page", sorted(str(p.relative_to(ROOT)) for p in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
)
def test_links_and_pictures_exist(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text(encoding="utf-8")):
        assert (ROOT / page).parent.joinpath(target).exists(), target


def test_every_page_has_a_place_in_the_site():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    pages = set(re.findall(r"[\w/]+\.md", str(nav)))
    written = {str(path.relative_to(ROOT / "docs")) for path in ROOT.glob("docs/**/*.md")}
    notebooks = {f"tutorials/{path.stem}.md" for path in ROOT.glob("examples/*.ipynb")}
    assert pages == written | notebooks | {"index.md", "contributing.md", "changelog.md"}


def test_every_public_name_is_in_the_api():
    shown = set(
        re.findall(r"^::: (\S+)$", "".join(p.read_text() for p in ROOT.glob("docs/api/*.md")), re.MULTILINE)
    )
    packages = [importlib.import_module(f"cet_rl{part}") for part in PUBLIC]
    public = {f"{package.__name__}.{name}" for package in packages for name in package.__all__} - {
        "cet_rl.__version__"
    }
    public -= {f"cet_rl.traces.{name}" for name in packages[0].__all__}
    assert shown - {f"cet_rl.agents.tianshou.{name}" for name in ("CETTianshou", "CETTianshouPolicy")} == public
    undocumented = [name for name in public if not pydoc.locate(name).__doc__]
    assert set(undocumented) <= {
        "cet_rl.credit.Executor",
        "cet_rl.traces.Normalization",
    }  # types have none at run time


def test_the_address_has_one_home():
    """pyproject.toml says where the repository is; what else names it agrees."""
    address = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    assert f"repo_url: {address} " in (ROOT / "mkdocs.yml").read_text()
    owner = address.rpartition("/")[0]
    for name in ("README.md", "CITATION.cff", "CONTRIBUTING.md", "docs/quickstart.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert all(found == owner for found in re.findall(r"https://\S+(?=/cet-rl\b)", text)), name


def test_the_demo_shows_the_run_that_it_has_made():
    text = (ROOT / "Makefile").read_text()
    (command,) = re.findall(r"^\t\$\(BIN\)/cet-rl train (.*)$", text, re.MULTILINE)
    assert f"DEMO   := {default_path(parse_arguments(shlex.split(command)).config)}\n" in text


@pytest.mark.parametrize("file", sorted(ROOT.glob("docs/sweeps/*.yaml")), ids=lambda file: file.stem)
def test_sweeps_of_the_documentation_can_be_run(file):
    assert build(read_sweep(str(file))).jobs


def test_the_pages_have_the_numbers_of_the_data():
    """If not, `python docs/tables.py` writes the tables again; sentences are to be mended by hand."""
    script = runpy.run_path(str(ROOT / "docs/tables.py"))
    tables = dict(script["pages"]())
    assert len(tables) == 3
    assert all(page.read_text(encoding="utf-8") == text for page, text in tables.items())
    assert sum(text.count("<!-- table: ") for text in tables.values()) == len(script["TABLES"])
    for page, phrases in script["phrases"]().items():
        words = " ".join((ROOT / page).read_text(encoding="utf-8").split())
        assert [phrase for phrase in phrases if phrase not in words] == []


DRAWN = ["kernels", "cascade", "retrograde", "mnist-retrograde", "late-add", "traces-mnist", "wrong-delay"]


@pytest.mark.parametrize("name", [*DRAWN, "rules-fig1-add", "rules-fig1-mimic"])
def test_figures_are_drawn_again_from_the_numbers(name, tmp_path, monkeypatch):
    script = runpy.run_path(str(ROOT / "docs" / "figures.py"))
    drawn = []
    monkeypatch.setitem(script["save"].__globals__, "save", lambda figure, name: drawn.append(name))
    script["every"]()[name]()
    assert drawn[0] == name
    assert all((ROOT / "docs" / "figures" / f"{each}.svg").is_file() for each in drawn)


def test_a_short_soak():
    """Float32 stays finite and close to float64 over many delays; `benchmarks/soak.py` runs for five million."""
    from cet_rl import CET, Legendre, SharpCET

    soak = runpy.run_path(str(ROOT / "benchmarks" / "soak.py"))["soak"]
    for kind, tolerance in ((CET, 1e-4), (SharpCET, 2e-2), (Legendre, 1e-4)):
        largest, error = soak(kind(10, 100, "peak"), 60_000, 100)
        assert max(largest) < 10
        assert error < tolerance
