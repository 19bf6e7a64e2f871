"""Train Tianshou's A2C on rewards that arrive late.

    pip install "cet-rl[tianshou]"
    python examples/tianshou_delayed_reward.py --delay 4

`DelayedReward` is an ordinary Gymnasium wrapper, so any Tianshou agent can take A2C's place. Networks, collection,
updates and the training loop are Tianshou's own. (`cet_rl.agents.tianshou` has the agent whose synapses bridge the
delay; it does not need the wrapper.)
"""

from __future__ import annotations

import argparse

import gymnasium as gym
import torch
from tianshou.algorithm import A2C
from tianshou.algorithm.modelfree.reinforce import DiscreteActorPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Collector, CollectStats, VectorReplayBuffer
from tianshou.env import DummyVectorEnv
from tianshou.trainer import OnPolicyTrainerParams
from tianshou.utils.net.common import MLP, Net
from tianshou.utils.net.discrete import DiscreteActor

from cet_rl.envs import DelayedReward

HIDDEN = (64, 64)


def build_env(task: str, delay: float) -> gym.Env:
    """Make an environment with discrete actions whose rewards arrive `delay` seconds late."""
    return DelayedReward(gym.make(task), delay)


def build_a2c(env: gym.Env) -> A2C:
    """Make an A2C with separate networks for actor and critic."""
    trunk = Net(state_shape=env.observation_space.shape, hidden_sizes=HIDDEN)
    actor = DiscreteActor(preprocess_net=trunk, action_shape=env.action_space.n, softmax_output=False)
    return A2C(
        policy=DiscreteActorPolicy(
            actor=actor,
            action_space=env.action_space,
            observation_space=env.observation_space,
            deterministic_eval=True,
        ),
        critic=MLP(input_dim=env.observation_space.shape[0], output_dim=1, hidden_sizes=HIDDEN),
        optim=AdamOptimizerFactory(lr=1e-3, eps=1e-5),
        vf_coef=0.25,
        max_grad_norm=0.5,
    )


def main(arguments: list[str] | None = None) -> float:
    """Train the agent, play the policy that it has learned, and return the mean return of twenty episodes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="CartPole-v1", help="Gymnasium id of a task with discrete actions")
    parser.add_argument("--delay", type=float, default=4.0, help="seconds from a reward to its delivery")
    parser.add_argument("--steps", type=int, default=200_000, help="environment steps to learn from")
    parser.add_argument("--num-envs", type=int, default=4, help="environments that run side by side")
    parser.add_argument("--seed", type=int, default=0, help="seed of networks, actions and environments")
    options = parser.parse_args(arguments)

    torch.manual_seed(options.seed)
    algorithm = build_a2c(build_env(options.task, options.delay))
    envs = DummyVectorEnv([lambda: build_env(options.task, options.delay)] * options.num_envs)
    envs.seed(options.seed)
    collection = 16 * options.num_envs  # an update every 16 steps of each environment
    collector = Collector[CollectStats](algorithm, envs, VectorReplayBuffer(collection, options.num_envs))
    algorithm.run_training(
        OnPolicyTrainerParams(
            training_collector=collector,
            max_epochs=1,
            epoch_num_steps=options.steps,
            collection_step_num_env_steps=collection,
            batch_size=None,
        )
    )

    # An episode's return does not depend on the delay: what is pending at its end arrives with its last reward.
    played = Collector[CollectStats](algorithm, envs).collect(n_episode=20, reset_before_collect=True)
    print(f"{options.task}, rewards {options.delay:g} s late: return {played.returns.mean():.1f} over 20 episodes")
    return float(played.returns.mean())


if __name__ == "__main__":
    main()
