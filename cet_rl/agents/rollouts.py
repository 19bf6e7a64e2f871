"""Collect rollouts, the steps between two updates, of one agent alone or of many agents side by side.

Agents side by side differ only in their weights: spaces, shapes of actors, numbers of environments and numbers of
steps are equal. The observations of all of them lie in one array, agent after agent, so that all act and step at
once. Each has its own environments, random numbers and callback, and records the same rollout as it would alone.
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
"""True if an agent's rollout is complete, False if its callback asked to stop, or the exception that ended it."""


# No warnings of numbers that are not finite: `Rollout.check_finite` raises, and names the environment.
@np.errstate(invalid="ignore", over="ignore")
def collect(
    agents: Sequence[CETActorCritic], envs: Sequence[VecEnv], callbacks: Sequence[BaseCallback], steps: int
) -> list[Outcome]:
    """Let each agent act for `steps` steps in each of its environments, and return the outcome of each agent.

    Each agent keeps its rollout for `train`. If an agent fails, or its callback asks to stop, the others continue.
    With one agent only, an exception of its environment is raised and not returned.
    """
    policy, head, count = agents[0].policy, agents[0].policy.actor.head, len(agents)
    rollout = Rollout.empty(steps, count * agents[0].n_envs, policy.num_features, head)
    arrays, members = rollout.arrays(), zip(agents, envs, callbacks, strict=True)
    recorders = [_Recorder(*member, rollout, index) for index, member in enumerate(members)]
    joint = JointVecEnv(envs) if count > 1 else None
    forward = joint_forward([agent.policy.actor for agent in agents])
    # Drawn after `on_rollout_start`, which may save a checkpoint: a run that resumes from it draws them again.
    noise = _concatenated([a.policy.actor.head.noise((steps, a.n_envs), a.generator) for a in agents], 1)
    active, stepping = [recorder.outcome is None for recorder in recorders], False
    try:
        for step in range(steps):
            if not any(active):
                break
            features = arrays["observations"][step]
            policy.write_features(_concatenated([agent._last_obs for agent in agents]), features)
            arrays["starts"][step] = _concatenated([agent._last_episode_starts for agent in agents])
            actions = arrays["actions"][step] = head.sample(forward(features), noise[step])
            clipped = policy.to_environment(actions)
            stepping = True
            results = [envs[0].step(clipped)] if joint is None else joint.step(clipped, active)
            stepping = False
            taken = zip(_split(actions, count), _split(clipped, count), results, strict=True)
            for index, (recorder, step_taken) in enumerate(zip(recorders, taken, strict=True)):
                if active[index]:
                    active[index] = recorder.record(step, *step_taken)
        for recorder in recorders:
            recorder.complete()
    finally:
        if joint is not None:
            joint.write_back()
        for recorder in recorders:
            recorder.flush(interrupted=stepping)
    return [recorder.finish() for recorder in recorders]


def _concatenated(arrays: list[Any], axis: int = 0) -> Array:
    whole: Array = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis)
    return whole


def _split(rows: Array, count: int) -> Sequence[Array]:
    return [rows] if count == 1 else rows.reshape(count, -1, *rows.shape[1:])  # type: ignore[return-value]


class _Recorder:
    """Record the rollout of one agent in its part of a shared rollout, which is the `index`-th.

    `outcome` is None while the agent acts.
    """

    def __init__(
        self, agent: CETActorCritic, env: VecEnv, callback: BaseCallback, shared: Rollout, index: int
    ) -> None:
        agent.flush_rollout()  # the last one, if an interruption came before its update
        self.agent, self.callback, self.steps = agent, callback, len(shared.rewards)
        agent.policy.set_training_mode(False)
        agent._recorded, agent._steps_before = 0, agent.learner.steps
        agent._rollout = shared.of_envs(slice(index * agent.n_envs, (index + 1) * agent.n_envs))
        self._arrays, self._env_failed = agent._rollout.arrays(), False
        self._locals: dict[str, Any] = {"self": agent, "env": env, "callback": callback}
        self._locals |= {"rollout_buffer": agent.rollout_buffer, "n_rollout_steps": self.steps}
        self.outcome: Outcome | None = None
        try:
            callback.on_rollout_start()
        except Exception as error:
            self.outcome = error

    def record(self, step: int, actions: Array, clipped: Array, result: VecEnvStepReturn | Exception) -> bool:
        """Record the result of one step, call the callback, and return whether the agent continues."""
        agent = self.agent
        if isinstance(result, Exception):
            self.outcome, self._env_failed = result, True
            return False
        new_obs, rewards, dones, infos = result
        agent.num_timesteps += len(dones)
        self._arrays["rewards"][step] = rewards
        if np.count_nonzero(dones):  # takes a quarter of the time of `any`
            self._record_ends(step, dones, infos)
        agent._recorded = step + 1
        try:
            self._locals |= {"n_steps": step, "actions": actions, "clipped_actions": clipped, "new_obs": new_obs}
            self._locals |= {"rewards": rewards, "dones": dones, "infos": infos}
            self.callback.update_locals(self._locals)  # the names that callbacks know from A2C
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
            last = infos[env].get("terminal_observation")  # without it there is no value to go on with, as in A2C
            if last is None or not infos[env].get("TimeLimit.truncated", False):
                self._arrays["terminated"][step, env] = 1
                continue
            self._arrays["truncated"][step, env] = 1
            final = torch.zeros(1, policy.num_features)
            policy.write_features(np.asarray(last)[None], final.numpy())
            rollout.final_observations = torch.cat([rollout.final_observations, final])

    def complete(self) -> None:
        """Complete and check the rollout, if the agent has taken all steps."""
        if self.outcome is None:
            self._write_last()
            try:
                self.agent._rollout.check_finite(self.agent.num_timesteps // self.agent.n_envs - self.steps)
                self.outcome = True
            except FloatingPointError as error:
                self.outcome = error

    def flush(self, *, interrupted: bool) -> None:
        """Advance the traces by the steps of a rollout that is not complete.

        `interrupted` means that a step of the environments has begun and not ended: their state is unknown.
        """
        if self.outcome is not True:
            self._write_last()
            self.agent.flush_rollout()
            if self._env_failed or (interrupted and self.outcome is None):
                self.agent._last_obs = None  # makes `learn` reset the environments

    def _write_last(self) -> None:
        self.agent.policy.write_features(self.agent._last_obs, self._arrays["last_observations"])  # type: ignore[arg-type]

    def finish(self) -> Outcome:
        """Tell the callback that the rollout has ended, if it is complete, and return the outcome."""
        assert self.outcome is not None
        if self.outcome is True:
            try:
                self.callback.on_rollout_end()
            except Exception as error:
                self.outcome = error
        return self.outcome
