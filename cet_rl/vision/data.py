"""Images with labels: digits, MNIST and CIFAR-10.

`datasets`, pyarrow, PIL and scikit-learn (the extra `vision`) are imported only when a data set is loaded.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cet_rl.runs.values import unknown
from cet_rl.vision.datasets import DATASETS, summaries
from cet_rl.vision.hub import read_hub
from cet_rl.vision.parquet import CLASSES, Raw, Source, decode, needs_extra, read_folder

HELD_OUT = 0.1
"""Share of the training images that stands in for the test set with `validation` (paper, App. C)."""

DIGITS_TEST_SHARE = 0.2
"""Share of each digit's images that is for testing: scikit-learn has no split of its own."""

SPLIT_SEED = 0
"""Seed of both splits: the same images are held out whatever the seed of a run."""

SOURCES = {
    "mnist": Source("ylecun/mnist", "L", (28, 28), (0.5,), (0.5,)),
    "cifar10": Source(
        "uoft-cs/cifar10", "RGB", (32, 32), (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), flips=True
    ),
}
"""Data sets that come as Parquet files."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images and their labels, all on one device.

    Attributes:
        images: (N, C, H, W) float32, standardised.
        labels: (N,) int64.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> ImageSet:
        """The same set on another device."""
        return ImageSet(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set to learn and to be tested on.

    Attributes:
        name: as in `DATASETS`.
        train: images to learn.
        test: images to test on: the test set, or with `validation` a part of the training set left out of `train`.
        classes: number of classes; labels are 0 … classes − 1.
        flips: whether training images are to be flipped left to right at random.
    """

    name: str
    train: ImageSet
    test: ImageSet
    classes: int = CLASSES
    flips: bool = False

    @property
    def in_shape(self) -> tuple[int, int, int]:
        """Of one image: channels, height, width."""
        _, channels, height, width = self.train.images.shape
        return channels, height, width

    def to(self, device: torch.device | str) -> ImageData:
        """The same data on another device."""
        return ImageData(self.name, self.train.to(device), self.test.to(device), self.classes, self.flips)


def load(name: str, data_dir: str | os.PathLike[str] | None = None, *, validation: bool = False) -> ImageData:
    """Load a data set into memory, on the CPU.

    All images are standardised with statistics of the training images alone. Classes keep the sizes they have:
    the authors' code cuts all of them to that of the smallest, which leaves out up to a tenth of MNIST.

    Args:
        name: digits, mnist or cifar10.
        data_dir: for mnist and cifar10, a folder with train.parquet and test.parquet, or the shards of a hub
            snapshot, directly or in a folder of the data set's name; None to fetch them from the Hugging Face
            hub (or the hub's cache on this computer).
        validation: test on a fixed tenth of the training images, which are then not learned; the test set is not
            used at all. For the choice of hyper-parameters.

    Raises:
        ValueError: if there is no such data set, the extra `vision` is not installed, or files are damaged or hold
            something else.
        OSError: if a file cannot be read or the hub cannot be reached.
    """
    known = summaries()
    if name not in known:
        raise unknown("data set", name, known)
    loader = DATASETS[name].loader
    if isinstance(loader, str):
        module, _, function = loader.partition(":")
        loader = getattr(importlib.import_module(module), function)
    data: ImageData = loader(name, None if data_dir is None else os.fspath(data_dir), validation)
    return data


def load_digits(name: str, data_dir: str | None, validation: bool) -> ImageData:
    """scikit-learn's digits; see `load`."""
    if data_dir is not None:
        raise ValueError("digits comes with scikit-learn: it takes no data_dir (--data-dir)")
    train, test = _digits()
    return _finish(name, train, test, validation, (0.5,), (0.5,))


def load_parquet(name: str, data_dir: str | None, validation: bool) -> ImageData:
    """One of `SOURCES`; see `load`."""
    source = SOURCES[name]
    splits = ("train",) if validation else ("train", "test")
    try:
        import pyarrow  # noqa: F401
        from PIL import Image  # noqa: F401
    except ImportError:
        raise needs_extra(name) from None
    if data_dir is None:
        tables = read_hub(name, source.repository, splits)
    else:
        tables = read_folder(name, Path(data_dir), splits)
    raw = {split: decode(table, source) for split, table in tables.items()}
    return _finish(name, raw["train"], raw.get("test"), validation, source.mean, source.deviation, source.flips)


def _finish(
    name: str,
    train: Raw,
    test: Raw | None,
    validation: bool,
    mean: Sequence[float],
    deviation: Sequence[float],
    flips: bool = False,
) -> ImageData:
    """Hold images out if asked, then standardise."""
    if validation:
        pixels, labels = train
        held = round(HELD_OUT * len(labels))
        if not held:
            raise ValueError(
                f"{name}: {len(labels)} training images are too few to hold out a tenth for validation"
            )
        order = torch.from_numpy(np.random.RandomState(SPLIT_SEED).permutation(len(labels)))
        # In the order of the files, so that gathering them is quick.
        kept, held_out = order[held:].sort().values, order[:held].sort().values
        train, test = (pixels[kept], labels[kept]), (pixels[held_out], labels[held_out])
    assert test is not None
    # The authors' code standardises the test set with statistics of its own; we use those of the training set for
    # both, because a deployed network has no statistics of images it has yet to see.
    counts = torch.bincount(train[0].flatten(), minlength=256).double()
    values = torch.arange(256, dtype=torch.float64)
    centre = (counts @ values / counts.sum()).item()
    spread = (counts @ (values - centre).square() / counts.sum()).sqrt().item()
    if spread == 0:
        raise ValueError(f"{name}: all pixels of the training images are the same")
    scale = torch.tensor(deviation, dtype=torch.float64) / spread
    shift = torch.tensor(mean, dtype=torch.float64) - centre * scale

    def standardise(raw: Raw) -> ImageSet:
        images = raw[0].float()
        images.mul_(scale.float().view(-1, 1, 1)).add_(shift.float().view(-1, 1, 1))
        return ImageSet(images, raw[1])

    return ImageData(name, standardise(train), standardise(test), CLASSES, flips)


def _digits() -> tuple[Raw, Raw]:
    """scikit-learn's digits: the training and the test part, the same share of every digit in both."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise needs_extra("digits") from None
    bunch = load_digits()
    pixels = torch.from_numpy(bunch.images.astype(np.uint8)).unsqueeze(1)  # whole numbers from 0 to 16
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    # RandomState, because numpy promises that its stream never changes.
    random = np.random.RandomState(SPLIT_SEED)
    testing = torch.zeros(len(labels), dtype=torch.bool)
    for digit in range(CLASSES):
        members = (labels == digit).nonzero().flatten()
        shuffled = members[torch.from_numpy(random.permutation(len(members)))]
        testing[shuffled[: round(DIGITS_TEST_SHARE * len(members))]] = True
    return (pixels[~testing], labels[~testing]), (pixels[testing], labels[testing])
