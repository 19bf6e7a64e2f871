"""Observe what a rule computes: follow every number from its source to the products that it enters.

That tells a product with the Jacobian from one with synapses of the rule's own, and a firing rate from a voltage.
Elementwise operations and views pass a source on, a product ends its trail. All of this is at batch 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cet_rl.recurrent.audit.meter import Contraction, Meter, is_reduction

SQUASHING = {
    *("tanh", "sigmoid", "relu", "clamp", "clamp_min", "clamp_max", "hardtanh", "threshold", "softplus", "elu"),
    *("gelu", "silu", "erf", "leaky_relu", "hardsigmoid", "log_sigmoid_forward", "_softmax"),
}
"""Nonlinearities of a single unit: what makes a firing rate of a voltage."""


@dataclass(frozen=True)
class Origin:
    """Record where the numbers of a tensor come from, within a step.

    Attributes:
        roots: names of the tensors that they are elementwise functions of.
        through: names of the matrices that they are products with and no nonlinearity since: of a voltage.
    """

    roots: frozenset[str] = frozenset()
    through: frozenset[str] = frozenset()


NOWHERE = Origin()


def _address(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except RuntimeError:  # a wrapper of torch.func's, which has no memory of its own
        return id(tensor)


def _length(tensor: Tensor, axis: int) -> int:
    """Return the size of an axis counted from the last one; 1 for one that has been expanded."""
    return 1 if -axis > tensor.ndim or tensor.stride(axis) == 0 else tensor.shape[axis]


class Chain(NamedTuple):
    """Record a product whose result goes into another one as it is.

    Attributes:
        first: matrices of the first product.
        second: matrix of the second.
    """

    first: str
    second: str


class Observer(Meter):  # type: ignore[no-untyped-call]
    """Follows numbers through the steps of a rule.

    Args:
        smaller: the `products` of the same run with a smaller network, which tell axes of units from others.

    Attributes:
        products: sizes of all products, in their order.
        counts: of "matrix-vector", "matrix-matrix", "Jacobian" and "perturbed copy".
        chains: products that take a voltage in.
        totals: names of matrices all entries of which went into one number.
        noisy: whether random numbers were used, handed in or drawn.
    """

    def __init__(self, smaller: Sequence[Contraction] = ()) -> None:
        super().__init__()
        self.smaller = smaller
        self.products: list[Contraction] = []
        self.counts: Counter[str] = Counter()
        self.chains: set[Chain] = set()
        self.totals: set[str] = set()
        self.noisy = self.seeded = False
        self._origins: dict[int, Origin] = {}
        self._matrices: dict[str, str] = {}
        self._alive: list[Any] = []
        self._multiplied: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        self._inputs = torch.empty(0)
        self._units = 0

    def begin(self, now: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        """Start a step: these are the sources.

        Args:
            now: tensors of the now by field.
            state: of the rule. Those that were made of W in an earlier step are remembered as such.
        """
        made_of_weight = {
            name: origin.roots & {"weight", "slope"}
            for name, tensor in state.items()
            if "weight" in (origin := self._origin(tensor)).roots
        }
        self._origins.clear()
        self._multiplied.clear()
        self._alive.clear()
        self._inputs, self._units = now["inputs"], now["rates"].shape[1]
        self._matrices = {"weight": "W"}
        for name, tensor in now.items():
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

    def note(
        self,
        func: Any,
        name: str,
        args: tuple[Any, ...],
        given: list[Tensor],
        made: list[Tensor],
        contraction: Contraction | None,
    ) -> None:
        """Find out where an operation's result comes from, and what the operation means."""
        origins = [self._origin(tensor) for tensor in given]
        seeded = torch.Tag.nondeterministic_seeded in func.tags
        self.seeded |= seeded
        self.noisy |= seeded or any("noise" in origin.roots for origin in origins)
        if func.is_view:
            return
        if func._schema.is_mutable and given:
            self._multiplied.pop(id(given[0]), None)
        factors, operands = given[-2:], origins[-2:]
        if contraction is None and name in ("sum", "mean"):
            contraction, factors, operands = self._written_out(args, given, origins)
        kind, smaller = "elementwise", None
        if contraction is not None:
            if len(self.products) < len(self.smaller):
                smaller = self.smaller[len(self.products)]
            self.products.append(contraction)
            kind = contraction.kind(smaller)
        if contraction is not None and kind.startswith("matrix"):
            self.counts[kind] += 1
            origin = self._product(kind, contraction, smaller, factors, operands)
        else:
            origin = self._elementwise(name, given, origins)
        summing = contraction is not None or is_reduction(func)
        if summing and [tensor.numel() for tensor in made] == [1]:
            self._total(factors, operands)
        for tensor in made:
            if tensor.numel() > 1:
                self._put(tensor, origin)
            elif not func._schema.is_mutable:  # a single number is no vector that could be a voltage
                self._put(tensor, NOWHERE)
        if name == "mul" and len(given) == 2 and made:
            self._multiplied[id(made[0])] = (made[0], given[0], given[1])

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

    def _product(
        self,
        kind: str,
        sizes: Contraction,
        smaller: Contraction | None,
        factors: list[Tensor],
        operands: list[Origin],
    ) -> Origin:
        """Look at a product of matrices, or of a matrix and a vector, and tell where its result comes from."""
        if len(factors) != 2:  # a factorisation
            return NOWHERE
        left_grows = sizes.left > (1 if smaller is None else smaller.left)
        matrix, vector = (0, 1) if left_grows or kind == "matrix-matrix" else (1, 0)
        roots = operands[0].roots | operands[1].roots
        known = {self._matrices[root] for root in operands[matrix].roots if root in self._matrices}
        if kind == "matrix-matrix":
            known |= {self._matrices[root] for root in operands[vector].roots if root in self._matrices}
        driven = "weight" in operands[0].through | operands[1].through
        if "slope" in roots and ("weight" in roots or driven):
            self.counts["Jacobian"] += 1
            known.discard("W")
            known.add("J")
        names = frozenset(known or {"a matrix"})
        if kind == "matrix-vector" and operands[vector].through:
            first, second = (" and ".join(sorted(each)) for each in (operands[vector].through, names))
            self.chains.add(Chain(first.replace("weight", "W"), second))
        own = bool(torch.isin(factors[vector], self._inputs).all())  # W r̂ is a voltage that the network has anyway
        return Origin(through=frozenset("weight" if name == "W" and not own else name for name in names))

    def _total(self, factors: list[Tensor], operands: list[Origin]) -> None:
        """Note which matrices have become a single number, if any."""
        for tensor, origin in zip(factors, operands, strict=True):
            if tensor.numel() >= self._units**2:
                known = sorted(self._matrices[root] for root in origin.roots if root in self._matrices)
                self.totals.add(known[0] if len(known) == 1 else "a matrix")

    def _written_out(
        self, args: tuple[Any, ...], given: list[Tensor], origins: list[Origin]
    ) -> tuple[Contraction | None, list[Tensor], list[Origin]]:
        """Return the product that a sum over an elementwise product is, if it is one."""
        whole, first, second = self._multiplied.get(id(given[0]), (None, None, None))
        if whole is None or first is None or second is None or whole.ndim == 0:
            return None, given, origins
        dims = args[1] if len(args) > 1 and isinstance(args[1], (list, tuple)) else range(whole.ndim)
        summed = {dim % whole.ndim for dim in dims} or set(range(whole.ndim))
        sizes = dict.fromkeys(("batch", "left", "inner", "right", "lost"), 1)
        for axis in range(whole.ndim):
            a, b = (_length(tensor, axis - whole.ndim) for tensor in (first, second))
            both, role = a > 1 and b > 1, "left" if a > 1 else "right"
            place = ("inner" if both else "lost") if axis in summed else ("batch" if both else role)
            sizes[place] *= whole.shape[axis]
        del sizes["lost"]
        return Contraction(**sizes), [first, second], [self._origin(first), self._origin(second)]
