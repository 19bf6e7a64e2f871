"""An endless, seeded stream of training batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from cet_rl.vision.data import ImageSet


class Batches(Iterator[tuple[Tensor, Tensor]]):
    """An endless, seeded stream of training batches.

    Every epoch goes through a fresh permutation of the images; what is left at its end and fills no batch is
    dropped, as in the authors' code. All random numbers come from a generator of its own on the CPU, so that the
    order is the same on every device; images are gathered on the device they are on.

    Yields:
        x: (batch_size, C, H, W) float32, contiguous.
        y: (batch_size,) int64.
    """

    def __init__(self, images: ImageSet, batch_size: int, seed: int = 0, *, flips: bool = False) -> None:
        """A stream that starts with the first epoch.

        Args:
            images: to draw from.
            batch_size: images in every batch.
            seed: of the permutations and flips.
            flips: whether to flip each image left to right with probability 1/2, anew each epoch.

        Raises:
            ValueError: if the batch size is not at least 1, or larger than the set.
        """
        if not 1 <= batch_size <= len(images):
            raise ValueError(
                f"the batch size must be from 1 to {len(images):,}, the size of the training set, got {batch_size}"
            )
        self.batch_size = batch_size
        self._images = images.images.contiguous()
        self._labels = images.labels
        self._flips = flips
        self._generator = torch.Generator().manual_seed(seed)
        self._position = 0
        self._set_epoch(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.bool))

    def __next__(self) -> tuple[Tensor, Tensor]:
        if self._position + self.batch_size > len(self._order):
            self._draw_epoch()
        now = slice(self._position, self._position + self.batch_size)
        self._position = now.stop
        rows = self._rows[now]
        x = self._images.index_select(0, rows)
        if self._flips:
            x = torch.where(self._mirror[now], x.flip(3), x)
        return x, self._labels.index_select(0, rows)

    def state_dict(self) -> dict[str, Tensor | int]:
        """Where the stream is: CPU tensors and integers, to be restored by `load_state_dict` bit for bit."""
        return {
            "order": self._order,
            "flipped": self._flipped,
            "position": self._position,
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Tensor | int]) -> None:
        """Go on where another stream with the same images, batch size and flips was when its state was taken.

        Raises:
            ValueError: if the state is incomplete or of another training set.
        """
        order, flipped, position, generator = (
            state.get(key) for key in ("order", "flipped", "position", "generator")
        )
        size = len(self._labels)
        if not (
            isinstance(order, Tensor)
            and isinstance(flipped, Tensor)
            and isinstance(position, int)
            and isinstance(generator, Tensor)
            and generator.shape == self._generator.get_state().shape
            and len(order) in (0, size)
            and len(flipped) == (len(order) if self._flips else 0)
            and 0 <= position <= len(order)
            and torch.equal(order.cpu().sort().values, torch.arange(len(order)))
        ):
            raise ValueError(
                f"this is no state of a stream of batches from {size:,} images "
                f"{'with' if self._flips else 'without'} flips: resume with the data of the run"
            )
        self._generator.set_state(generator.cpu())
        self._position = position
        self._set_epoch(order.cpu(), flipped.cpu())

    def _draw_epoch(self) -> None:
        size = len(self._labels)
        order = torch.randperm(size, generator=self._generator)
        coins = torch.rand(size if self._flips else 0, generator=self._generator)
        self._position = 0
        self._set_epoch(order, coins < 0.5)

    def _set_epoch(self, order: Tensor, flipped: Tensor) -> None:
        # A whole epoch goes to the device at once: a copy for each batch would make the device wait.
        self._order, self._flipped = order, flipped
        self._rows = order.to(self._images.device)
        self._mirror = flipped.to(self._images.device).view(-1, 1, 1, 1)
