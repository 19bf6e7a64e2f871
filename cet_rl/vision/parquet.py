"""Images with labels from Parquet files, as the Hugging Face hub has them."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

CLASSES = 10
"""Every data set here has as many."""

MODES = {"L": "8-bit grey", "RGB": "8-bit RGB"}

Raw = tuple[Tensor, Tensor]  # pixels (N, C, H, W) uint8, labels (N,) int64
Table = tuple[Any, Any, str]  # pyarrow columns with the images' bytes and with the labels; where they are from


@dataclass(frozen=True)
class Source:
    """What is known of a data set beforehand; mean and deviation are those after standardisation."""

    repository: str  # on the hub
    mode: str  # PIL's name for the kind of pixel
    size: tuple[int, int]  # height, width
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    flips: bool = False


def needs_extra(name: str) -> ValueError:
    """The error for a data set whose libraries are missing."""
    return ValueError(f"{name} needs the extra vision: pip install 'cet-rl[vision]'")


def read_folder(name: str, data_dir: Path, splits: Sequence[str]) -> dict[str, Table]:
    """The checked columns of each split, from Parquet files."""
    import pyarrow
    import pyarrow.parquet as parquet

    tables = {}
    for split, paths in _find_files(name, data_dir, splits).items():
        parts = []
        for path in paths:
            with open(path, "rb"):  # a file that may not be read has a clear error of its own
                pass
            try:
                with parquet.ParquetFile(path) as file:
                    columns = find_columns(file.schema_arrow, str(path))
                    parts.append(file.read(columns=columns).select(columns).rename_columns(["image", "label"]))
            except (pyarrow.ArrowException, OSError) as error:
                raise ValueError(
                    f"{path} is damaged or no Parquet file; copy or download it again ({reason_of(error)})"
                ) from error
        where = str(paths[0] if len(paths) == 1 else paths[0].parent / f"{split}-*.parquet")
        try:
            table = pyarrow.concat_tables([part.replace_schema_metadata() for part in parts])
        except pyarrow.ArrowException as error:
            raise ValueError(f"{where}: the files have columns of different types ({reason_of(error)})") from error
        tables[split] = check_table(table, where)
    return tables


def _find_files(name: str, data_dir: Path, splits: Sequence[str]) -> dict[str, list[Path]]:
    """Parquet files of each split, all from the first folder that has one for `train`."""
    if not data_dir.is_dir():
        problem = "is no folder" if data_dir.exists() else "does not exist"
        raise OSError(
            f"the data folder {data_dir} {problem}; it should hold {name}/train.parquet and test.parquet"
        )
    # A hub snapshot keeps its files one folder further down, named after its configuration.
    inner = ("", "plain_text", name, "data")
    folders = [base / each for base in (data_dir / name, data_dir) for each in inner]
    found: dict[str, list[Path]] = {}
    for folder in folders:
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
    """train.parquet, or all of train-00000-of-00002.parquet, train-00001-of-00002.parquet."""
    whole = folder / f"{split}.parquet"
    if whole.is_file():
        return [whole]
    shards = sorted(folder.glob(f"{split}-*-of-*.parquet"))
    counts = {int(match[1]) for shard in shards if (match := re.search(r"-of-(\d+)\.parquet$", shard.name))}
    if shards and counts != {len(shards)}:
        raise OSError(
            f"{folder} has {len(shards)} of {max(counts, default=0)} files {split}-*.parquet: copy all of one set"
        )
    return shards


def find_columns(schema: Any, where: str) -> list[str]:
    """Names of the image and label column."""
    import pyarrow

    image = next((each for each in ("image", "img") if each in schema.names), None)
    if image is None or "label" not in schema.names:
        found = ", ".join(schema.names) or "none"
        raise ValueError(f"{where} has the columns {found}; needed are image (or img) and label")
    kind = schema.field(image).type
    if pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)):
        raise ValueError(f"{where}: column {image} is of type {kind}; needed are the bytes of PNG or JPEG files")
    if not pyarrow.types.is_integer(schema.field("label").type):
        kind = schema.field("label").type
        raise ValueError(
            f"{where}: column label is of type {kind}; needed are whole numbers from 0 to {CLASSES - 1}"
        )
    return [image, "label"]


def check_table(table: Any, where: str) -> Table:
    """Bytes and labels of a table with columns image and label, labels checked."""
    import pyarrow
    import pyarrow.compute as compute

    if not table.num_rows:
        raise ValueError(f"{where} holds no images")
    images, labels = table["image"], table["label"]
    if pyarrow.types.is_struct(images.type):
        images = compute.struct_field(images, "bytes")
    for column, what in ((images, "image"), (labels, "label")):
        if column.null_count:
            row = column.is_null().to_pylist().index(True)
            raise ValueError(f"{where}: row {row:,} has no {what}")
    low, high = compute.min_max(labels).as_py().values()
    if low < 0 or high >= CLASSES:
        raise ValueError(f"{where}: labels go from {low} to {high}; they must be from 0 to {CLASSES - 1}")
    return images, labels, where


def decode(table: Table, source: Source) -> Raw:
    """Pixels and labels as tensors. PIL alone takes a third less time than the Image feature of `datasets`."""
    from PIL import Image

    images, labels, where = table
    height, width = source.size
    planes: list[bytes] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for row, encoded in enumerate(images.to_pylist()):
            try:
                image = Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG"))
                fits = image.size == (width, height) and image.mode == source.mode
                if fits:
                    planes.append(image.tobytes())
            except MemoryError:
                raise
            except Exception as error:  # PIL has many kinds for damaged files
                raise ValueError(
                    f"{where}: the image in row {row:,} cannot be decoded as PNG or JPEG ({reason_of(error)})"
                ) from error
            if not fits:
                found = f"{image.width}×{image.height} pixels, {MODES.get(image.mode, image.mode)}"
                needed = f"{width}×{height} pixels, {MODES[source.mode]}"
                raise ValueError(f"{where}: the image in row {row:,} has {found}; needed are {needed}")
    pixels = torch.frombuffer(bytearray().join(planes), dtype=torch.uint8).view(len(planes), height, width, -1)
    return pixels.permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels.to_numpy().astype(np.int64))


def reason_of(error: Exception) -> str:
    """The first line of an error's message, cut to a readable length, or its kind if it has none."""
    text = str(error).strip().splitlines()
    return text[0][:200] if text else type(error).__name__
