"""Observe what a rule computes: count multiplications, and follow every number from its source to its products.

That tells a product with the Jacobian from one with synapses of the rule's own, and a firing rate from a voltage.
Elementwise operations and views pass a source on, a product ends its trail. All of this is at batch 1.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cet_rl.recurrent.rules.base import State, StepInputs

PRODUCTS = {"mm", "mv", "dot", "vdot", "bmm", "addmm", "addmv", "addbmm", "baddbmm"}
SQUASHING = {"tanh", "sigmoid", "relu", "clamp", "clamp_min", "clamp_max", "hardtanh", "threshold", "softplus"}
SQUASHING |= {"elu", "gelu", "silu", "erf", "leaky_relu", "hardsigmoid", "log_sigmoid_forward", "_softmax"}
"""Nonlinearities of a single unit: what makes a firing rate of a voltage."""

_COPIES = {"clone", "copy", "_to_copy", "fill", "zero", "alias", "lift_fresh"}
_FACTORISATIONS = ("linalg_", "_linalg_", "cholesky", "triangular_solve", "lu_", "inverse")


class Contraction(NamedTuple):
    """Hold the sizes of a product Σ_k X_bik Y_bkj: of b, an axis that all three have, and of i, k and j."""

    batch: int
    left: int
    inner: int
    right: int

    def kind(self, smaller: Contraction | None) -> str:
        """Return how its sums grow: "matrix-matrix", "matrix-vector", "sum" or "elementwise".

        In this order: multiplications grow with the cube of the network; a sum over units is taken for each unit;
        there is one sum, or one for each row of two matrices; no sum grows, as in pre times post. `smaller` is the
        same product in a smaller network: axes that do not differ are no axes of units.
        """
        batch, left, inner, right = (
            size > (1 if smaller is None else before) for size, before in zip(self, smaller or self, strict=True)
        )
        if not inner:
            return "elementwise"
        if batch + left + right > 1:
            return "matrix-matrix"
        return "matrix-vector" if left or right else "sum"


class Operation(NamedTuple):
    """Hold an operation of torch that has run: function, arguments, the tensors among them, and those returned."""

    func: Any
    args: tuple[Any, ...]
    given: list[Tensor]
    made: list[Tensor]

    @property
    def name(self) -> str:
        """Return its name, without the mark of those that work in place."""
        return str(self.func.overloadpacket.__name__).rstrip("_")

    @property
    def reduces(self) -> bool:
        """Tell whether it is a reduction: a sum, a mean, a product or the like."""
        return torch.Tag.reduction in self.func.tags or self.name in ("sum", "mean", "prod")

    @property
    def contraction(self) -> Contraction | None:
        """Return the sizes of its product, None for an operation that is none."""
        if self.name in PRODUCTS:
            first, second = (tuple(tensor.shape) for tensor in self.given[-2:])
            left = first[-2] if len(first) > 1 else 1
            right = second[-1] if len(second) > 1 else 1
            return Contraction(first[0] if len(first) == 3 else 1, left, first[-1], right)
        factorises = self.name.startswith(_FACTORISATIONS) and "norm" not in self.name
        if factorises and self.given and self.given[0].ndim > 1:
            *batches, rows, columns = self.given[0].shape
            return Contraction(prod(batches), rows, columns, rows)
        return None

    @property
    def cost(self) -> int:
        """Return its multiplications; moving and making numbers costs nothing."""
        contraction = self.contraction
        if contraction is not None:
            return prod(contraction)
        pointwise = torch.Tag.pointwise in self.func.tags and self.name not in _COPIES
        counted = self.given if self.reduces else self.made if pointwise else []
        return sum(tensor.numel() for tensor in counted)


def _tensors(values: Any) -> list[Tensor]:
    # Operations take tensors and lists of them, no deeper.
    lists = (value if isinstance(value, (tuple, list)) else (value,) for value in values)
    return [each for value in lists for each in value if isinstance(each, Tensor)]


class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count multiplications in `cost`: those of products, and one for each element made elementwise or reduced."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.cost = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and count it."""
        given = _tensors((*args, *(kwargs or {}).values()))
        result = func(*args, **(kwargs or {}))
        operation = Operation(func, args, given, _tensors((result,)))
        self.cost += operation.cost
        self.note(operation)
        return result

    def note(self, operation: Operation) -> None:
        """Do nothing; a subclass may inspect the operation here."""


@dataclass(frozen=True)
class Origin:
    """Record where the numbers of a tensor come from, within a step."""

    roots: frozenset[str] = frozenset()  # names of the tensors that they are elementwise functions of
    through: frozenset[str] = frozenset()  # matrices that they are products with, no nonlinearity since: a voltage


NOWHERE = Origin()


def _address(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except RuntimeError:  # a wrapper of torch.func's, which has no memory of its own
        return id(tensor)


def _extends(tensor: Tensor, axis: int) -> bool:
    """Tell whether a tensor has an axis, counted from the last one, with more than one number in memory."""
    return -axis <= tensor.ndim and tensor.shape[axis] > 1 and tensor.stride(axis) != 0


class Observer(Meter):  # type: ignore[no-untyped-call]
    """Follow numbers through the steps of a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.smaller: list[Contraction] = []  # products of a smaller network's run: tell axes of units from others
        self.products: list[Contraction] = []  # all, in their order
        self.counts: Counter[str] = Counter()  # matrix-vector, matrix-matrix, Jacobian and perturbed copy
        self.chains: set[tuple[str, str]] = set()  # matrices of a product that gave a voltage, of one that took it
        self.totals: set[str] = set()  # matrices all entries of which went into one number
        self.noisy = self.seeded = False  # whether random numbers were used, and whether any of them were drawn
        self._origins: dict[int, Origin] = {}
        self._matrices: dict[str, str] = {}
        self._alive: list[Any] = []
        self._multiplied: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        self._inputs = torch.empty(0)
        self._units = 0

    def begin(self, now: StepInputs, state: State) -> None:
        """Start a step, with its inputs and the rule's state as sources.

        What the state holds that was made of W in an earlier step is remembered as such.
        """
        made_of_weight = {
            name: origin.roots & {"weight", "slope"}
            for name, tensor in state.items()
            if "weight" in (origin := self._origin(tensor)).roots
        }
        for kept in (self._origins, self._multiplied, self._alive):
            kept.clear()
        self._inputs, self._units = now.inputs, now.rates.shape[1]
        self._matrices = {"weight": "W"}
        for name, tensor in now._asdict().items():
            if isinstance(tensor, Tensor):
                self._put(tensor, Origin(frozenset({name})))
        for name, tensor in state.items():
            if sum(size > 1 for size in tensor.shape) > 1:
                self._matrices[f"state {name}"] = name
            self._put(tensor, Origin(made_of_weight.get(name, frozenset()) | {f"state {name}"}))

    def _put(self, tensor: Tensor, origin: Origin) -> None:
        # Views share a storage and so an origin. It is kept alive, or its address might be given to another.
        self._alive.append(tensor)
        if tensor.numel():
            self._origins[_address(tensor)] = origin

    def _origin(self, tensor: Tensor) -> Origin:
        return self._origins.get(_address(tensor), NOWHERE)

    def note(self, operation: Operation) -> None:
        """Find out where an operation's result comes from, and what the operation means."""
        func, name, given, made = operation.func, operation.name, operation.given, operation.made
        origins = [self._origin(tensor) for tensor in given]
        seeded = torch.Tag.nondeterministic_seeded in func.tags
        self.seeded |= seeded
        self.noisy |= seeded or any("noise" in origin.roots for origin in origins)
        if func.is_view:
            return
        mutable = func._schema.is_mutable
        if mutable and given:
            self._multiplied.pop(id(given[0]), None)
        contraction, factors = operation.contraction, given[-2:]
        if contraction is None and name in ("sum", "mean"):
            contraction, factors = self._written_out(operation)
        operands = [self._origin(tensor) for tensor in factors]
        smaller, origin = None, None
        if contraction is not None:
            if len(self.products) < len(self.smaller):
                smaller = self.smaller[len(self.products)]
            self.products.append(contraction)
            kind = contraction.kind(smaller)
            if kind.startswith("matrix"):
                self.counts[kind] += 1
                grows = contraction.left > (1 if smaller is None else smaller.left)
                origin = self._product(kind, grows, factors, operands)
        if origin is None:
            origin = self._elementwise(name, given, origins)
        if (contraction is not None or operation.reduces) and [tensor.numel() for tensor in made] == [1]:
            for tensor, source in zip(factors, operands, strict=True):
                if tensor.numel() >= self._units**2:
                    known = sorted(self._named(source))
                    self.totals.add(known[0] if len(known) == 1 else "a matrix")
        for tensor in made:
            if tensor.numel() > 1:
                self._put(tensor, origin)
            elif not mutable:  # a single number is no vector that could be a voltage
                self._put(tensor, NOWHERE)
        if name == "mul" and len(given) == 2 and made:
            self._multiplied[id(made[0])] = (made[0], given[0], given[1])

    def _named(self, *origins: Origin) -> set[str]:
        """Return the names of the matrices among the roots of numbers."""
        return {self._matrices[root] for origin in origins for root in origin.roots if root in self._matrices}

    def _elementwise(self, name: str, given: list[Tensor], origins: list[Origin]) -> Origin:
        if name.endswith("_like") or name.startswith("new_"):
            return NOWHERE
        roots = frozenset[str]().union(*(origin.roots for origin in origins))
        through = frozenset[str]().union(*(origin.through for origin in origins))
        if name in SQUASHING:
            self.counts["perturbed copy"] += "weight" in through
            return Origin(roots)
        # D as such: an eligibility D_i r̂_j has it too, but what multiplies that is no product with the Jacobian.
        sloped = any("slope" in o.roots and t.numel() <= self._units for t, o in zip(given, origins, strict=True))
        if name.removesuffix("_backward") in SQUASHING:  # autograd's product with φ'
            roots, sloped = roots | {"slope"}, True
        multiplies = name in ("mul", "div", "addcmul", "bmm", "mm") or name.endswith("_backward")
        if multiplies and sloped and "weight" in through:
            self.counts["Jacobian"] += 1
            through = frozenset("J" if each == "weight" else each for each in through)
        return Origin(roots, through)

    def _product(self, kind: str, left_grows: bool, factors: list[Tensor], operands: list[Origin]) -> Origin:
        """Look at a product of matrices, or of a matrix and a vector, and tell where its result comes from."""
        if len(factors) != 2:  # a factorisation
            return NOWHERE
        matrix, vector = (0, 1) if left_grows or kind == "matrix-matrix" else (1, 0)
        roots, through = operands[0].roots | operands[1].roots, operands[0].through | operands[1].through
        known = self._named(*operands) if kind == "matrix-matrix" else self._named(operands[matrix])
        if "slope" in roots and "weight" in roots | through:
            self.counts["Jacobian"] += 1
            known = known - {"W"} | {"J"}
        names = frozenset(known or {"a matrix"})
        if kind == "matrix-vector" and operands[vector].through:
            first, second = (" and ".join(sorted(each)) for each in (operands[vector].through, names))
            self.chains.add((first.replace("weight", "W"), second))
        is_forward_pass = torch.isin(factors[vector], self._inputs).all()  # W r̂ is a voltage that there is anyway
        voltage = "W" if is_forward_pass else "weight"
        return Origin(through=frozenset(voltage if name == "W" else name for name in names))

    def _written_out(self, operation: Operation) -> tuple[Contraction | None, list[Tensor]]:
        """Return the product that a sum over an elementwise product is, if it is one, and its factors."""
        args, given = operation.args, operation.given
        whole, first, second = self._multiplied.get(id(given[0]), (None, None, None))
        if whole is None or first is None or second is None or whole.ndim == 0:
            return None, given
        dims = args[1] if len(args) > 1 and isinstance(args[1], (list, tuple)) else range(whole.ndim)
        summed = {dim % whole.ndim for dim in dims} or set(range(whole.ndim))
        sizes = dict.fromkeys(("batch", "left", "inner", "right", "lost"), 1)
        for axis in range(whole.ndim):
            a, b = (_extends(tensor, axis - whole.ndim) for tensor in (first, second))
            both, role = a and b, "left" if a else "right"
            place = ("inner" if both else "lost") if axis in summed else ("batch" if both else role)
            sizes[place] *= whole.shape[axis]
        del sizes["lost"]
        return Contraction(**sizes), [first, second]
