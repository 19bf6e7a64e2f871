"""Rollouts: what agents do between two updates, one alone or many side by side.

Agents side by side are alike but for what they have learned: the same spaces and actors, as many environments and
steps. One array holds what all their environments show, agent by agent, so that all act and step at once. Each has
environments, random numbers and a callback of its own, and records what it would record alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from cet_rl.agents.learner import Rollout
from cet_rl.agents.networks import joint_forward
from cet_rl.envs.joint import JointVecEnv

if TYPE_CHECKING:
    from cet_rl.agents.sb3 import CETActorCritic

Array = npt.NDArray[Any]
Outcome = bool | Exception
"""True if an agent goes on after a rollout, False if its callback asks it to stop, or the error that ended it."""


# Numbers that are not finite are refused once the rollout is complete, naming the environment they came from.
@np.errstate(invalid="ignore", over="ignore")
def collect(
    agents: Sequence[CETActorCritic], envs: Sequence[VecEnv], callbacks: Sequence[BaseCallback], steps: int
) -> list[Outcome]:
    """Let agents act for so many steps, and return what has become of each.

    Every agent keeps its rollout for `train`. One that fails, or whose callback asks it to stop, does not end the
    rollout of the others; what the environment of a single agent raises is raised.
    """
    policy, head, count = agents[0].policy, agents[0].policy.actor.head, len(agents)
    rollout = Rollout.empty(steps, count * agents[0].n_envs, policy.num_features, head)
    arrays, whole = rollout.arrays(), zip(agents, envs, callbacks, strict=True)
    parts = [_Part(*each, rollout, number) for number, each in enumerate(whole)]
    joint = JointVecEnv(envs) if count > 1 else None
    forward = joint_forward([agent.policy.actor for agent in agents])
    # Not before: what is saved when a rollout starts has not drawn yet what it will draw again.
    noise = _joined([a.policy.actor.head.noise((steps, a.n_envs), a.generator) for a in agents], 1)
    going, stepping = [part.outcome is None for part in parts], False
    try:
        for step in range(steps):
            if not any(going):
                break
            features = arrays["observations"][step]
            policy.write_features(_joined([agent._last_obs for agent in agents]), features)
            arrays["starts"][step] = _joined([agent._last_episode_starts for agent in agents])
            actions = arrays["actions"][step] = head.sample(forward(features), noise[step])
            clipped = policy.to_environment(actions)
            stepping = True
            seen = [envs[0].step(clipped)] if joint is None else joint.step(clipped, going)
            stepping = False
            for number, given in enumerate(
                zip(_shares(actions, count), _shares(clipped, count), seen, strict=True)
            ):
                if going[number]:
                    going[number] = parts[number].note(step, *given)
        for part in parts:
            part.check()
    finally:
        if joint is not None:
            joint.write_back()
        for part in parts:
            part.leave(lost=stepping)
    return [part.finish() for part in parts]


def _joined(arrays: list[Any], axis: int = 0) -> Array:
    joined: Array = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis)
    return joined


def _shares(rows: Array, count: int) -> Sequence[Array]:
    return [rows] if count == 1 else rows.reshape(count, -1, *rows.shape[1:])  # type: ignore[return-value]


class _Part:
    """Take one agent's part in a rollout, whose environments are the `number`-th share of a joint one.

    `outcome` is None while the agent goes on.
    """

    def __init__(
        self, agent: CETActorCritic, env: VecEnv, callback: BaseCallback, joint: Rollout, number: int
    ) -> None:
        agent.leave_rollout()  # one whose update was left before it began
        self.agent, self.callback, self.steps = agent, callback, len(joint.rewards)
        agent.policy.set_training_mode(False)
        agent._recorded, agent._told = 0, agent.learner.steps
        agent._rollout = joint.of_envs(slice(number * agent.n_envs, (number + 1) * agent.n_envs))
        self._arrays, self._lost = agent._rollout.arrays(), False
        self._locals: dict[str, Any] = {"self": agent, "env": env, "callback": callback}
        self._locals |= {"rollout_buffer": agent.rollout_buffer, "n_rollout_steps": self.steps}
        self.outcome: Outcome | None = None
        try:
            callback.on_rollout_start()
        except Exception as error:
            self.outcome = error

    def note(self, step: int, actions: Array, clipped: Array, seen: VecEnvStepReturn | Exception) -> bool:
        """Take down what a step has brought, ask the callback, and return whether the agent goes on."""
        agent = self.agent
        if isinstance(seen, Exception):
            self.outcome, self._lost = seen, True
            return False
        new_obs, rewards, dones, infos = seen
        agent.num_timesteps += len(dones)
        self._arrays["rewards"][step] = rewards
        if np.count_nonzero(dones):  # a quarter of `any`'s time
            self._record_ends(step, dones, infos)
        agent._recorded = step + 1
        try:
            self._locals |= {"n_steps": step, "actions": actions, "clipped_actions": clipped, "new_obs": new_obs}
            self._locals |= {"rewards": rewards, "dones": dones, "infos": infos}
            self.callback.update_locals(self._locals)  # named as callbacks know them from A2C
            if not self.callback.on_step():
                self.outcome = False
        except Exception as error:
            self.outcome = error
        finally:
            agent._last_obs, agent._last_episode_starts = new_obs, dones  # type: ignore[assignment]
        if self.outcome is None:
            agent._update_info_buffer(infos, dones)
        return self.outcome is None

    def _record_ends(self, step: int, dones: npt.NDArray[np.bool_], infos: list[dict[str, Any]]) -> None:
        policy, rollout = self.agent.policy, self.agent._rollout
        for env in np.flatnonzero(dones):
            if not infos[env].get("TimeLimit.truncated", False):
                self._arrays["terminated"][step, env] = 1
                continue
            self._arrays["truncated"][step, env] = 1
            final = torch.zeros(1, policy.num_features)
            policy.write_features(np.asarray(infos[env]["terminal_observation"])[None], final.numpy())
            rollout.final_observations = torch.cat([rollout.final_observations, final])

    def check(self) -> None:
        """Complete the rollout of an agent that has taken all steps."""
        if self.outcome is None:
            self._write_last()
            try:
                self.agent._rollout.check_finite(self.agent.num_timesteps // self.agent.n_envs - self.steps)
                self.outcome = True
            except FloatingPointError as error:
                self.outcome = error

    def leave(self, *, lost: bool) -> None:
        """Let the traces know of a rollout that is not complete; lost: nobody knows where the environments are."""
        if self.outcome is not True:
            self._write_last()
            self.agent.leave_rollout()
            if self._lost or (lost and self.outcome is None):
                self.agent._last_obs = None  # `learn` will reset them

    def _write_last(self) -> None:
        self.agent.policy.write_features(self.agent._last_obs, self._arrays["last_observations"])  # type: ignore[arg-type]

    def finish(self) -> Outcome:
        """Return the outcome, once the callback knows that the rollout has ended."""
        assert self.outcome is not None
        if self.outcome is True:
            try:
                self.callback.on_rollout_end()
            except Exception as error:
                self.outcome = error
        return self.outcome
