"""The example in one file computes what the library computes."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import matplotlib as mpl
import pytest
import torch
from conftest import run_python
from torch import Tensor, nn

from cet_rl import CET, CreditTiming
from cet_rl.agents.distributions import Categorical
from cet_rl.agents.learner import ActorCriticLearner, LearnerConfig, Rollout
from cet_rl.agents.networks import Actor, Critic, split_signs
from cet_rl.recurrent.rules import RULES
from cet_rl.traces.registry import TRACES, TraceConfig

EXAMPLES = Path(__file__).parents[1] / "examples"
BUDGETS = {
    "UPDATES, SEEDS, RATES = 300, range(3), (3e-4, 1e-3, 3e-3)": "UPDATES, SEEDS, RATES = 90, range(1), (3e-3,)",
    "UPDATES = 200": "UPDATES = 40",
    "STEPS, SEEDS = 20_000, range(2)": "STEPS, SEEDS = 200, range(1)",
    "steps=200": "steps=20",
    "for kappa in (0.0, 0.25, 0.5, 0.75, 0.9)": "for kappa in (0.5,)",
    "/ timing.delay, 1000 ": "/ timing.delay, 100 ",
    "1_000": "100",
    "SAMPLES = 2_000": "SAMPLES = 600",
}


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def _double() -> object:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_example_is_short_and_independent() -> None:
    text = (EXAMPLES / "minimal_cet.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert "cet_rl" not in text


@pytest.mark.parametrize(("order", "delay"), [(2, 1), (5, 40), (10, 400)])
def test_example_has_the_cascade_of_the_library(order: int, delay: int) -> None:
    transition = CET(order, delay, "peak").transition()
    for found, expected in zip(
        load("minimal_cet").cascade(order, delay), (transition.M, transition.K, transition.C), strict=True
    ):
        torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-10, atol=1e-14)


@pytest.mark.usefixtures("_double")
def test_example_and_library_set_the_same_gradients() -> None:
    """Episodes end and are cut off; delays are shorter and longer than a rollout; weights move in between."""
    for delay, order, steps, envs in ((3, 2, 8, 3), (11, 4, 5, 2)):
        torch.manual_seed(delay)
        agent = load("minimal_cet").ActorCritic(3, 2, 7, delay, order, steps, envs)
        learner = ActorCriticLearner(
            Actor((6,), Categorical(2), hidden=(7, 7)),
            Critic((6,), (7, 7)),
            CreditTiming(delay * 0.2),
            LearnerConfig(trace=TraceConfig("cet", order)),
            num_envs=envs,
            rollout=steps,
        ).double()
        ours, theirs = list(agent.parameters()), list(learner.trained_parameters())
        starts = torch.ones(envs)
        for _ in range(6):
            with torch.no_grad():
                for a, b in zip(ours, theirs, strict=True):
                    b.copy_(a.add_(0.1 * torch.randn_like(a)))
            starts = compare(agent, learner, steps, starts)


def compare(agent: nn.Module, learner: ActorCriticLearner, steps: int, starts: Tensor) -> Tensor:
    envs = len(starts)
    observations, following = torch.randn(2, steps, envs, 3)
    ends = torch.randint(0, 8, (steps, envs))
    terminated, truncated = (ends == 0).double(), (ends == 1).double()
    begins = torch.cat([starts[None], (terminated + truncated)])
    following[:-1] = torch.where((begins[1:-1] == 0)[..., None], observations[1:], following[:-1])
    actions, rewards = torch.randint(0, 2, (steps, envs)), torch.randn(steps, envs)
    agent.set_gradients(observations, actions, rewards, begins[:-1], terminated, following)
    learner.accumulate(
        Rollout(
            observations=split_signs(observations),
            actions=actions,
            rewards=rewards,
            starts=begins[:-1],
            terminated=terminated,
            truncated=truncated,
            last_observations=split_signs(following[-1]),
            final_observations=split_signs(following[truncated.bool()]),
        )
    )
    for a, b in zip(agent.parameters(), learner.trained_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-8, atol=1e-12)
    return begins[-1]


def run_notebook(name: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> dict[str, object]:
    """Run a notebook's cells in one namespace, with small budgets."""
    monkeypatch.chdir(folder)
    mpl.use("agg")
    cells = json.loads((EXAMPLES / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    for full, little in BUDGETS.items():
        code = code.replace(full, little)
    module = ModuleType(name)  # dataclasses look their module up
    monkeypatch.setitem(sys.modules, name, module)
    with patch.dict(RULES), patch.dict(TRACES):
        exec(compile(code, name, "exec"), module.__dict__)
    return vars(module)


def test_the_first_study_shows_the_method(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    curves = run_notebook("first_study", monkeypatch, tmp_path)["curves"]
    last = {name: runs[:, -1].mean() for name, runs in curves.items()}
    assert last["perfect memory"] > last["Optimal, 10 states"] > last["classical trace"] + 10


@pytest.mark.parametrize("name", ["traces_by_hand", "traced_layers", "own_rule", "own_trace"])
def test_notebooks_run(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    run_notebook(name, monkeypatch, tmp_path)


def test_notebooks_are_stored_small_and_as_they_ran() -> None:
    for path in EXAMPLES.glob("*.ipynb"):
        assert path.stat().st_size < 200_000
        code = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
        outputs = [output for cell in code for output in cell["outputs"]]
        assert not [output for output in outputs if output["output_type"] == "error"]
        assert "/tmp" not in path.read_text()
        assert "site-packages" not in path.read_text()


def test_sb3_callbacks_keep_the_best_agent(tmp_path: Path) -> None:
    assert 8 <= load("sb3_callbacks").main(["--steps", "1024", "--folder", str(tmp_path)]) <= 500
    kept = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert {"best_model.zip", "evaluations.npz", "progress.csv", "vecnormalize.pkl"} <= kept
    assert any("vecnormalize" in name and "steps" in name for name in kept)


@pytest.mark.slow
def test_two_processes_share_weights_and_keep_their_traces() -> None:
    done = run_python(EXAMPLES / "ddp.py", "--updates", "60", timeout=500, succeeds=True)
    assert "the same weights everywhere: True" in done.stdout
    assert float(done.stdout.split("%")[0]) > 50


@pytest.mark.slow
def test_a_sweep_from_python_makes_a_report(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    options = ["--delays", "2", "--seeds", "1", "--updates", "4", "--workers", "1", "--folder", tmp_path]
    done = run_python(EXAMPLES / "sweep_from_python.py", *options, timeout=500, succeeds=True)
    assert "failed" not in done.stdout
    assert (tmp_path / "report.html").is_file()
    assert len(list(tmp_path.glob("*/summary.json"))) == 3
