"""The configuration of a reinforcement-learning run."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Annotated, Literal

from cet_rl.agents.config import ActorKind, CriticKind, Feedback, LearnerConfig, NetworkConfig
from cet_rl.runs.config import LayeredConfig, Mark

CONVOLUTIONS = 3  # of a convolutional actor: the length of `cet_rl.agents.networks.CHANNELS`, which imports torch


@dataclass(frozen=True)
class RLConfig(LayeredConfig):
    """Configure a reinforcement-learning run."""

    task: str
    """Gymnasium id, such as CartPole-v1; module:Id-v0 imports the module that registers it."""
    agent: Annotated[str, Mark.LABELLED] = "cet"
    """A name that `cet-rl list agents` shows, or module:Class."""
    delay: float = 0.0
    """Seconds until credit reaches the actor's synapses; for agents without synaptic traces, until the environment
    delivers rewards. 0: no delay."""
    lam: Annotated[float, Mark.BATCHABLE] = 0.95
    """Lambda of the RL eligibility trace and of the critic's returns."""
    random_lam: Annotated[tuple[float, float] | None, Mark.TRACED, Mark.BATCHABLE] = None
    """LOW HIGH: one lambda per weight of the actor, drawn uniformly once."""
    feedback: Annotated[Feedback, Mark.TRACED, Mark.BATCHABLE] = "backprop"
    """Route of credit to hidden layers: backpropagation, feedback alignment, direct feedback alignment."""
    gamma: Annotated[float, Mark.BATCHABLE] = 0.99
    """Discount."""
    anneal_lr: Annotated[bool, Mark.BATCHABLE] = True
    """Let the learning rate fall linearly to zero over the run."""
    entropy_coef: Annotated[float, Mark.BATCHABLE] = 0.01
    """Weight of the policy's entropy."""
    value_coef: Annotated[float, Mark.BATCHABLE] = 0.25
    """Weight of the critic's loss."""
    max_grad_norm: Annotated[float, Mark.BATCHABLE] = 0.5
    """Joint norm that the gradients are clipped to."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the dense hidden layers of the actor, and of a dense critic."""
    actor: Annotated[ActorKind, Mark.TRACED] = "mlp"
    """Dense (maps are flattened) or with three convolutions first, for maps (MinAtar)."""
    critic: Annotated[CriticKind, Mark.TRACED] = "auto"
    """Dense or convolutional; auto is convolutional for maps (MinAtar)."""
    split_observations: Annotated[bool, Mark.TRACED] = True
    """Give observations that can be negative to the networks as positive and negative parts (paper, App. C)."""
    activation: Literal["relu", "identity", "tanh", "sigmoid"] = "relu"
    """Activation of the actor's hidden layers. tanh and sigmoid need --error-at activation."""
    total_steps: Annotated[int, Mark.BATCHABLE] = 1_000_000
    """Environment samples to learn from, all environments counted."""
    num_envs: int = 4
    """Environments side by side."""
    vectorization: Annotated[Literal["auto", "each", "numpy"], Mark.CHOSEN] = "auto"
    """Step one environment after the other, or all in one call (numpy: CartPole). auto: each; numpy for sixteen or
    more CartPoles of the agent cet."""
    n_steps: int = 128
    """Steps of each environment between updates; 1 updates after every step."""
    eval_episodes: Annotated[int, Mark.NEUTRAL, Mark.BATCHABLE] = 100
    """Deterministic episodes at the end of the run."""
    eval_max_steps: Annotated[int, Mark.NEUTRAL, Mark.BATCHABLE] = 10_000
    """Step cap of an evaluation episode in a task that has none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_counts("num_envs", "n_steps", "eval_episodes", "eval_max_steps")
        _ = self.learner
        if not self.hidden or min(self.hidden) < 1 or max(self.hidden) > 100_000:
            raise ValueError(f"--hidden must list widths from 1 to 100,000, got {self.hidden}")
        self.timing.check_run(self.total_steps, self.num_envs)

    def check_batchable(self) -> None:
        """Raise ValueError if the run cannot learn in one batch with others."""
        if self.agent != "cet":
            raise ValueError(f"--launcher batch is for the agent cet, not for {self.agent}: leave it out")

    @property
    def learner(self) -> LearnerConfig:
        """Return the options of learning for agents with synaptic traces."""
        values = {item.name: getattr(self, item.name) for item in fields(LearnerConfig) if item.name != "trace"}
        return LearnerConfig(trace=self.trace_config, **values)

    @property
    def networks(self) -> NetworkConfig:
        """Return the options of the networks for agents with synaptic traces."""
        splits = None if self.split_observations else False
        return NetworkConfig(self.hidden, self.activation, splits, self.actor, self.critic, self.feedback)

    @property
    def layers(self) -> int:
        """Return the number of layers of the actor."""
        return len(self.hidden) + 1 + (CONVOLUTIONS if self.actor == "conv" else 0)

    @property
    def arm(self) -> tuple[str, ...]:
        """Return the words of `label` for agent, trace and other choices: ("cet5", "dfa") or ("sb3-a2c",)."""
        ours = self.agent == "cet"
        parts = [] if ours else [re.sub(r"\W+", "-", self.agent)]
        if ours or self.trace is not None:
            parts.append(self.trace_config.label)
        parts += [self.feedback] * (self.feedback != "backprop")
        parts += ["random-lam"] * (self.random_lam is not None) + ["conv"] * (self.actor == "conv")
        parts += ["unsplit"] * (not self.split_observations)
        return tuple(parts)
