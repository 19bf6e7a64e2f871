"""What a run shows of itself: films, learning curves, exports, trackers."""

import io
import os
import re
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from unittest.mock import Mock

import gymnasium as gym
import numpy as np
import pytest
import torch
import yaml
from conftest import assert_refused, here
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy_env import Toy

from cet_rl import CET
from cet_rl.agents import CETActorCritic
from cet_rl.agents.export import write_policy
from cet_rl.cli import main
from cet_rl.credit import Synapses
from cet_rl.envs import make_env, make_vec_env
from cet_rl.envs.minatar import CELL, MinAtarEnv
from cet_rl.rl import RLConfig, train
from cet_rl.rl.video import watch, write_film
from cet_rl.runs.task_kinds import build_config, task_kind_of
from cet_rl.runs.tracking import start_tracker
from cet_rl.vision import TracedLinear

TINY = {"total_steps": 2048, "hidden": (8, 8), "eval_episodes": 1, "eval_max_steps": 50}


@pytest.fixture(scope="module", autouse=True)
def _without_display():
    before = os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    yield
    os.environ["SDL_VIDEODRIVER"] = before


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Short runs by task: CartPole, SpaceInvaders."""
    folder = tmp_path_factory.mktemp("runs")
    for task, name in (("CartPole-v1", "cartpole"), ("MinAtar/SpaceInvaders-v1", "invaders")):
        train(RLConfig(task, delay=1.0, **TINY), folder / name, quiet=True)
    return folder


# -------------------- films


def test_a_gif_shows_every_step_of_the_episodes_that_are_evaluated(runs, tmp_path, capsys):
    film = tmp_path / "film.gif"
    assert main(["eval", str(runs / "cartpole"), "--video", str(film), "--episodes", "2"]) == 0
    mean = float(re.search(r"return ([\d.]+) ± .* over 2 episodes; film: ", capsys.readouterr().out)[1])
    with Image.open(film) as found:
        assert found.size == (600, 400)
        milliseconds = 0
        for frame in range(found.n_frames):
            found.seek(frame)
            milliseconds += found.info["duration"]
    assert milliseconds == 20 * (2 * mean + 2)  # a reward a step, and the first observation of each episode
    assert main(["eval", str(runs / "cartpole"), "--video", str(film)]) == 0
    shown = capsys.readouterr().out.partition(";")[0]
    main(["eval", str(runs / "cartpole"), "--episodes", "1"])
    assert (capsys.readouterr().out.strip(), list(tmp_path.iterdir())) == (shown, [film])


def test_an_mp4_shows_minatar_in_colour(runs, tmp_path):
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    film = tmp_path / "film.mp4"
    assert main(["eval", str(runs / "invaders"), "--video", str(film), "--seed", "3"]) == 0
    frames = ffmpeg.read_frames(str(film))
    meta = next(frames)
    first = np.frombuffer(next(frames), np.uint8).reshape(10 * CELL, 10 * CELL, 3)
    env = make_env("MinAtar/SpaceInvaders-v1", render_mode="rgb_array")
    env.reset(seed=3)
    assert (meta["fps"], meta["codec"]) == (15, "h264")
    centres = slice(CELL // 2, None, CELL)
    assert np.abs(first[centres, centres].astype(int) - env.render()[centres, centres]).max() < 12
    assert [file.name for file in tmp_path.iterdir()] == ["film.mp4"]


@pytest.mark.parametrize("game", ["asterix", "breakout", "freeway", "seaquest", "space_invaders"])
def test_a_cell_has_the_colour_of_its_highest_channel(game):
    env = MinAtarEnv(game, render_mode="rgb_array")
    observation, _ = env.reset(seed=0)
    colours: dict[int, set[tuple[int, ...]]] = {}
    for _ in range(40):
        picture = env.render()
        assert (picture.shape, picture.dtype) == ((10 * CELL, 10 * CELL, 3), np.uint8)
        numbers = (observation * np.arange(1, len(observation) + 1)[:, None, None]).max(0)
        cells = picture.reshape(10, CELL, 10, CELL, 3)[:, 1:, :, 1:]
        assert (cells == cells[:, :1, :, :1]).all()
        for number, colour in zip(numbers.ravel(), cells[:, 0, :, 0].reshape(-1, 3), strict=True):
            colours.setdefault(int(number), set()).add(tuple(map(int, colour)))
        observation, _, terminated, *_ = env.step(env.action_space.sample())
        if terminated:
            break
    assert len(colours) > 2
    assert all(len(same) == 1 for same in colours.values())
    assert len(set.union(*colours.values())) == len(colours)


@pytest.mark.parametrize("run", ["cartpole", "invaders"])
def test_episodes_in_a_window(runs, run, capsys, monkeypatch):
    for kind in (MinAtarEnv, gym.envs.classic_control.CartPoleEnv):
        monkeypatch.setitem(kind.metadata, "render_fps", 1000)
    assert main(["eval", str(runs / run), "--render"]) == 0
    assert capsys.readouterr().out.endswith("over 1 episode\n")


def test_films_that_cannot_be_made(runs, tmp_path, monkeypatch):
    run, film = runs / "cartpole", tmp_path / "film.gif"
    assert_refused(here("eval", run, "--video", "film.avi"), ".gif or .mp4, got film.avi")
    assert_refused(here("eval", run, "--video", "nowhere/film.gif"), "there is no folder nowhere")
    assert_refused(here("eval", run, "--video", film, "--render"), "leave out one")
    monkeypatch.setattr("cet_rl.cli.evaluate.find_spec", lambda name: None)
    assert_refused(here("eval", run, "--video", "film.mp4"), 'pip install "cet-rl[video]"')
    for name in ("SDL_VIDEODRIVER", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    assert_refused(here("eval", run, "--render"), "--video FILE.gif")
    gym.register("Blind-v0", lambda: Toy(5))
    agent = SimpleNamespace(action_space=gym.spaces.Discrete(2))
    with pytest.raises(ValueError, match="no render mode rgb_array"):
        watch(agent, {"task": "Blind-v0", "wrappers": []}, 1, 0, film)
    growing = [np.zeros((size, 4, 3), np.uint8) for size in (4, 8)]
    for frames in ([np.zeros((4, 4), np.uint8)], [np.zeros((4, 4, 3))], growing, [None]):
        with pytest.raises(ValueError, match=r"uint8 \(height, width, 3\), this environment's are"):
            write_film(film, iter(frames), 30)
    assert not list(tmp_path.iterdir())


# -------------------- learning curves


@pytest.mark.parametrize(("name", "start"), [("a.svg", b"<?xml"), ("a.PDF", b"%PDF"), ("a.png", b"\x89PNG")])
def test_learning_curves_as_a_file(runs, tmp_path, capsys, name, start):
    assert main(["plot", str(runs / "cartpole"), "--out", str(tmp_path / name)]) == 0
    assert (tmp_path / name).read_bytes().startswith(start)
    assert "One seed each." in capsys.readouterr().out


def test_curves_that_cannot_be_drawn(runs, tmp_path):
    assert_refused(here("plot", "--out", "a.svg"), "name run folders")
    assert_refused(here("plot", runs), "--out FILE.svg")
    assert_refused(here("plot", runs, "--out", "a.gif"), ".svg, .png or .pdf, got a.gif")
    assert_refused(here("plot", runs, "--out", "no/a.svg"), "there is no folder no")
    assert_refused(here("plot", tmp_path, "--out", tmp_path / "a.svg"), "no run folder in")
    mixed = "CartPole-v1, MinAtar/SpaceInvaders-v1: name some of one"
    assert_refused(here("plot", runs, "--out", tmp_path / "a.svg"), mixed)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("tusk: CartPole-v1")
    assert_refused(here("plot", run, "--out", tmp_path / "a.svg"), "none of these runs can be read")
    (run / "config.yaml").write_text("task: CartPole-v1")
    assert_refused(here("plot", run, "--out", tmp_path / "a.svg"), "logged a learning curve")
    assert not list(tmp_path.glob("*.svg"))


# -------------------- words and exports


def test_agents_synapses_and_layers_tell_trace_delay_and_sizes():
    model = CETActorCritic("MlpPolicy", "CartPole-v1", delay=8.0, order=5)
    for piece in ("trace=CET(order=5, delay_steps=40", "delay='8 s'", "(40, 40, 40)", "'8 → 256 → 256 → 2'"):
        assert piece in repr(model)
    assert "weight=(3, 8), trace=CET(order=5, delay_steps=40" in repr(Synapses(8, 3, CET(5, 40)))
    assert "trace=None, delay_steps=0" in repr(Synapses(8, 3))
    assert "in_features=8, out_features=3" in repr(TracedLinear(8, 3, trace=CET(5, 4)))
    assert "trace=CET(order=5, delay_steps=4" in repr(TracedLinear(8, 3, trace=CET(5, 4)))


def pixels():
    return Toy(observation_space=gym.spaces.Box(0, 255, (3, 36, 36), np.uint8))


AGENTS = [
    ("CartPole-v1", {}),
    ("Pendulum-v1", {}),
    ("MinAtar/Seaquest-v1", {"actor": "conv", "critic": "mlp", "net_arch": [16]}),
    (pixels, {"activation": "tanh"}),
]


@pytest.fixture(params=AGENTS, ids=["discrete", "real", "maps", "pixels"])
def acting(request):
    """An agent, a thousand observations, and its actions."""
    task, networks = request.param
    model = CETActorCritic(
        "MlpPolicy", make_vec_env(task), seed=0, error_at="activation", policy_kwargs=networks, device="cpu"
    )
    space = model.observation_space
    numbers = np.random.default_rng(0).normal(0, 3, (1000, *space.shape))
    observations = (numbers * 100 if space.dtype == np.uint8 else numbers).astype(space.dtype)
    return model, observations, model.predict(observations, deterministic=True)[0]


def assert_same(found, actions, observations):
    action, logits = (np.asarray(each) for each in found)
    np.testing.assert_allclose(action, actions, rtol=1e-5, atol=1e-5)
    assert len(logits) == len(observations)
    assert len(np.unique(action)) > 1


def test_a_policy_as_a_plain_module_and_as_an_archive(acting):
    model, observations, actions = acting
    module = model.to_torch()
    assert {type(layer).__module__.split(".")[0] for layer in module.network} == {"torch"}
    with pytest.raises(ValueError, match=r"observations must be \(N, .*got \(1000, "):
        module(torch.from_numpy(np.moveaxis(observations, 1, -1))[..., None])  # of the same size
    with torch.no_grad():
        assert_same(module(torch.from_numpy(observations)), actions, observations)
        file = io.BytesIO()
        write_policy(module, model.observation_space, file, "torch")
        file.seek(0)
        assert_same(torch.export.load(file).module()(torch.from_numpy(observations)), actions, observations)
    module.network[0].weight.data.zero_()
    assert model.policy.actor.weights[0].abs().sum() > 0  # a copy


def test_a_policy_as_onnx(acting):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model, observations, actions = acting
    file = io.BytesIO()
    write_policy(model.to_torch(), model.observation_space, file, "onnx")
    session = runtime.InferenceSession(file.getvalue())
    assert session.get_inputs()[0].shape == ["N", *model.observation_space.shape]
    for some in (observations, observations[:1]):
        found = session.run(["action", "logits"], {"observation": some})
        assert_same([np.concatenate([found[0], actions[len(some) :]]), found[1]], actions, some)


def test_export_from_the_shell(runs, tmp_path, monkeypatch):
    file = tmp_path / "policy.pt2"
    assert main(["export", str(runs / "invaders"), "--format", "torch", "--out", str(file)]) == 0
    model = CETActorCritic.load(runs / "invaders" / "checkpoint" / "agent.zip", device="cpu")
    observations = np.random.default_rng(0).integers(0, 2, (100, 6, 10, 10)).astype(np.float32)
    action, _ = torch.export.load(file).module()(torch.from_numpy(observations))
    np.testing.assert_array_equal(action, model.predict(observations, deterministic=True)[0])
    assert_refused(here("export", runs, "--format", "onnx", "--out", "a.pt2"), "named .onnx, got a.pt2")
    assert_refused(here("export", runs, "--format", "torch"), "cet-rl export needs --out TEXT; see")
    assert_refused(here("export", runs, "--format", "tensorflow", "--out", "a.pt2"), "tensorflow")
    monkeypatch.setattr("cet_rl.cli.export.find_spec", lambda name: None)
    line = assert_refused(here("export", runs, "--format", "onnx", "--out", tmp_path / "a.onnx"))
    assert 'pip install "cet-rl[onnx]"' in line
    for config, words in {
        "task: digits": "only policies can be exported",
        "task: CartPole-v1\nagent: sb3:a2c": "has learned with sb3:a2c",
        "task: CartPole-v1": "has no checkpoint yet",
    }.items():
        (tmp_path / "config.yaml").write_text(config)
        assert_refused(here("export", tmp_path, "--format", "torch", "--out", tmp_path / "a.pt2"), words)
    assert not list(tmp_path.glob("a.*"))


# -------------------- trackers


@pytest.fixture(params=["wandb", "mlflow"])
def tracker(request, monkeypatch):
    """A stand-in for a tracker's package: its name, and what has been called, by function."""
    calls: dict[str, list] = {}

    def record(name, result=None):
        return lambda *given, **named: calls.setdefault(name, []).append((given, named)) or result

    module = ModuleType(request.param)
    module.__spec__ = ModuleSpec(request.param, None)
    run = SimpleNamespace(id="42", info=SimpleNamespace(run_id="42"), log=record("log"), finish=record("end"))
    module.Settings, module.init = record("settings"), record("start", run)
    module.set_experiment, module.start_run = record("experiment"), record("start", run)
    module.log_params, module.log_metrics, module.end_run = record("params"), record("log"), record("end")
    monkeypatch.setitem(sys.modules, request.param, module)
    return request.param, calls


@pytest.mark.parametrize("task", ["CartPole-v1", "digits"])
def test_a_tracker_gets_the_configuration_and_what_tensorboard_gets(task, tracker, tmp_path):
    name, calls = tracker
    size = TINY if task == "CartPole-v1" else {"total_steps": 50}
    config = build_config({"task": task, **size})
    assert task_kind_of(task).training().train(config, tmp_path / "run", quiet=True, track=name) == "finished"
    ((given, named),) = calls["start" if name == "wandb" else "params"]
    assert (given or [named["config"]])[0] == yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    tracked = [(tag, named["step"], value) for (values,), named in calls["log"] for tag, value in values.items()]
    events = EventAccumulator(str(tmp_path / "run"), size_guidance={"scalars": 0}).Reload()
    shown = [(tag, point.step, point.value) for tag in events.Tags()["scalars"] for point in events.Scalars(tag)]
    rounded = {(tag, step, np.float32(value)) for tag, step, value in tracked}
    assert len(shown) > 5
    assert {(tag, step, np.float32(value)) for tag, step, value in shown} <= rounded
    assert calls["end"] == [((), {"exit_code": 0}) if name == "wandb" else (("FINISHED",), {})]
    start_tracker(name, {}, tmp_path / "run", resumed=True)
    assert calls["start"][-1][1]["id" if name == "wandb" else "run_id"] == "42"
    start_tracker(name, {}, tmp_path / "run", resumed=False)
    assert calls["start"][-1][1]["id" if name == "wandb" else "run_id"] is None


def test_a_tracker_that_breaks_does_not_end_the_run(tracker, tmp_path, capsys, monkeypatch):
    (name, calls), module = tracker, sys.modules[tracker[0]]
    with monkeypatch.context() as patch:
        patch.setattr("cet_rl.runs.session.RunLog", Mock(side_effect=OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            train(RLConfig("CartPole-v1", **TINY), tmp_path, track=name)
    assert len(calls["end"]) == 1
    target = module.init() if name == "wandb" else module
    setattr(target, "log" if name == "wandb" else "log_metrics", Mock(side_effect=OSError("no network")))
    assert train(RLConfig("CartPole-v1", **TINY), tmp_path, track=name, resume=True) == "finished"
    assert capsys.readouterr().err.count("no network") == 1


def test_trackers_that_cannot_be_used(tracker, tmp_path, monkeypatch):
    name, _ = tracker
    command = ["train", "CartPole-v1", "--run-dir", tmp_path / "run", "--track"]
    assert_refused(here(*command, name, "--seeds", "0-1"), "--track does not go with --seeds")
    assert_refused(here(*command, "neptune"), "--track")
    del sys.modules[name].Settings, sys.modules[name].set_experiment
    assert_refused(here(*command, name, "--quiet", "--total-steps", 2048), f"--track {name}: module")
    monkeypatch.setattr("cet_rl.runs.tracking.find_spec", lambda name: None)
    assert_refused(here(*command[:3], tmp_path / "new", "--track", name), f'pip install "cet-rl[{name}]"')
    assert not (tmp_path / "new").exists()
