"""Count the operations of torch that a rule's steps dispatch, and the multiplications in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = {"mm", "mv", "dot", "vdot", "bmm", "addmm", "addmv", "addbmm", "baddbmm"}
_COPIES = {"clone", "copy", "_to_copy", "fill", "zero", "alias", "lift_fresh"}
_FACTORISATIONS = ("linalg_", "_linalg_", "cholesky", "triangular_solve", "lu_", "inverse")


class Contraction(NamedTuple):
    """Sizes of a product Σ_k X_bik Y_bkj.

    Attributes:
        batch: of b, the axes that both factors and the product have.
        left: of i.
        inner: of k.
        right: of j.
    """

    batch: int
    left: int
    inner: int
    right: int

    def kind(self, smaller: Contraction | None) -> str:
        """Return its value for a network.

        Args:
            smaller: the same product in a smaller network: axes that do not differ are no axes of units. None if
                there is no such.

        Returns:
            "matrix-matrix" if its multiplications grow with the cube of the network, "matrix-vector" if a sum over
            units is taken for each unit, "sum" if there is one sum, or one for each row of two matrices, and
            "elementwise" if no sum grows: pre times post, for example.
        """
        batch, left, inner, right = (
            size > (1 if smaller is None else before) for size, before in zip(self, smaller or self, strict=True)
        )
        if not inner:
            return "elementwise"
        if batch + left + right > 1:
            return "matrix-matrix"
        return "matrix-vector" if left or right else "sum"


def _name(func: Any) -> str:
    return str(func.overloadpacket.__name__)


def is_reduction(func: Any) -> bool:
    """Tell whether an operation of torch sums, or the like."""
    return torch.Tag.reduction in func.tags or _name(func) in ("sum", "mean", "prod")


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    # Operations take tensors and lists of them, no deeper.
    lists = (value if isinstance(value, (tuple, list)) else (value,) for value in values)
    return [each for value in lists for each in value if isinstance(each, Tensor)]


def _contraction(name: str, given: Sequence[Tensor]) -> Contraction | None:
    """Sizes of a product of torch's, None for another operation."""
    if name in PRODUCTS:
        first, second = (tuple(tensor.shape) for tensor in given[-2:])
        batch = first[0] if len(first) == 3 else 1
        left = first[-2] if len(first) > 1 else 1
        return Contraction(batch, left, first[-1], second[-1] if len(second) > 1 else 1)
    if name.startswith(_FACTORISATIONS) and "norm" not in name and given and given[0].ndim > 1:
        *batches, rows, columns = given[0].shape
        return Contraction(prod(batches), rows, columns, rows)
    return None


class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts multiplications: of products, and elements of everything elementwise or summed.

    Moving and making numbers costs nothing.

    Attributes:
        cost: multiplications so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.cost = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and count it."""
        given = _tensors((*args, *(kwargs or {}).values()))
        result = func(*args, **(kwargs or {}))
        made = _tensors(result if isinstance(result, (tuple, list)) else (result,))
        name = _name(func)
        contraction = _contraction(name, given)
        if contraction is not None:
            self.cost += prod(contraction)
        elif is_reduction(func):
            self.cost += sum(tensor.numel() for tensor in given)
        elif torch.Tag.pointwise in func.tags and name.rstrip("_") not in _COPIES:
            self.cost += sum(tensor.numel() for tensor in made)
        self.note(func, name.rstrip("_"), args, given, made, contraction)
        return result

    def note(
        self,
        func: Any,
        name: str,
        args: tuple[Any, ...],
        given: list[Tensor],
        made: list[Tensor],
        contraction: Contraction | None,
    ) -> None:
        """Look at an operation; nothing here."""
