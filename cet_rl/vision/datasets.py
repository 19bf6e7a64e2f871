"""The data sets there are; light to import."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cet_rl.runs.plugins import load_plugins

if TYPE_CHECKING:
    from cet_rl.vision.data import ImageData

Network = Literal["mlp", "cnn"]
Loader = Callable[["str", "str | None", "bool"], "ImageData"]


@dataclass(frozen=True)
class Dataset:
    """An entry of the catalogue.

    Attributes:
        summary: a line about it.
        network: what `--model auto` is.
        loader: called with the name, `data_dir` and `validation`; returns `ImageData` on the CPU, and raises
            ValueError or OSError with one clear line. Or where to import it from, "module:function".
    """

    summary: str
    network: Network
    loader: Loader | str


DATASETS: dict[str, Dataset] = {
    "digits": Dataset(
        "8×8 handwritten digits of scikit-learn, 1,797 images, nothing to download",
        "mlp",
        "cet_rl.vision.data:load_digits",
    ),
    "mnist": Dataset(
        "28×28 handwritten digits, 60,000 images to learn and 10,000 to test",
        "mlp",
        "cet_rl.vision.data:load_parquet",
    ),
    "cifar10": Dataset(
        "32×32 colour photographs of ten kinds, 50,000 images to learn and 10,000 to test",
        "cnn",
        "cet_rl.vision.data:load_parquet",
    ),
}
"""By name."""


def register_dataset(name: str, summary: str, loader: Loader | str, *, network: Network = "mlp") -> None:
    """Add a data set to those that `cet-rl train` and `VisionConfig` know.

    A package registers its own in the function that its entry point names (`cet_rl.plugins`).

    Args:
        name: of the task.
        summary: a line about it.
        loader: see `Dataset`.
        network: what `--model auto` is.

    Raises:
        ValueError: if the name is taken, or could be a Gymnasium id.
    """
    if name in DATASETS:
        raise ValueError(f"there is a data set {name!r} already")
    if not name.replace("-", "").replace("_", "").isalnum() or "-v" in name:
        raise ValueError(f"a data set's name is letters, digits, - and _, and no Gymnasium id, got {name!r}")
    DATASETS[name] = Dataset(summary, network, loader)


def summaries() -> dict[str, str]:
    """Name and a line about each, third parties' included."""
    load_plugins()
    return {name: dataset.summary for name, dataset in DATASETS.items()}
