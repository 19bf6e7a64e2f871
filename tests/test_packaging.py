"""The built wheel and source distribution, installed outside the repository."""

import json
import re
import subprocess
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from conftest import run_python

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_there_is_one_version():
    version = PROJECT["version"]
    assert str(yaml.safe_load(read("CITATION.cff"))["version"]) == version
    assert f"version = {{{version}}}" in read("README.md")
    first, *released = re.findall(r"^## \[(.+?)\]", read("CHANGELOG.md"), re.MULTILINE)
    assert first == "Unreleased"
    assert released[:1] in ([], [version])
    tags = subprocess.run(["git", "tag", "--points-at", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    for tag in filter(re.compile(r"v\d").match, tags.split()):  # a release: the changelog has its section
        assert (tag, released[:1]) == (f"v{version}", [version])


def test_the_same_pythons_everywhere():
    found = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert PROJECT["requires-python"] == f">={found[0]}"
    assert f"PYTHONS ?= {' '.join(found)}\n" in read("Makefile")
    jobs = yaml.safe_load(read(".github/workflows/tests.yml"))["jobs"]
    assert jobs["quick"]["strategy"]["matrix"]["python-version"] == found
    assert f"on Python {', '.join(found[:-1])} and {found[-1]} " in read("constraints.txt")


@pytest.mark.parametrize("file", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda file: file.stem)
def test_workflows_and_templates_are_whole(file):
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    for job in content.get("jobs", {}).values():
        commands = [step["run"] for step in job["steps"] if "run" in step]
        for target in re.findall(r"make (\S+)", " ".join(commands)):
            assert f"\n{target}:" in read("Makefile"), target


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    run_python("-m", "build", "--no-isolation", "--outdir", out, ROOT, timeout=300, succeeds=True)
    return {path.suffix: path for path in out.iterdir()}


def test_what_is_in_them(distributions):
    with zipfile.ZipFile(distributions[".whl"]) as wheel:
        names = wheel.namelist()
    files = "py.typed configs/cartpole-8s.yaml vision/datasets.yaml envs/tasks.yaml cli/usage.txt"
    assert {f"cet_rl/{file}" for file in files.split()} <= {*names}
    assert {name.split("/")[0].split("-")[0] for name in names} == {"cet_rl"}
    with tarfile.open(distributions[".gz"]) as sdist:
        packed = {name.split("/", 1)[-1] for name in sdist.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "cet_rl/configs/cartpole-8s.yaml"} <= packed


@pytest.mark.parametrize("kind", [".whl", ".gz"])
def test_they_train_and_find_their_configurations(distributions, kind, tmp_path):
    site = tmp_path / "site"
    options = "--quiet --no-deps --no-build-isolation --no-index --target"
    run_python("-m", "pip", "install", *options.split(), site, distributions[kind], timeout=300, succeeds=True)
    given = {"cwd": tmp_path, "succeeds": True, "PYTHONPATH": str(site), "OPENBLAS_NUM_THREADS": "1"}
    assert run_python("-c", "import cet_rl; print(cet_rl.__file__)", **given).stdout.startswith(str(site))
    command = "train --config cartpole-8s --total-steps 3000 --hidden 8 --eval-episodes 2 --run-dir run --quiet"
    run_python("-m", "cet_rl", *command.split(), timeout=300, **given)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "finished"
