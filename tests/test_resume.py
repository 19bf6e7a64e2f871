"""Reinforcement learning that is killed and resumed ends as if it had not been: weights, metrics, TensorBoard."""

import contextlib
import io
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import assert_holds
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from saved_files import TIMES, members, parts, rows, summary, write_members
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.summary_pb2 import Summary

from cet_rl.agents import CETActorCritic
from cet_rl.cli import main
from cet_rl.credit.costs import NANOSECONDS
from cet_rl.envs import make_vec_env
from cet_rl.envs.vector import NUMPY_FROM
from cet_rl.rl import training
from cet_rl.rl.agent_kinds import restore, runtime_state
from cet_rl.rl.agent_registry import AgentKind, find_agent
from cet_rl.rl.config import RLConfig
from cet_rl.rl.training import pending, restore_pending, train
from cet_rl.runs import archive, log
from cet_rl.runs.config_files import load_yaml
from cet_rl.runs.folder import MetricsTable, RunFolder

SMALL = {
    **{"task": "CartPole-v1", "delay": 1.0, "total_steps": 640, "hidden": (4,), "num_envs": 2, "n_steps": 16},
    **{"eval_episodes": 2, "eval_max_steps": 20, "device": "cpu"},
}
GAME = {"delay": 0.8, "n_steps": 10, "total_steps": 160}
WAYS = {
    "cartpole": {},
    "an update a step, one λ per weight": {"order": 2, "n_steps": 1, "random_lam": (0.1, 0.9), "total_steps": 300},
    "all environments in one call": {"vectorization": "numpy"},
    "longer rollouts than checkpoints": {"n_steps": 128, "total_steps": 1024},
    "a delay line and dfa": {"delay": 2.0, "trace": "perfect", "feedback": "dfa"},
    "breakout, convolutions": {**GAME, "task": "MinAtar/Breakout-v1", "actor": "conv"},
    "space invaders, one λ per weight": {
        **{**GAME, "task": "MinAtar/SpaceInvaders-v1", "critic": "mlp", "random_lam": (0.2, 0.9)}
    },
    "real actions": {"task": "Pendulum-v1"},
    "sb3:a2c": {"agent": "sb3:a2c"},
    "sb3:ppo": {"agent": "sb3:ppo", "delay": 0.0},
}


class Killed(BaseException):
    """The end of a process, which no handler of errors sees."""


@pytest.fixture(autouse=True)
def _often_and_quickly(monkeypatch):
    often_and_quickly(monkeypatch)


def often_and_quickly(patch):
    patch.setattr(training, "CHECKPOINT_EVERY", 100)
    patch.setattr(training, "LOGGED_POINTS", 8)
    patch.setattr(log, "kernel_figure", lambda *given: Figure((1, 1)))  # figures take time


def train_until_killed(config, folder, monkeypatch, moment=0, at=(training.Training, "_on_step")):
    """Let a run die where this is called with so many samples made: by default at a step of the environments."""
    called = getattr(*at)

    def dying(self, *given, **named):
        if getattr(self, "model", None) is None or self.model.num_timesteps >= moment:
            raise Killed
        return called(self, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(*at, dying)
        with pytest.raises(Killed):
            train(config, folder, resume=True, quiet=True)


def killed_and_resumed(config, folder, monkeypatch, *moments):
    for moment in moments:
        train_until_killed(config, folder, monkeypatch, moment)
    assert train(config, folder, resume=True, quiet=True) == "finished"


def test_vectorization_is_chosen_once_and_runs_from_before_it_resume_as_they_began(tmp_path, monkeypatch):
    config = RLConfig(**{**SMALL, "num_envs": NUMPY_FROM, "total_steps": 1280})
    file = RunFolder(tmp_path).config_file
    train_until_killed(config, tmp_path, monkeypatch, 300)
    assert "vectorization: numpy\n" in file.read_text()
    with pytest.raises(ValueError, match="vectorization 'numpy' there, 'each' here"):
        train(replace(config, vectorization="each"), tmp_path, resume=True, quiet=True)
    old = replace(config, vectorization="each")
    train(old, tmp_path / "whole", quiet=True)
    train_until_killed(old, tmp_path / "old", monkeypatch, 300)
    file = RunFolder(tmp_path / "old").config_file
    file.write_text(file.read_text().replace("vectorization: each\n", ""))
    with pytest.raises(ValueError, match="vectorization 'each' there, 'numpy' here"):
        train(replace(config, vectorization="numpy"), tmp_path / "old", resume=True, quiet=True)
    assert train(config, tmp_path / "old", resume=True, quiet=True) == "finished"
    assert_same_end(tmp_path / "whole", tmp_path / "old")


def logged(folder):
    """Return what TensorBoard shows of a run, times apart: a later file hides points from its first step on."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found = []
    files = folder.glob("events.out.tfevents.*")
    for file in sorted(files, key=lambda file: (file.name.endswith(".evaluation"), file.stat().st_mtime_ns)):
        for event in EventFileLoader(str(file)).Load():
            if event.HasField("session_log"):
                found = [point for point in found if point[0] < event.step]
            for value in event.summary.value:
                # Those of hyper-parameters hold the time they were written.
                if value.tag not in TIMES and not value.tag.startswith("_hparams_/"):
                    found.append((event.step, value.tag, value.SerializeToString()))
    return sorted(found)


def assert_same_end(one, other, what="agent"):
    # Weights, optimiser, traces, lines, generators, environments and counters: equal contents are equal files.
    first, second = (folder / "checkpoint" / f"{what}.zip" for folder in (one, other))
    if first.read_bytes() != second.read_bytes():
        (data, tensors), (others, theirs) = (parts(file, what) for file in (first, second))
        assert data == others
        different = [key for key in tensors if not torch.equal(tensors[key], theirs[key])]
        raise AssertionError(f"different are {different}, or the runtime state")
    assert (rows(one), logged(one)) == (rows(other), logged(other))
    assert summary(one)["metrics"] == summary(other)["metrics"]


@pytest.mark.parametrize("way", WAYS)
def test_a_run_killed_at_random_moments_ends_as_if_it_had_not_been(tmp_path, monkeypatch, way):
    config = RLConfig(**{**SMALL, **WAYS[way]})
    assert train(config, tmp_path / "whole", quiet=True) == "finished"
    moments = sorted(random.Random(way).sample(range(100, config.total_steps), 2))
    killed_and_resumed(config, tmp_path / "cut", monkeypatch, *moments)
    assert_same_end(tmp_path / "whole", tmp_path / "cut")
    iterations = [int(row["time/iterations"]) for row in rows(tmp_path / "cut") if row["time/iterations"]]
    if "n_steps" not in WAYS[way]:
        assert iterations == list(range(2, 21, 2))  # 640 samples, 32 in a rollout, every other logged
    assert len(iterations) > 3


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of CartPole."""
    config = RLConfig(**{**SMALL, **WAYS["cartpole"]})
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        often_and_quickly(patch)
        assert train(config, folder, quiet=True) == "finished"
    return config, folder


def test_asked_to_stop_before_the_first_step_between_logs_and_while_evaluating(tmp_path, monkeypatch, whole):
    config, reference = whole
    ask = training.Training._on_rollout_start
    for moment in (0, 96, 352):
        with monkeypatch.context() as patch:

            def stop(self, moment=moment):
                self.session.interruption.wanted = self.model.num_timesteps >= moment
                ask(self)

            patch.setattr(training.Training, "_on_rollout_start", stop)
            assert train(config, tmp_path, resume=True, quiet=True) == "interrupted"
            assert summary(tmp_path)["steps"] == moment

    train_until_killed(config, tmp_path, monkeypatch, at=(training, "evaluate"))
    train_until_killed(config, tmp_path, monkeypatch, at=(RunFolder, "write_summary"))
    assert train(config, tmp_path, resume=True, quiet=True) == "finished"
    assert_same_end(reference, tmp_path)


@pytest.mark.parametrize("agent", ["cet", "sb3:a2c"])
def test_the_last_return_is_the_same_everywhere(tmp_path, monkeypatch, agent):
    """The 22nd and last update is not one of those logged, which are every third."""
    killed_and_resumed(RLConfig(**{**SMALL, "total_steps": 704, "agent": agent}), tmp_path, monkeypatch, 400)
    last = summary(tmp_path)["metrics"]["train_return_mean"]
    row = rows(tmp_path)[-1]
    assert (row[MetricsTable.STEP], float(row["rollout/ep_rew_mean"])) == ("704", last)
    values = {tag: [] for _, tag, _ in logged(tmp_path)}
    for step, tag, value in logged(tmp_path):
        values[tag].append((step, Summary.Value.FromString(value).tensor.float_val[0]) if "rew" in tag else step)
    assert values["rollout/ep_rew_mean"][-1] == (704, pytest.approx(last))
    assert values["eval/mean_reward"] == [(704, pytest.approx(summary(tmp_path)["metrics"]["eval_return_mean"]))]
    assert all(len(set(points)) == len(points) for points in values.values())
    hyperparameters = EventAccumulator(str(tmp_path)).Reload().summary_metadata["_hparams_/experiment"]
    for tag in (b"rollout/ep_rew_mean", b"eval/mean_reward"):  # their last points are shown
        assert tag in hyperparameters.plugin_data.content


def damage_newest(folder):
    newest = folder / "checkpoint" / "agent.zip"
    newest.write_bytes(newest.read_bytes()[:-1000])


def swap(folder):
    """By hand: the older one is whole and of this run, so it will do."""
    newest, previous = (folder / "checkpoint" / name for name in ("agent.zip", "agent.previous.zip"))
    newest.rename(folder / "x")
    previous.rename(newest)
    (folder / "x").rename(previous)


def half_written_logs(folder):
    with open(folder / "metrics.csv", "a") as stream:
        stream.write("3")
    (events,) = sorted(folder.glob("events.out.tfevents.*"))[-1:]
    with open(events, "ab") as stream:
        stream.write(events.read_bytes()[:20])


@pytest.mark.parametrize("recorded", [True, False], ids=["with executors", "from before there were any"])
def test_a_resumed_run_takes_its_executors_whatever_the_model_would_choose_now(
    tmp_path, monkeypatch, whole, recorded
):
    config, reference = whole
    train_until_killed(config, tmp_path, monkeypatch, 300)
    folder = RunFolder(tmp_path)
    chosen = load_yaml(folder.config_file.read_text())["executors"]
    if recorded:
        monkeypatch.setitem(NANOSECONDS, "loop", 1000.0)  # and "fused" would be the last choice
        fresh = CETActorCritic("MlpPolicy", "CartPole-v1", delay=config.delay, n_steps=config.n_steps, seed=0)
        assert fresh.learner.executors != tuple(chosen)
    else:
        text = folder.config_file.read_text()
        folder.config_file.write_text(text.replace(text[text.index("executors") : text.index("agent:")], ""))
        for file in filter(Path.exists, (folder.newest, folder.previous)):
            data = members(file)
            del data["agent"][0]["state"]["arguments"]["executors"]
            write_members(file, data)
    if recorded:
        with pytest.raises(ValueError, match=r"executors \[.* there, \['chunk'\] here"):
            folder.check_usable({**config.resolved().as_data(), "executors": ["chunk"]}, resume=True)
    assert train(config, tmp_path, resume=True, quiet=True) == "finished"
    assert_same_end(reference, tmp_path)


@pytest.mark.parametrize("damage", [damage_newest, swap, half_written_logs])
def test_whatever_happened_to_the_folder_it_ends_the_same(tmp_path, monkeypatch, whole, damage, caplog):
    config, reference = whole
    train_until_killed(config, tmp_path / "run", monkeypatch, 500)
    damage(tmp_path / "run")
    assert main(["eval", str(tmp_path / "run"), "--episodes", "2"]) == 0  # of the checkpoint that is good
    caplog.clear()
    assert train(config, tmp_path / "run", resume=True, quiet=True) == "finished"
    assert len(caplog.records) == (damage is damage_newest)
    assert_same_end(reference, tmp_path / "run")


@pytest.mark.parametrize("write", ["checkpoint", "metrics", "checkpoint and summary"])
def test_a_disk_that_fills_up_fails_the_run_and_loses_nothing(tmp_path, monkeypatch, whole, write):
    config, reference = whole
    save, saved = RunFolder.save_checkpoint, []

    def fail(*given, **named):
        raise OSError(28, "No space left on device")

    def third(self, *given, **named):
        saved.append(self)
        if len(saved) == 3:
            patch.setattr(*((MetricsTable, "add") if write == "metrics" else (archive, "write")), fail)
        save(self, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_checkpoint", third)
        if "summary" in write:
            patch.setattr(RunFolder, "write_summary", fail)
        with pytest.raises(OSError, match="No space left on device") as error:
            train(config, tmp_path / "run", quiet=True)
    if "checkpoint" in write:
        words = f"cannot write checkpoint {tmp_path / 'run/checkpoint/agent.zip'}: No space left on device"
        assert str(error.value).startswith(words)
    assert RunFolder(tmp_path / "run").summary.get("status") == (None if "summary" in write else "failed")
    assert train(config, tmp_path / "run", resume=True, quiet=True) == "finished"
    assert_same_end(reference, tmp_path / "run")


@pytest.mark.parametrize(
    ("task", "agent", "words"),
    [
        (
            "LunarLander-v3",
            "sb3:a2c",
            "environments of LunarLander-v3 cannot be captured (LunarLander has no get_state",
        ),
        ("CartPole-v1", "stable_baselines3:DQN", "the replay buffer of DQN is not saved: it starts empty"),
    ],
)
def test_what_cannot_be_restored_is_named(tmp_path, monkeypatch, capsys, task, agent, words):
    config = RLConfig(**{**SMALL, "task": task, "agent": agent, "total_steps": 300, "num_envs": 1})
    train_until_killed(config, tmp_path / "run", monkeypatch, 250)
    assert train(config, tmp_path / "run", resume=True) == "finished"
    assert_holds(capsys.readouterr().err, "resuming at 2", words)


def test_an_agent_without_runtime_state_resumes_in_fresh_episodes(tmp_path, monkeypatch, capsys, whole):
    kind = find_agent("cet")
    bare = AgentKind(kind.build, kind.state, kind.load, delays_credit=True)
    monkeypatch.setattr(training, "find_agent", lambda name: bare)
    train_until_killed(whole[0], tmp_path / "run", monkeypatch, 300)
    assert train(whole[0], tmp_path / "run", resume=True) == "finished"
    words = "environments of CartPole-v1 are not in the checkpoint: they start fresh episodes"
    assert words in capsys.readouterr().err
    begun, ended = kind.build(whole[0]), kind.load(whole[0], tmp_path / "run/checkpoint/agent.zip")
    assert (begun.get_env().reset() != ended.get_env().reset()).any()  # not those of the beginning again


def test_numpy_s_vector_form_resumes_with_the_agent():
    """Users' own loops resume from the agent's file and its runtime state."""

    def build():
        env = make_vec_env("CartPole-v1", 3, 1, vectorization="numpy", delay=1.0)
        return CETActorCritic("MlpPolicy", env, n_steps=16, seed=0, policy_kwargs={"net_arch": [4]}, device="cpu")

    class Capture(BaseCallback):
        found = None

        def _on_rollout_start(self):
            if self.num_timesteps == 96 and self.found is None:
                tensors = {}
                self.found = archive.encode(runtime_state(self.model), tensors), tensors
                self.model.save(path)

        def _on_step(self):
            return True

    path, capture, first = io.BytesIO(), Capture(), build()
    first.learn(240, callback=capture)
    path.seek(0)
    again = CETActorCritic.load(path, build().get_env(), device="cpu")
    restore(again, archive.decode(*capture.found))
    again.learn(144, reset_num_timesteps=False)
    for name, parameters in first.get_parameters().items():
        if name != "policy.optimizer":
            for key, value in parameters.items():
                assert torch.equal(value, again.get_parameters()[name][key]), f"{name}/{key}"
    assert np.array_equal(first._last_obs, again._last_obs)


def test_pending_means_are_restored():
    logger, again = Logger(None, []), Logger(None, [])
    for value in (1.0, 2.0):
        logger.record_mean("a", value, exclude="csv")
    logger.record("b", np.float32(0.1))
    logger.record("text", "not a number")
    tensors = {}
    restore_pending(again, archive.decode(archive.encode(pending(logger), tensors), tensors))
    for one in (logger, again):
        one.record_mean("a", 6.0, exclude="csv")
    assert again.name_to_value["a"] == logger.name_to_value["a"] == 3
    assert (again.name_to_value["b"], again.name_to_excluded["a"]) == (logger.name_to_value["b"], ("csv",))
    assert "text" not in again.name_to_value


@given(data=st.data())
@settings(max_examples=40)
def test_whatever_a_checkpoint_says_of_the_run_is_refused_or_harmless(data, mutable):
    """Replace any value of the run's JSON part by any other."""
    resumed, content = mutable
    file = resumed.session.folder.path / "checkpoint" / "agent.zip"
    file.write_bytes(content)
    found = members(file)
    node, key = found["run"][0]["state"], "runtime_state"
    while isinstance(node[key], dict | list) and node[key] and data.draw(st.integers(0, 9)):
        node = node[key]
        key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
    node[key] = data.draw(st.sampled_from([None, True, -1, 0, 0.5, 1e308, "", "x", [], {}, [1], {"$dict": []}]))
    write_members(file, found)
    with contextlib.suppress(ValueError):
        resumed.load()


@pytest.fixture(scope="module")
def mutable(whole, tmp_path_factory):
    folder = RunFolder(tmp_path_factory.mktemp("mutable"))
    (folder.path / "checkpoint").mkdir()
    folder.config_file.write_bytes((whole[1] / "config.yaml").read_bytes())
    session = SimpleNamespace(folder=folder, say=lambda text: None, config=training.resolve(whole[0]))
    return training.Training(session, training.Stopwatch()), (whole[1] / "checkpoint" / "agent.zip").read_bytes()


RUNS = {
    "cartpole": "CartPole-v1 --delay 1 --total-steps 40000 --hidden 8 --eval-episodes 2",
    "digits": "digits --delay 0.6 --streaming --total-steps 1000 --hidden 16",
    "add": "add --rule kernl --delay 2 --total-steps 100000 --units 8",
}


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_kill_minus_nine(tmp_path, run):
    """A process that is killed at moments of the clock's choosing, twice."""

    def start(folder, *more):
        arguments = ["train", *RUNS[run].split(), "--quiet", "--run-dir", str(folder), *more]
        command, environment = [sys.executable, "-m", "cet_rl", *arguments], {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    for _ in range(2):
        process = start(tmp_path / "cut", "--resume")
        metrics = tmp_path / "cut" / "metrics.csv"
        before = metrics.stat().st_size if metrics.exists() else 0
        while process.poll() is None and (not metrics.exists() or metrics.stat().st_size <= before + 200):
            time.sleep(0.01)
        time.sleep(random.random())
        process.send_signal(signal.SIGKILL)
        process.communicate()
    for name, more in (("cut", ["--resume"]), ("whole", ["--checkpoint-every", "3000"])):
        process = start(tmp_path / name, *more)
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    assert_same_end(tmp_path / "whole", tmp_path / "cut", "network" if run in ("digits", "add") else "agent")
