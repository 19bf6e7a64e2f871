"""Train our agent with Stable-Baselines3's callbacks and normalised observations, as one would train A2C.

    python examples/sb3_callbacks.py --delay 4 --folder runs/sb3

`VecNormalize` scales what the agent sees, `EvalCallback` plays it every so often and keeps the best one, and
`CheckpointCallback` keeps the way there. The agent's own files hold tensors and JSON; the statistics of
`VecNormalize` are Stable-Baselines3's file, a pickle.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecNormalize

from cet_rl.agents import CETActorCritic
from cet_rl.envs import make_vec_env
from cet_rl.runs.process import set_threads


def main(arguments: list[str] | None = None) -> float:
    """Train the agent, load the best one, and return its mean return over twenty episodes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="CartPole-v1", help="Gymnasium id")
    parser.add_argument("--delay", type=float, default=4.0, help="seconds until credit reaches the synapses")
    parser.add_argument("--steps", type=int, default=500_000, help="environment steps to learn from")
    parser.add_argument("--seed", type=int, default=0, help="seed of networks, actions and environments")
    parser.add_argument("--folder", type=Path, default=Path("runs/sb3-callbacks"), help="where everything is kept")
    options = parser.parse_args(arguments)
    set_threads(1)

    train = VecNormalize(make_vec_env(options.task, 4, seed=options.seed), norm_reward=False)
    held_out = VecNormalize(
        make_vec_env(options.task, 4, seed=options.seed + 1), training=False, norm_reward=False
    )
    model = CETActorCritic("MlpPolicy", train, delay=options.delay, order=10, seed=options.seed, device="cpu")
    model.set_logger(configure(str(options.folder), ["csv", "tensorboard"]))
    every = max(options.steps // 10 // train.num_envs, 1)  # callbacks count steps of all environments together
    callbacks = [
        EvalCallback(
            held_out,  # whose statistics the callback copies from `train`
            eval_freq=every,
            n_eval_episodes=20,
            best_model_save_path=str(options.folder),
            log_path=str(options.folder),
        ),
        CheckpointCallback(every, str(options.folder / "checkpoints"), save_vecnormalize=True),
    ]
    model.learn(options.steps, callback=callbacks, log_interval=20)
    train.save(str(options.folder / "vecnormalize.pkl"))

    best = CETActorCritic.load(options.folder / "best_model", device="cpu")
    mean, spread = evaluate_policy(best, held_out, n_eval_episodes=20)
    print(f"{options.task}, credit {options.delay:g} s late: return {mean:.1f} ± {spread:.1f} over 20 episodes")
    return float(mean)


if __name__ == "__main__":
    main()
