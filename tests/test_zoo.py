"""RL Baselines3 Zoo trains the agent by name. In processes of its own: the zoo changes Gymnasium's time limit."""

import importlib.util
import inspect
import sys
from importlib import resources

import numpy as np
import pytest
import yaml
from conftest import assert_holds, run_python

from cet_rl.agents import CETActorCritic
from cet_rl.agents.config import LEARNING_OPTIONS
from cet_rl.rl import zoo
from cet_rl.rl.config import RLConfig
from cet_rl.runs.config_files import check_values, read_mapping, tuned_defaults
from cet_rl.runs.paper import paper_row

needs_zoo = pytest.mark.skipif(importlib.util.find_spec("rl_zoo3") is None, reason="rl_zoo3 is not installed")
HYPERPARAMETERS = yaml.safe_load((resources.files("cet_rl") / "configs/zoo/cet.yaml").read_text(encoding="utf-8"))
SMALL = "policy_kwargs:{'net_arch':[8,8]}"


def run_zoo(*arguments, cwd, **options):
    return run_python("-m", "cet_rl.rl.zoo", *arguments, cwd=cwd, timeout=300, OPENBLAS_NUM_THREADS="1", **options)


def succeeded(*arguments, cwd):
    return run_zoo(*arguments, cwd=cwd, succeeds=True).stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """CartPole with the hyper-parameters of the package, evaluated and checkpointed on the way."""
    cwd = tmp_path_factory.mktemp("zoo")
    options = ["-n", 4000, "--eval-freq", 2000, "--eval-episodes", 2, "--save-freq", 2000, "--seed", 3]
    out = succeeded("train", "--algo", "cet", "--env", "CartPole-v1", *options, cwd=cwd)
    return cwd, cwd / "logs" / "cet" / "CartPole-v1_1", out


@needs_zoo
def test_training_leaves_what_the_zoo_leaves_and_our_own_files(trained):
    _, folder, out = trained
    assert_holds(out, "configs/zoo/cet.yaml", "'lin_5e-4'")
    assert out.count("Eval num_timesteps=") == 2
    names = {path.name for path in folder.iterdir()}
    assert {"CartPole-v1.zip", "best_model.zip", "evaluations.npz", "rl_model_4000_steps.zip"} <= names
    assert np.load(folder / "evaluations.npz")["results"].shape == (2, 2)
    assert yaml.unsafe_load((folder / "CartPole-v1" / "config.yml").read_text())["delay"] == 8.0
    for name, steps in (("CartPole-v1", 4096), ("rl_model_4000_steps", 4000)):
        agent = CETActorCritic.load(folder / name)
        assert (agent.num_timesteps, agent.n_envs, agent.seed) == (steps, 4, 3)
        assert (agent.timing.delay, agent.timing.step_duration) == (8.0, 0.2)
        assert (agent.learner_config.trace.kind, agent.learner_config.trace.order) == ("cet", 5)
        assert [agent.lr_schedule(progress) for progress in (1, 0.5, 0)] == [5e-4, 2.5e-4, 0]


@needs_zoo
@pytest.mark.parametrize("which", [(), ("--load-checkpoint", "2000")])
def test_enjoy_plays_what_was_trained(trained, which):
    cwd, folder, _ = trained
    options = ["-f", "logs", "-n", 200, "--no-render", *which]
    out = succeeded("enjoy", "--algo", "cet", "--env", "CartPole-v1", *options, cwd=cwd)
    assert_holds(out, f"Loading {folder.relative_to(cwd)}", "Mean reward: ")


@needs_zoo
@pytest.mark.slow
def test_normalised_training_its_continuation_and_a_file_of_ones_own(tmp_path):
    mine = {"n_envs": 2, "n_timesteps": 600, "policy": "MlpPolicy", "delay": 0.4, "order": 2, "normalize": True}
    mine |= {"learning_rate": 1e-3, "n_steps": 16, "policy_kwargs": {"net_arch": [8, 8]}}
    (tmp_path / "mine.yml").write_text(yaml.safe_dump({"CartPole-v1": mine}))
    train = ["train", "--env", "CartPole-v1", "-conf", "mine.yml", "--eval-freq", 200, "--eval-episodes", 1]
    succeeded(*train, cwd=tmp_path)
    folder = tmp_path / "logs" / "cet" / "CartPole-v1_1"
    agent = CETActorCritic.load(folder / "CartPole-v1")
    assert agent.lr_schedule(0.5) == 1e-3
    assert (folder / "CartPole-v1" / "vecnormalize.pkl").is_file()
    options = ["-f", "logs", "-n", 100, "--no-render", "--load-best"]
    assert "Loading running average" in succeeded("enjoy", "--env", "CartPole-v1", *options, cwd=tmp_path)
    out = succeeded(*train, "-i", folder / "CartPole-v1.zip", cwd=tmp_path)
    assert_holds(out, "Loading pretrained agent", "Loading saved VecNormalize stats")
    again = CETActorCritic.load(tmp_path / "logs" / "cet" / "CartPole-v1_2" / "CartPole-v1")
    assert again._n_updates > agent._n_updates


@needs_zoo
@pytest.mark.slow
def test_hyperparameter_search_on_an_environment_of_ours(tmp_path):
    options = ["-optimize", "--n-trials", 1, "-n", 1000, "--n-evaluations", 1, "--eval-episodes", 1]
    options += ["--no-optim-plots", "-params", SMALL]
    out = succeeded("train", "--env", "MinAtar/Breakout-v1", *options, cwd=tmp_path)
    assert "Using 'default' hyperparameters" in out
    names = ("learning_rate", "ent_coef", "lam", "n_steps", "normalization")
    assert_holds(out.split("Params:")[1], *(f"    {name}: " for name in names))


@needs_zoo
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--env", "CartPole-v1", "-params", "delay:8.1"], ["8 s and 8.2 s"]),
        (["--env", "CartPol-v1"], ["CartPol-v1 not found", "CartPole-v1"]),
        (["--env", "CartPole-v1", "-params", "dealy:8.0"], ["unknown argument 'dealy'; did you mean delay?"]),
    ],
)
def test_bad_input_is_refused_in_one_line(options, words, tmp_path):
    result = run_zoo("train", *options, "-n", 5000, cwd=tmp_path)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("cet-rl: error: ")
    assert_holds(last, *words)


def test_without_the_zoo_one_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rl_zoo3", None)
    with pytest.raises(ImportError, match=r'pip install "cet-rl\[zoo\]"'):
        zoo.register()
    assert zoo.main(["train", "--env", "CartPole-v1"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == [
        'cet-rl: error: RL Baselines3 Zoo is not installed: pip install "cet-rl[zoo]"'
    ]


def test_usage(capsys):
    assert zoo.main(["--help"]) == 0
    assert "python -m cet_rl.rl.zoo enjoy" in capsys.readouterr().out
    assert (zoo.main([]), zoo.main(["trian"])) == (2, 2)
    assert "did you mean train?" in capsys.readouterr().err


def test_what_was_asked_for_wins_over_the_defaults(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert zoo.defaults("train", ["--env", "CartPole-v1"])[:3] == ["--algo", "cet", "--conf-file"]
    assert zoo.defaults("enjoy", ["--algo", "cet"]) == ["--algo", "cet"]
    for other in (["--algo", "ppo"], ["--algo=ppo", "-conf", "x.yml"]):
        assert zoo.defaults("train", other) == []


NAMES = {"n_envs": "num_envs", "n_timesteps": "total_steps", "learning_rate": "lr", "ent_coef": "entropy_coef"}


def assert_says(task, config):
    """Compare the zoo's hyper-parameters of a task, which are arguments of the agent, with a configuration."""
    values = dict(HYPERPARAMETERS[task])
    known = {*inspect.signature(CETActorCritic).parameters, *LEARNING_OPTIONS}
    assert set(values) - {"n_envs", "n_timesteps"} <= known
    rate = str(values["learning_rate"])
    assert rate.startswith("lin_") == config.anneal_lr
    values["learning_rate"] = float(rate.removeprefix("lin_"))
    assert (values.pop("policy"), len(values)) == ("MlpPolicy", 12)
    for name, value in values.items():
        assert getattr(config, NAMES.get(name, "value_coef" if name == "vf_coef" else name)) == value


def test_cartpole_is_that_of_the_command_line():
    named = check_values(read_mapping("cartpole-8s"), "cartpole-8s", RLConfig)
    assert_says("CartPole-v1", RLConfig(**{**tuned_defaults("CartPole-v1", RLConfig), **named}))


def test_lunar_lander_is_that_of_the_paper():
    assert_says("LunarLander-v3", RLConfig(**paper_row("LunarLander-v3", delay=8, order=5)[0]))
