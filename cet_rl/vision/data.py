"""Load data sets, and draw training batches from them.

pyarrow, PIL, huggingface_hub and scikit-learn (the extra `vision`) are imported only when a data set is loaded.
"""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cet_rl.runs.plugins import import_attribute, naming
from cet_rl.runs.values import in_a_line, unknown
from cet_rl.traces.base import check_whole
from cet_rl.vision.datasets import DATASETS, ImageData, ImageSet, ParquetImages, summaries

HELD_OUT = 0.1  # share of the training images that stands in for the test set with `validation` (paper, App. C)
SPLIT_SEED = 0  # seed of both splits: the same images are held out whatever the seed of a run
CONNECT_SECONDS = 5.0  # longest wait for the hub's first answer

_MODES = {"L": "8-bit grey", "RGB": "8-bit RGB"}

_Raw = tuple[Tensor, Tensor]  # pixels (N, C, H, W) uint8, labels (N,) int64


def load(name: str, data_dir: str | os.PathLike[str] | None = None, validation: bool = False) -> ImageData:
    """Load a data set into memory, on the CPU.

    All images are standardised with statistics of the training images alone. Classes keep their sizes: the
    authors' code cuts all of them to that of the smallest, which leaves out up to a tenth of MNIST.

    Args:
        name: key in `DATASETS`.
        data_dir: a folder with train.parquet and test.parquet, or the shards of a hub snapshot, directly or in a
            folder of the data set's name; None for the Hugging Face hub, or its cache on this computer.
        validation: test on a fixed tenth of the training images, which are then not learned, and not on the test
            set, for choosing hyper-parameters.

    Raises:
        ValueError: if there is no such data set, the extra `vision` is not installed, or files are damaged or hold
            something else.
        OSError: if a file cannot be read or the hub cannot be reached.
    """
    known = summaries()
    if name not in known:
        raise unknown("data set", name, known)
    loader = DATASETS[name].loader
    if isinstance(loader, ParquetImages):
        loader = partial(_load_parquet, loader)
    elif isinstance(loader, str):
        loader = import_attribute(loader, f"data set {name}")
    try:
        with naming(f"the loader of {name} fails"):
            data: ImageData = loader(name, None if data_dir is None else os.fspath(data_dir), validation)
    except ImportError as error:
        raise ValueError(
            f"{name} needs {error.name or error}; all that our data sets need is in the extra vision: "
            "pip install 'cet-rl[vision]'"
        ) from error
    if not isinstance(data, ImageData):
        raise ValueError(f"the loader of {name} must return ImageData, got {type(data).__name__}")
    check_whole(data.classes, f"classes of {name}", at_least=1)
    for images, labels in ((part.images, part.labels) for part in (data.train, data.test)):
        form, classes = (images.ndim, images.dtype, labels.dtype, labels.shape), {*range(data.classes)}
        if form != (4, torch.float32, torch.int64, (len(images),)) or not classes.issuperset(labels.tolist()):
            needs = f"images (N, C, H, W) float32 and labels (N,) int64 from 0 to {data.classes - 1}"
            raise ValueError(f"{name} must be {needs}")
        if not len(images) or images.shape[1:] != data.train.images.shape[1:] or not images.sum().isfinite():
            raise ValueError(f"{name} needs images of one shape and of finite numbers for training and for test")
    return data


def load_digits(name: str, data_dir: str | None, validation: bool) -> ImageData:
    """Load scikit-learn's digits, with the same share of every digit in both parts; see `load`."""
    if data_dir is not None:
        raise ValueError("digits comes with scikit-learn: it takes no data_dir (--data-dir)")
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = torch.from_numpy(bunch.images.astype(np.uint8)).unsqueeze(1)  # whole numbers from 0 to 16
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    # RandomState, because numpy promises that its stream never changes.
    random = np.random.RandomState(SPLIT_SEED)
    testing = torch.zeros(len(labels), dtype=torch.bool)  # a fifth, as scikit-learn has no split of its own
    for digit in range(10):
        members = (labels == digit).nonzero().flatten()
        shuffled = members[torch.from_numpy(random.permutation(len(members)))]
        testing[shuffled[: round(len(members) / 5)]] = True
    train, test = ((pixels[chosen], labels[chosen]) for chosen in (~testing, testing))
    return _standardise(name, train, test, validation, ParquetImages("", (1, 8, 8), 10))


def _load_parquet(source: ParquetImages, name: str, data_dir: str | None, validation: bool) -> ImageData:
    splits = ("train",) if validation else ("train", "test")
    import_module("pyarrow")  # before anything is fetched
    folder = _download(name, source.repository, splits) if data_dir is None else Path(data_dir)
    raw = {split: _read(paths, split, source) for split, paths in _find_files(name, folder, splits).items()}
    return _standardise(name, raw["train"], raw.get("test"), validation, source)


def _standardise(name: str, train: _Raw, test: _Raw | None, validation: bool, source: ParquetImages) -> ImageData:
    """Hold images out if asked, then standardise with statistics of the training images."""
    if validation:
        pixels, labels = train
        held = round(HELD_OUT * len(labels))
        if not held:
            raise ValueError(f"{name}: {len(labels)} training images are too few to hold out a tenth")
        order = torch.from_numpy(np.random.RandomState(SPLIT_SEED).permutation(len(labels)))
        # In the order of the files, so that gathering them is quick.
        kept, held_out = order[held:].sort().values, order[:held].sort().values
        train, test = (pixels[kept], labels[kept]), (pixels[held_out], labels[held_out])
    assert test is not None
    # The authors' code standardises the test set with its own statistics; we use those of the training set for
    # both, because a deployed network has no statistics of images it has yet to see.
    counts = torch.bincount(train[0].flatten(), minlength=256).double()
    values = torch.arange(256, dtype=torch.float64)
    centre = (counts @ values / counts.sum()).item()
    spread = (counts @ (values - centre).square() / counts.sum()).sqrt().item()
    if spread == 0:
        raise ValueError(f"{name}: all pixels of the training images are the same")
    scale = torch.tensor(source.deviation, dtype=torch.float64) / spread
    shift = torch.tensor(source.mean, dtype=torch.float64) - centre * scale

    def standardised(pixels: Tensor, labels: Tensor) -> ImageSet:
        images = pixels.float()
        images.mul_(scale.float().view(-1, 1, 1)).add_(shift.float().view(-1, 1, 1))
        return ImageSet(images, labels)

    return ImageData(name, standardised(*train), standardised(*test), source.classes, source.flips)


def _download(name: str, repository: str, splits: Sequence[str]) -> Path:
    """Return the folder of a hub repository's Parquet files, fetched or from the hub's cache on this computer."""
    from huggingface_hub import constants, snapshot_download

    answers = not constants.HF_HUB_OFFLINE and _hub_answers()
    try:
        with _silent_hub():
            # By itself the library would ask for half a minute and longer before it turns to its cache.
            patterns = [f"*{split}*.parquet" for split in splits]
            return Path(
                snapshot_download(
                    repository, repo_type="dataset", allow_patterns=patterns, local_files_only=not answers
                )
            )
    except Exception as error:  # of huggingface_hub, its HTTP library and the file system
        reason = in_a_line(error)
        if not answers:
            why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "it does not answer"
            reason = f"{why}, and its cache on this computer has no copy"
        raise OSError(
            f"cannot fetch {name} from the Hugging Face hub: {reason}; without a network, give a folder of "
            "Parquet files: --data-dir DIR"
        ) from error


@contextmanager
def _silent_hub() -> Iterator[None]:
    """Keep the hub's library from printing within the block."""
    bars = import_module("huggingface_hub.utils.tqdm")
    logger = logging.getLogger("huggingface_hub")
    level, had_bars = logger.level, not bars.are_progress_bars_disabled()
    logger.setLevel(logging.CRITICAL)
    bars.disable_progress_bars()
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)
        if had_bars:
            bars.enable_progress_bars()


def _hub_answers() -> bool:
    """Return whether anything at all comes back from the hub, in bounded time."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=CONNECT_SECONDS)
    except Exception:  # the HTTP library differs between versions
        return False
    return True


def _find_files(name: str, data_dir: Path, splits: Sequence[str]) -> dict[str, list[Path]]:
    """Return the Parquet files of each split, all from the first folder that has any."""
    if not data_dir.is_dir():
        problem = "is no folder" if data_dir.exists() else "does not exist"
        raise OSError(f"the data folder {data_dir} {problem}; it must hold {name}/train.parquet and test.parquet")
    # A hub snapshot keeps its files one folder further down, named after its configuration.
    inner = ("", "plain_text", name, "data")
    for folder in [base / each for base in (data_dir / name, data_dir) for each in inner]:
        found = {split: _split_files(folder, split) for split in splits}
        if any(found.values()):
            break
    missing = [split for split in splits if not found[split]]
    if missing:
        among = folder if len(missing) < len(splits) else f"{data_dir / name} or {data_dir}"
        raise OSError(
            f"no {' and no '.join(f'{split}.parquet' for split in missing)} in {among} "
            f"(nor {missing[0]}-00000-of-….parquet as on the hub)"
        )
    return found


def _split_files(folder: Path, split: str) -> list[Path]:
    """Return train.parquet, or all of train-00000-of-00002.parquet, train-00001-of-00002.parquet."""
    whole = folder / f"{split}.parquet"
    shards = sorted(folder.glob(f"{split}-*-of-*.parquet"))
    if whole.is_file() or not shards:
        return [whole] * whole.is_file()
    names = [shard.stem for shard in shards]
    if names != [f"{split}-{number:05d}-of-{len(names):05d}" for number in range(len(names))]:
        raise OSError(f"{folder} has {', '.join(names)}, which is no whole set: copy all of one set")
    return shards


def _read(paths: Sequence[Path], split: str, source: ParquetImages) -> _Raw:
    """Return the pixels and labels of one split, checked."""
    import pyarrow
    import pyarrow.compute as compute
    import pyarrow.parquet as parquet

    tables = []
    for path in paths:
        with open(path, "rb"):  # a file that may not be read has a clear error of its own
            pass
        try:
            with parquet.ParquetFile(path) as file:
                names = file.schema_arrow.names
                columns = ["img" if "img" in names else "image", source.label]
                if not set(columns) <= set(names):
                    found = ", ".join(names) or "none"
                    raise ValueError(f"{path} has columns {found}; needed are image (or img) and {source.label}")
                tables.append(file.read(columns=columns).select(columns).rename_columns(["image", "label"]))
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(
                f"{path} is damaged or no Parquet file; copy or download it again ({in_a_line(error)})"
            ) from error
    where = str(paths[0] if len(paths) == 1 else paths[0].parent / f"{split}-*.parquet")
    try:
        table = pyarrow.concat_tables(tables, promote_options="permissive")
        images, labels = table["image"], table["label"]
        if pyarrow.types.is_struct(images.type):
            images = compute.struct_field(images, "bytes")
    except pyarrow.ArrowException as error:
        raise ValueError(f"{where} does not hold images of one kind ({in_a_line(error)})") from error
    if not table.num_rows:
        raise ValueError(f"{where} holds no images")
    needed = f"whole numbers from 0 to {source.classes - 1}"
    if not pyarrow.types.is_integer(labels.type):
        raise ValueError(f"{where}: column label is of type {labels.type}; needed are {needed}")
    if labels.null_count:
        raise ValueError(f"{where}: row {labels.is_null().to_pylist().index(True):,} has no label")
    low, high = compute.min_max(labels).as_py().values()
    if low < 0 or high >= source.classes:
        raise ValueError(f"{where}: labels go from {low} to {high}; needed are {needed}")
    return _decode(images, source.shape, where), torch.from_numpy(labels.to_numpy().astype(np.int64))


def _decode(images: Any, shape: tuple[int, int, int], where: str) -> Tensor:
    """Return the pixels of encoded images, (N, C, H, W) uint8."""
    from PIL import Image

    channels, height, width = shape
    mode = "L" if channels == 1 else "RGB"
    planes: list[bytes] = []
    with warnings.catch_warnings(action="ignore"):
        for row, encoded in enumerate(images.to_pylist()):
            try:
                image = Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG"))
                fits = image.size == (width, height) and image.mode == mode
                planes.append(image.tobytes() if fits else b"")
            except MemoryError:
                raise
            except Exception as error:  # PIL has many kinds for damaged files
                raise ValueError(
                    f"{where}: the image in row {row:,} cannot be decoded as PNG or JPEG ({in_a_line(error)})"
                ) from error
            if not fits:
                found = f"{image.width}×{image.height} pixels, {_MODES.get(image.mode, image.mode)}"
                needed = f"{width}×{height} pixels, {_MODES[mode]}"
                raise ValueError(f"{where}: the image in row {row:,} has {found}; needed are {needed}")
    pixels = torch.frombuffer(bytearray().join(planes), dtype=torch.uint8).view(len(planes), height, width, -1)
    return pixels.permute(0, 3, 1, 2).contiguous()


class Batches(Iterator[tuple[Tensor, Tensor]]):
    """Draw an endless, seeded stream of training batches: images (B, C, H, W), contiguous, and labels (B,).

    Every epoch goes through a fresh permutation of the images; what is left at its end and fills no batch is
    dropped, as in the authors' code. All random numbers come from a generator of its own on the CPU, so that the
    order is the same on every device; images are gathered on the device they are on. With `flips` each image is
    flipped left to right with probability 1/2, anew each epoch. A batch larger than the set is a ValueError.
    """

    def __init__(self, images: ImageSet, batch_size: int, seed: int = 0, *, flips: bool = False) -> None:
        if not 1 <= batch_size <= len(images):
            raise ValueError(f"the batch size must be from 1 to {len(images):,}, all images, got {batch_size}")
        self.batch_size = batch_size
        self._images, self._labels = images.images.contiguous(), images.labels
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
        """Return the stream's position as CPU tensors and integers, from which it resumes bit for bit."""
        return {
            "order": self._order,
            "flipped": self._flipped,
            "position": self._position,
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume where another stream was; raise ValueError if it drew from another training set."""
        order, flipped, size = state["order"], state["flipped"], len(self._labels)
        if len(order) not in (0, size) or len(flipped) != (len(order) if self._flips else 0):
            raise ValueError(
                f"this is no state of a stream of batches from {size:,} images "
                f"{'with' if self._flips else 'without'} flips: resume with the data of the run"
            )
        self._generator.set_state(state["generator"].cpu())
        self._position = int(state["position"])
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
