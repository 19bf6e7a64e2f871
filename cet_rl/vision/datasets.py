"""The registry of image data sets, and the form in which one is loaded; light to import."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cet_rl.runs.plugins import load_plugins

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Network = Literal["mlp", "cnn"]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Hold images and their labels, all on one device.

    Attributes:
        images: (N, C, H, W) float32, standardised.
        labels: (N,) int64.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> ImageSet:
        """Return the same set on another device."""
        return ImageSet(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class ImageData:
    """Hold a data set to learn and to test on.

    Attributes:
        name: key in `DATASETS`.
        train: images to learn.
        test: images to test on: the test set, or with `validation` a part of the training set left out of `train`.
        classes: number of classes; labels are 0 … classes - 1.
        flips: whether to flip training images left to right at random.
    """

    name: str
    train: ImageSet
    test: ImageSet
    classes: int
    flips: bool = False

    @property
    def in_shape(self) -> tuple[int, int, int]:
        """Shape of one image: channels, height, width."""
        _, channels, height, width = self.train.images.shape
        return channels, height, width

    def to(self, device: torch.device | str) -> ImageData:
        """Return the same data on another device."""
        return ImageData(self.name, self.train.to(device), self.test.to(device), self.classes, self.flips)


Loader = Callable[[str, str | None, bool], ImageData]


@dataclass(frozen=True)
class ParquetImages:
    """Describe a data set in Parquet files, as the Hugging Face hub has them.

    Attributes:
        repository: on the hub.
        shape: channels (1 for grey, 3 for RGB), height and width of an image.
        classes: number of classes; labels are 0 … classes - 1.
        mean: of each channel after standardisation; a single number for all.
        deviation: of each channel after standardisation.
        flips: whether to flip training images left to right at random.
        label: name of the column with the labels; images are in `image` or `img`.
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

    Attributes:
        summary: a line about it.
        network: the network that `--model auto` chooses.
        loader: a description of Parquet files; or a function of the name, `data_dir` and `validation` that returns
            `ImageData` on the CPU, and raises ValueError or OSError with one clear line; or where to import that
            from, "module:function".
    """

    summary: str
    network: Network
    loader: Loader | str | ParquetImages


DATASETS: dict[str, Dataset] = {
    "digits": Dataset(
        "8×8 handwritten digits of scikit-learn, 1,797 images, nothing to download",
        "mlp",
        "cet_rl.vision.data:load_digits",
    ),
    "mnist": Dataset(
        "28×28 handwritten digits, 60,000 images to learn and 10,000 to test",
        "mlp",
        ParquetImages("ylecun/mnist", (1, 28, 28), 10),
    ),
    "cifar10": Dataset(
        "32×32 colour photographs of ten kinds, 50,000 images to learn and 10,000 to test",
        "cnn",
        ParquetImages(
            "uoft-cs/cifar10", (3, 32, 32), 10, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), flips=True
        ),
    ),
    "fashion_mnist": Dataset(
        "28×28 pictures of clothes of ten kinds, 60,000 images to learn and 10,000 to test",
        "mlp",
        ParquetImages("zalando-datasets/fashion_mnist", (1, 28, 28), 10),
    ),
    "cifar100": Dataset(
        "32×32 colour photographs of a hundred kinds, 50,000 images to learn and 10,000 to test",
        "cnn",
        ParquetImages(
            "uoft-cs/cifar100",
            (3, 32, 32),
            100,
            (0.5071, 0.4865, 0.4409),
            (0.2673, 0.2564, 0.2762),
            flips=True,
            label="fine_label",
        ),
    ),
}
"""The data sets by name."""


def register_dataset(
    name: str, summary: str, loader: Loader | str | ParquetImages, *, network: Network = "mlp"
) -> None:
    """Add a data set to those that `cet-rl train` and `VisionConfig` know.

    A package registers its own in the function that its entry point names (`cet_rl.plugins`).

    Args:
        name: of the task.
        summary: a line about it.
        loader: see `Dataset`.
        network: the network that `--model auto` chooses.

    Raises:
        ValueError: if the name is taken, or could be a Gymnasium id.
    """
    if name in DATASETS:
        raise ValueError(f"there is a data set {name!r} already")
    if not name.replace("-", "").replace("_", "").isalnum() or "-v" in name:
        raise ValueError(f"a data set's name is letters, digits, - and _, and no Gymnasium id, got {name!r}")
    DATASETS[name] = Dataset(summary, network, loader)


def summaries() -> dict[str, str]:
    """Return each data set's name and a line about it, those of plugins included."""
    load_plugins()
    return {name: dataset.summary for name, dataset in DATASETS.items()}
