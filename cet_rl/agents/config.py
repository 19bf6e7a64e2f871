"""The agent's options, in the dataclasses that own them. Needs neither torch nor Stable-Baselines3."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from cet_rl.runs.config import types_of
from cet_rl.runs.values import checked, unknown
from cet_rl.traces.base import Trace
from cet_rl.traces.registry import TraceConfig, traces_with
from cet_rl.traces.timing import CreditTiming

Feedback = Literal["backprop", "fa", "dfa"]
"""The route of credit to a hidden layer: "backprop" uses the transposed forward weights (weight transport), "fa"
fixed random matrices from layer to layer (feedback alignment, Lillicrap et al. 2016), "dfa" fixed random matrices
from the output to each layer (direct feedback alignment, Nøkland 2016)."""
ErrorAt = Literal["preactivation", "activation"]
ActorKind = Literal["mlp", "conv"]
CriticKind = Literal["auto", "mlp", "conv"]


@dataclass(frozen=True)
class NetworkConfig:
    """Configure the networks of actor and critic.

    A convolutional actor or critic has three convolutions before its dense layers, and takes maps only.
    """

    net_arch: tuple[int, ...] = (256, 256)  # widths of the dense hidden layers of the actor, and of a dense critic
    activation: str = "relu"  # of the actor's hidden layers, a key of `cet_rl.credit.activations.ACTIVATIONS`
    split_observations: bool | None = None  # by sign (paper, App. C); None: only if they can be negative
    actor: ActorKind = "mlp"  # "mlp" (maps are flattened), or "conv"
    critic: CriticKind = "auto"  # "mlp", "conv", or "auto": "conv" for maps
    feedback: Feedback = "backprop"  # route of credit to the actor's hidden layers, see `Feedback`
    log_std: float = 0.0  # initial log σ of the Gaussian policy for continuous actions

    def __post_init__(self) -> None:
        for name, kind in types_of(NetworkConfig).items():
            object.__setattr__(self, name, checked(getattr(self, name), kind, name))
        if min(self.net_arch, default=1) < 1:
            raise ValueError(f"net_arch must list widths of at least 1, got {self.net_arch}")
        if not math.isfinite(self.log_std):
            raise ValueError(f"log_std must be finite, got {self.log_std}")


@dataclass(frozen=True)
class LearnerConfig:
    """Configure learning. The defaults are those of the paper (Table 5).

    δ of a hidden layer is a derivative with respect to `error_at`: its "activation", as Eq. 1 is printed, or its
    "preactivation", which includes the factor f' and needs an activation whose f' is 0 or 1.
    """

    trace: TraceConfig = field(default_factory=TraceConfig)  # the synaptic trace that bridges the delay
    gamma: float = 0.99  # γ, the discount, in [0, 1]
    lam: float = 0.95  # λ of the RL eligibility trace and of the critic's returns, in [0, 1]; γλ < 1
    random_lam: tuple[float, float] | None = None  # bounds of one λ per weight of the actor, drawn uniformly once
    entropy_coef: float = 0.01  # weight of the policy's entropy
    value_coef: float = 0.25  # weight of the critic's loss
    max_grad_norm: float = 0.5  # largest global norm of actor's and critic's gradients together
    error_at: ErrorAt = "preactivation"  # see above
    alignment: bool = True  # measure each layer's alignment: the cosine between its update and the true gradient
    executors: tuple[str, ...] | None = None  # `Synapses.choice` of each layer, then of log σ; None to choose

    def __post_init__(self) -> None:
        if not isinstance(self.trace, TraceConfig):
            raise ValueError(f"trace must be a TraceConfig such as TraceConfig('cet', 5), got {self.trace!r}")
        for name, kind in types_of(LearnerConfig).items():
            if name != "trace":
                object.__setattr__(self, name, checked(getattr(self, name), kind, name))
        for name in ("gamma", "lam", "entropy_coef", "value_coef", "max_grad_norm"):
            value = getattr(self, name)
            if name in ("gamma", "lam") and not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {value:g}")
            if not 0 <= value < math.inf or (name == "max_grad_norm" and not value):
                sign = "positive" if name == "max_grad_norm" else "not negative"
                raise ValueError(f"{name} must be finite and {sign}, got {value:g}")
        if self.random_lam is not None and not 0 <= self.random_lam[0] <= self.random_lam[1] <= 1:
            raise ValueError(f"random_lam must be two numbers, 0 <= low <= high <= 1, got {self.random_lam!r}")
        if self.gamma * max(self.lam, self.largest_lam) >= 1:
            raise ValueError("gamma times lam must be below 1: eligibility would never decay")

    @property
    def largest_lam(self) -> float:
        """Return the largest λ that a weight of the actor can have."""
        return self.lam if self.random_lam is None else self.random_lam[1]


SB3_NAMES = {"ent_coef": "entropy_coef", "vf_coef": "value_coef", "gae_lambda": "lam"}
"""Names of Stable-Baselines3 and Tianshou for fields of `LearnerConfig`."""
_OUR_NAMES = {**SB3_NAMES, "log_std_init": "log_std", "hidden_sizes": "net_arch", "activation_fn": "activation"}
ABSENT = {
    name: reason
    for reason, names in {
        "an update takes the whole rollout, once": "batch_size n_epochs clip_range clip_range_vf target_kl "
        "max_batchsize rollout_buffer rollout_buffer_class rollout_buffer_kwargs",
        "TD errors count as they are": "normalize_advantage return_scaling",
        "the optimiser is Adam with ε = 1e-5": "use_rms_prop rms_prop_eps optimizer_class optimizer_kwargs",
        "real actions follow a diagonal Gaussian": "use_sde sde_sample_freq full_std use_expln squash_output",
        "net_arch, activation, actor and critic define the networks": "features_extractor_class "
        "features_extractor_kwargs share_features_extractor",
    }.items()
    for name in names.split()
}
"""Options of Stable-Baselines3 and Tianshou that our agent lacks, each with the reason."""

_TRACE_DEFAULTS: dict[str, Any] = dict.fromkeys(("order", "decay", "trace_options", "trace_delay"))
_TRACE_DEFAULTS |= {"normalization": "peak", "discretization": "exact"}
LEARNING_OPTIONS = {*_TRACE_DEFAULTS, *SB3_NAMES, *(item.name for item in fields(LearnerConfig))} - {"trace"}
"""The keywords of `learner_config`."""


def refuse_absent(name: str, value: object) -> None:
    """Raise ValueError if an option in `ABSENT` has a value that would have an effect."""
    if value not in (None, False, -1, {}):
        raise ValueError(f"{name} must be left out: {ABSENT[name]}")


def our_keywords(
    given: Mapping[str, Any], known: Collection[str] = (), otherwise: str | None = None
) -> dict[str, Any]:
    """Return the keywords under our names, without those in `ABSENT`.

    Raises TypeError for one that is given twice or, if any are given, is not among the `known`: the message names
    the nearest that is, or says `otherwise`. Raises ValueError for one in `ABSENT` that would have an effect.
    """
    keywords: dict[str, Any] = {}
    for name, value in given.items():
        ours = _OUR_NAMES.get(name, name)
        if name in ABSENT:
            refuse_absent(name, value)
        elif known and ours not in known:
            if traces_with(name):
                raise TypeError(f"{name} is an option of traces: use trace_options={{{name!r}: {value!r}}}")
            raise TypeError(str(unknown("argument", name, known, otherwise)))
        elif ours in keywords:
            raise TypeError(f"{ours} is given twice, once under another name")
        else:
            keywords[ours] = value
    return keywords


def learner_config(
    timing: CreditTiming, trace: str | Trace | TraceConfig | None = None, **keywords: Any
) -> LearnerConfig:
    """Return the options of learning, from the keywords that agents take.

    Args:
        timing: When credit arrives.
        trace: Name of the trace that bridges the delay, a trace, or its configuration; None for the default.
        **keywords: Fields of `LearnerConfig`, also under Stable-Baselines3's names `ent_coef`, `vf_coef` and
            `gae_lambda`. With a trace given by name also its options: `order`, the number of states (cet, sharp,
            legendre, optimal; 5 by default, 1 of cet is ET); `normalization` of its kernel, "peak" or
            "area"; `decay`, β of the classical trace per step, by default exp(-1/D); `discretization` of a
            cascade, "exact", "official" or "official-images"; `trace_delay`, the delay in seconds that the trace
            is made for, if not the true one; `trace_options`, others by name, as {"ratio": 3} for "ltp-ltd".

    Raises:
        ValueError, TypeError: for values out of range, and options of a trace beside one that is an object; for an
            unknown keyword.
    """
    given = {name: keywords.pop(name, default) for name, default in _TRACE_DEFAULTS.items()}
    changed = [name for name, value in given.items() if value not in (None, (), {}, _TRACE_DEFAULTS[name])]
    if changed and isinstance(trace, Trace | TraceConfig):
        raise ValueError(f"trace is a {type(trace).__name__}: set {', '.join(changed)} there")
    given["options"] = given.pop("trace_options")
    when: dict[str, Any] = {"stacked": timing.stacked, "step_duration": timing.step_duration}
    chosen = TraceConfig.for_delay(timing.delay, trace, **when, **given)
    return LearnerConfig(chosen, **our_keywords(keywords))


def network_keywords(policy_kwargs: Mapping[str, Any] | None, known: Collection[str] = ()) -> dict[str, Any]:
    """Return fields of `NetworkConfig` from Stable-Baselines3's `policy_kwargs`; raise as `our_keywords` does.

    `activation_fn` may be a class of torch, and `net_arch` a dict(pi=, vf=) of equal lists, as there.
    """
    keywords = dict(policy_kwargs or {})
    if "activation_fn" in keywords:
        function = keywords["activation_fn"]
        keywords["activation_fn"] = getattr(function, "__name__", str(function)).lower()
    if isinstance(widths := keywords.get("net_arch"), Mapping):
        if widths.keys() != {"pi", "vf"} or list(widths["pi"]) != list(widths["vf"]):
            raise ValueError(f"net_arch is one list here, for actor and critic alike, got {dict(widths)}")
        keywords["net_arch"] = list(widths["pi"])
    return our_keywords(keywords, known)
