"""The registry of image data sets, and the form in which one is loaded; light to import."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal

from cet_rl.runs.config_files import load_yaml
from cet_rl.runs.plugins import load_plugins
from cet_rl.runs.task_kinds import check_new_task
from cet_rl.runs.values import checked

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Network = Literal["mlp", "cnn"]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Hold standardised images, (N, C, H, W) float32, and their labels, (N,) int64, all on one device."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> ImageSet:
        """Return the same set on another device."""
        return ImageSet(self.images.to(device), self.labels.to(device))

    def split(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over images and labels, at most `size` at once."""
        starts = range(0, len(self), size)
        return ((self.images[start : start + size], self.labels[start : start + size]) for start in starts)


@dataclass(frozen=True, eq=False)
class ImageData:
    """Hold the images to learn from and to test on, with labels 0 … classes - 1.

    The name is the key in `DATASETS`. `test` is the test set, or with `validation` the part of the training set
    that is left out of `train`. `flips` tells whether training images are flipped left to right at random.
    """

    name: str
    train: ImageSet
    test: ImageSet
    classes: int
    flips: bool = False

    @property
    def in_shape(self) -> tuple[int, int, int]:
        """Return the shape of one image: channels, height, width."""
        _, channels, height, width = self.train.images.shape
        return channels, height, width

    def to(self, device: torch.device | str) -> ImageData:
        """Return the same data on another device."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))


Loader = Callable[[str, str | None, bool], ImageData]


@dataclass(frozen=True)
class ParquetImages:
    """Describe a data set in Parquet files, those of a repository on the Hugging Face hub; see `ImageData`.

    `shape` is that of an image: channels (1 for grey, 3 for RGB), height and width. Standardisation gives each
    channel the mean and the deviation named here, one number for each or one for all. Labels are read from the
    column `label`, and images from `image` or `img`.
    """

    repository: str
    shape: tuple[int, int, int]
    classes: int
    mean: tuple[float, ...] = (0.5,)
    deviation: tuple[float, ...] = (0.5,)
    flips: bool = False
    label: str = "label"


@dataclass(frozen=True)
class Dataset:
    """Hold an entry of the registry.

    The loader describes Parquet files, or is a function, given as such or as "module:function". The function takes
    the name, `data_dir` and `validation`, returns `ImageData` on the CPU, and raises ValueError or OSError with a
    message of one line.
    """

    summary: str
    network: Network  # the one that `--model auto` chooses
    loader: Loader | str | ParquetImages


def _registry() -> dict[str, Dataset]:
    entries = load_yaml(resources.files("cet_rl.vision").joinpath("datasets.yaml").read_text("utf-8"))
    for entry in entries.values():
        if isinstance(entry["loader"], dict):
            given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in entry["loader"].items()}
            entry["loader"] = ParquetImages(**given)
    return {name: Dataset(**entry) for name, entry in entries.items()}


DATASETS = _registry()
"""The data sets by name."""


def register_dataset(
    name: str, summary: str, loader: Loader | str | ParquetImages, *, network: Network = "mlp"
) -> None:
    """Add a data set to those that `cet-rl train` and `VisionConfig` know; the arguments are those of `Dataset`.

    A package registers its own in the function that its entry point names (`cet_rl.runs.plugins`). Raises
    ValueError if the name is that of another task, or could be a Gymnasium id, or there is no such network.
    """
    if not (callable(loader) or isinstance(loader, str | ParquetImages)):
        raise ValueError(f"the loader of {name} must be a function, module:Name or ParquetImages, got {loader!r}")
    check_new_task("data set", name)
    DATASETS[name] = Dataset(summary, checked(network, Network, "network"), loader)


def summaries() -> dict[str, str]:
    """Return each data set's name and a line about it, those of plugins included."""
    load_plugins()
    return {name: dataset.summary for name, dataset in DATASETS.items()}
