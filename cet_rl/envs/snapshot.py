"""Capture environments in the middle of an episode as plain data, and restore them in another process.

    state = capture(env)      # numbers, strings, arrays, lists and dicts
    restore(other, state)     # other, built like env, now continues as env would

An environment, a wrapper or a vector environment can be captured in one of two ways:

- It has the methods `get_state()`, which returns a dictionary of plain data (what `cet_rl.runs.archive` can
  encode), and `set_state(state)`, which restores it. The dictionary holds all that changes from step to step or
  from episode to episode, except wrapped environments and Gymnasium's generator `np_random`, which are added here.
- `register_snapshot` names the attributes that change, for a class whose code is not yours.

Gymnasium's classic control, its time limit and its stateless wrappers, Stable-Baselines3's `Monitor`, `VecMonitor`
and `DummyVecEnv`, MinAtar and everything in `cet_rl.envs` can be captured. Box2D's environments cannot: Python
cannot read the state of its solver.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs import classic_control
from gymnasium.vector import VectorEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper, VecMonitor, VecTransposeImage

from cet_rl.runs.process import generator_from, generator_state

State = dict[str, Any]


class CannotCaptureError(ValueError):
    """Report an environment or wrapper whose state cannot be captured."""


_ACCESS: dict[type, tuple[Callable[[Any], State], Callable[[Any, State], None]]] = {}
"""By class: the function that returns the state of an instance, and the one that restores it."""


def register_snapshot(kind: type, attributes: Sequence[str] = (), *, like: type | None = None) -> None:
    """Register the attributes that change for a class of environments or wrappers, but not for its subclasses.

    They must hold plain data; a stateless class has none. `like` is a registered class with the same attributes.
    """
    if like is not None:
        _ACCESS[kind] = _ACCESS[like]
        return

    def get(owner: Any) -> State:
        return {name: getattr(owner, name) for name in attributes if hasattr(owner, name)}

    def put(owner: Any, state: State) -> None:
        for name in state.keys() & set(attributes):
            setattr(owner, name, state[name])

    _ACCESS[kind] = get, put


def capture(env: Any) -> State:
    """Return the state of an environment and its wrappers; raise CannotCaptureError naming one that has none."""
    return {"layers": [{"type": type(one).__name__, **_capture_layer(one)} for one in layers(env)]}


def restore(env: Any, state: State) -> None:
    """Set an environment, which need not be reset, to a captured state; raise ValueError if its layers differ."""
    own, saved = layers(env), copy.deepcopy(state["layers"])
    here, there = [type(one).__name__ for one in own], [str(one["type"]) for one in saved]
    if here != there:
        raise ValueError(f"the environment is made of {', '.join(here)}, the state is of {', '.join(there)}")
    for layer, part in zip(own, saved, strict=True):
        _restore_layer(layer, part)


def layers(env: Any) -> list[Any]:
    """Return the wrappers, outermost first, and then the environment itself."""
    found = [env]
    while isinstance(env, (gym.Wrapper, VecEnvWrapper)):
        env = env.env if isinstance(env, gym.Wrapper) else env.venv
        found.append(env)
    return found


def _access(layer: Any) -> tuple[Callable[[Any], State], Callable[[Any, State], None]]:
    kind = type(layer)
    if kind in _ACCESS:
        return _ACCESS[kind]
    if callable(getattr(kind, "get_state", None)) and callable(getattr(kind, "set_state", None)):
        return kind.get_state, kind.set_state
    raise CannotCaptureError(f"{kind.__name__} has no get_state and set_state")


def _capture_layer(layer: Any) -> State:
    """Return the state of one layer and, for the environment itself, of its random generators."""
    (get, _), name = _access(layer), type(layer).__name__
    try:
        state = copy.deepcopy(get(layer))
    except CannotCaptureError:
        raise
    except Exception as error:  # a third party's method may raise anything
        raise CannotCaptureError(f"get_state of {name} fails: {type(error).__name__}: {error}") from error
    if not isinstance(state, dict):
        raise CannotCaptureError(f"get_state of {name} must return a dictionary, not {type(state).__name__}")
    random = {
        whose: generator_state(owner._np_random)
        for whose, owner in _random_owners(layer).items()
        if isinstance(owner._np_random, np.random.Generator)
    }
    return {"state": state, "random": random, "seed": getattr(layer, "_np_random_seed", None) if random else None}


def _restore_layer(layer: Any, part: State) -> None:
    owners = _random_owners(layer)
    for whose, state in part["random"].items():
        owners[whose]._np_random = generator_from(state)
    if "own" in part["random"]:
        layer._np_random_seed = part["seed"]
    try:
        _access(layer)[1](layer, part["state"])
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"set_state of {type(layer).__name__} fails: {type(error).__name__}: {error}") from error


def _random_owners(layer: Any) -> dict[str, Any]:
    """Return the objects with a Gymnasium `np_random`: the environment itself (not a wrapper), and its spaces."""
    if isinstance(layer, gym.Wrapper) or not isinstance(layer, (gym.Env, VectorEnv)):
        return {}
    owners = {"own": layer, "action_space": layer.action_space, "observation_space": layer.observation_space}
    return {name: owner for name, owner in owners.items() if hasattr(owner, "_np_random")}


def _restore_each(env: DummyVecEnv, state: State) -> None:
    if len(env.envs) != len(state["envs"]):
        raise ValueError(f"there are {len(env.envs)} environments here, {len(state['envs'])} in the state")
    for one, saved in zip(env.envs, state["envs"], strict=True):
        restore(one, saved)
    env._reset_seeds()  # seeds and options would apply to the next reset; the first one has used them
    env._reset_options()


_ACCESS[DummyVecEnv] = (lambda env: {"envs": [capture(one) for one in env.envs]}), _restore_each
for _kind, _attributes in {
    classic_control.CartPoleEnv: ["state", "steps_beyond_terminated"],
    classic_control.MountainCarEnv: ["state"],
    classic_control.Continuous_MountainCarEnv: ["state"],
    classic_control.AcrobotEnv: ["state"],
    classic_control.PendulumEnv: ["state", "last_u"],
    Monitor: ["rewards", "needs_reset", "total_steps", "current_reset_info"],
    VecTransposeImage: [],
    VecMonitor: ["episode_returns", "episode_lengths", "episode_count"],
    gym.wrappers.TimeLimit: ["_elapsed_steps"],
    gym.wrappers.OrderEnforcing: ["_has_reset"],
}.items():
    register_snapshot(_kind, _attributes)
for _name in (
    *("ClipAction", "ClipReward", "DiscretizeAction", "DiscretizeObservation", "DtypeObservation"),
    *("FilterObservation", "FlattenObservation", "GrayscaleObservation", "PassiveEnvChecker", "RescaleAction"),
    *("RescaleObservation", "ReshapeObservation", "ResizeObservation"),
):
    if hasattr(gym.wrappers, _name):  # the oldest Gymnasium that we support lacks some
        register_snapshot(getattr(gym.wrappers, _name))
