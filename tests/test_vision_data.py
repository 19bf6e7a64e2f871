"""Images, their standardisation, errors of their files, batches and plain models."""

import io
import logging
import math
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cet_rl.vision import data
from cet_rl.vision.data import Batches, load
from cet_rl.vision.datasets import DATASETS, Dataset, ImageData, ImageSet, ParquetImages, register_dataset
from cet_rl.vision.models import image_network

pa = pytest.importorskip("pyarrow", reason="needs the extra vision")
pq = pytest.importorskip("pyarrow.parquet", reason="needs the extra vision")
Image = pytest.importorskip("PIL.Image", reason="needs the extra vision")


def source(name: str) -> ParquetImages:
    loader = DATASETS[name].loader
    assert isinstance(loader, ParquetImages)
    return loader


def random_pixels(name: str, count: int, seed: int = 0) -> np.ndarray:
    """(count, H, W) for grey images, (count, H, W, 3) for those in colour."""
    channels, *size = source(name).shape
    shape = (count, *size, channels) if channels > 1 else (count, *size)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def columns(
    encoded: list[bytes | None], labels: list[Any], image: str = "image", label: str = "label", **more: list[Any]
) -> Any:
    return pa.table({image: [{"bytes": each, "path": None} for each in encoded], label: labels, **more})


def write(folder: Path, split: str, table: Any, file: str = "{}.parquet") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / file.format(split))


def make(
    folder: Path, name: str = "mnist", image: str = "image", train: int = 40, test: int = 10, **options: str
) -> dict[str, np.ndarray]:
    """Random images in both files, labels 0, 7, 14 … modulo the number of classes; returns their pixels."""
    described = source(name)
    pixels = {"train": random_pixels(name, train, 1), "test": random_pixels(name, test, 2)}
    for split, each in pixels.items():
        labels = [n * 7 % described.classes for n in range(len(each))]
        more = {"coarse_label": [0] * len(each)} if described.label == "fine_label" else {}
        table = columns([encode(one) for one in each], labels, image, described.label, **more)
        write(folder, split, table, **options)
    return pixels


def refusal(name: str, folder: Path | str | None, kind: type[Exception] = ValueError, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        load(name, folder, **options)
    message = str(caught.value)
    assert "\n" not in message.strip()
    return message


def test_digits():
    digits, again = load("digits"), load("digits")
    assert (digits.in_shape, digits.classes, digits.flips) == ((1, 8, 8), 10, False)
    train, test = digits.train, digits.test
    assert len(train) + len(test) == 1797
    assert (train.images.dtype, train.labels.dtype) == (torch.float32, torch.int64)
    assert train.images.mean().item() == pytest.approx(0.5, abs=1e-5)
    assert train.images.std(correction=0).item() == pytest.approx(0.5, abs=1e-5)
    assert torch.equal(test.images, again.test.images)
    in_train, in_test = (torch.bincount(each.labels, minlength=10) for each in (train, test))
    assert ((in_test / (in_train + in_test) - 0.2).abs() < 0.005).all()


def test_images_of_a_third_party_are_looked_at(monkeypatch):
    images, labels = torch.zeros(3, 1, 8, 8), torch.tensor([0, 1, 1])
    forms = "images (N, C, H, W) float32 and labels (N,) int64 from 0 to 1"
    numbers = "images of one shape and of finite numbers"
    for message, bad_images, bad_labels in (
        (forms, images.double(), labels),
        (forms, images[1:], labels),
        (forms, images[0], labels),
        (forms, images, labels + 1),
        (numbers, images / 0, labels),
        (numbers, images[:0], labels[:0]),
        (numbers, torch.zeros(3, 1, 8, 9), labels),
    ):
        both = ImageData("mine", ImageSet(images, labels), ImageSet(bad_images, bad_labels), 2)
        monkeypatch.setitem(DATASETS, "mine", Dataset("", "mlp", lambda *_, both=both: both))
        assert message in refusal("mine", None)
    monkeypatch.setitem(DATASETS, "mine", Dataset("", "mlp", lambda *_: (images, labels)))
    assert "the loader of mine must return ImageData, got tuple" in refusal("mine", None)
    both = ImageData("mine", ImageSet(images, labels), ImageSet(images, labels), 2.0)
    monkeypatch.setitem(DATASETS, "mine", Dataset("", "mlp", lambda *_: both))
    assert "classes of mine must be a whole number, got 2.0" in refusal("mine", None)
    monkeypatch.setitem(DATASETS, "mine", Dataset("", "mlp", lambda *_: {}["image"]))
    assert "the loader of mine fails: KeyError: 'image' (test_vision_data.py, line" in refusal("mine", None)
    with pytest.raises(ValueError, match="the loader of other must be a function, module:Name or Parquet"):
        register_dataset("other", "one more", 42)


def test_validation_leaves_the_test_images_alone():
    digits, held = load("digits"), load("digits", validation=True)
    assert len(held.test) == round(0.1 * len(digits.train))

    def counted(*sets: ImageSet) -> list[tuple[int, ...]]:
        whole = torch.cat([each.images for each in sets])
        whole = ((whole - whole.min()) / (whole.max() - whole.min()) * 16).round()
        return sorted(tuple(row) for row in whole.flatten(1).int().tolist())

    assert counted(held.train, held.test) == counted(digits.train)


@pytest.mark.parametrize(
    ("name", "package"),
    [("digits", "sklearn"), ("mnist", "pyarrow"), ("mnist", "PIL"), ("mnist", "huggingface_hub")],
)
def test_without_the_extra(tmp_path, monkeypatch, name, package):
    make(tmp_path)
    for module in [each for each in sys.modules if each.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)  # an ImportError, wherever it is imported
    message = refusal(name, None if package in ("sklearn", "huggingface_hub") else tmp_path)
    assert f"{name} needs {package}" in message
    assert "pip install 'cet-rl[vision]'" in message


SHARD = "{}-00000-of-00001.parquet"


class TestFolders:
    @pytest.mark.parametrize(
        ("inside", "file"),
        [
            *[(inside, "{}.parquet") for inside in ("mnist", ".")],
            ("mnist", SHARD),
            ("mnist/mnist", SHARD),
            ("mnist/plain_text", SHARD),
            ("plain_text", SHARD),
            ("data", SHARD),
        ],
    )
    def test_layouts(self, tmp_path, inside, file):
        make(tmp_path / inside, train=12, test=5, file=file)
        loaded = load("mnist", tmp_path)
        assert (len(loaded.train), len(loaded.test)) == (12, 5)

    def test_shards_in_order(self, tmp_path):
        encoded = [encode(each) for each in random_pixels("mnist", 6)]
        write(tmp_path, "train", columns(encoded[4:], [4, 5]), "{}-00001-of-00002.parquet")
        write(tmp_path, "train", columns(encoded[:4], [0, 1, 2, 3]), "{}-00000-of-00002.parquet")
        write(tmp_path, "test", columns(encoded[:1], [0]))
        assert load("mnist", tmp_path).train.labels.tolist() == [0, 1, 2, 3, 4, 5]

    @pytest.mark.parametrize("image", ["image", "img"])
    @pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100"])
    def test_values(self, tmp_path, capfd, name, image):
        """In the columns of the hub, labels of CIFAR-100 in `fine_label` beside coarse ones; all is silent."""
        described, pixels = source(name), make(tmp_path / name, name, image)
        loaded = load(name, str(tmp_path))
        assert capfd.readouterr() == ("", "")
        assert (loaded.in_shape, loaded.classes) == (described.shape, 100 if name == "cifar100" else 10)
        assert loaded.flips == (name in ("cifar10", "cifar100"))
        mean, deviation = pixels["train"].mean(), pixels["train"].std()
        for split, images in (("train", loaded.train), ("test", loaded.test)):
            plain = pixels[split].reshape(len(images), *described.shape[1:], -1)
            expected = (plain - mean) / deviation * described.deviation + described.mean
            np.testing.assert_allclose(images.images.numpy(), expected.transpose(0, 3, 1, 2), atol=1e-5)
            assert images.images.is_contiguous()
            assert images.labels.tolist() == [n * 7 % described.classes for n in range(len(images))]

    def test_jpeg_and_plain_bytes(self, tmp_path):
        pixels = np.full((28, 28), 7, np.uint8)
        pixels[:14] = 200
        table = pa.table({"image": [encode(pixels, "JPEG")] * 3, "label": pa.array([1, 2, 3], pa.uint8())})
        for split in ("train", "test"):
            write(tmp_path, split, table)
        assert load("mnist", tmp_path).train.labels.tolist() == [1, 2, 3]

    def test_validation_does_not_read_the_test_file(self, tmp_path):
        make(tmp_path)
        (tmp_path / "test.parquet").unlink()
        first, second = (load("mnist", tmp_path, validation=True) for _ in range(2))
        assert (len(first.train), len(first.test)) == (36, 4)
        assert torch.equal(first.test.labels, second.test.labels)
        assert first.train.images.mean().item() == pytest.approx(0.5, abs=1e-5)


GOOD = encode(np.arange(784, dtype=np.uint8).reshape(28, 28))


class TestRefusals:
    def test_folders(self, tmp_path):
        assert "mean mnist" in refusal("minst", tmp_path)
        assert "--data-dir" in refusal("digits", tmp_path)
        message = refusal("mnist", tmp_path / "none", OSError)
        assert "does not exist" in message
        assert "mnist/train.parquet" in message
        (tmp_path / "file").touch()
        assert "is no folder" in refusal("mnist", tmp_path / "file", OSError)
        assert "no train.parquet and no test.parquet in" in refusal("mnist", tmp_path, OSError)
        make(tmp_path)
        (tmp_path / "test.parquet").unlink()
        assert "no test.parquet" in refusal("mnist", tmp_path, OSError)
        (tmp_path / "train.parquet").rename(tmp_path / "train-00000-of-00002.parquet")
        assert "has train-00000-of-00002, which is no whole set: copy" in refusal("mnist", tmp_path, OSError)
        write(tmp_path, "test", columns([GOOD], [0]))
        write(tmp_path, "train-00001-of-00002", columns([GOOD], ["seven"]))
        assert "not hold images of one kind" in refusal("mnist", tmp_path)

    @pytest.mark.parametrize("split", ["train", "test"])
    @pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
    def test_truncated_file(self, tmp_path, split, share):
        make(tmp_path)
        path = tmp_path / f"{split}.parquet"
        whole = path.read_bytes()
        path.write_bytes(whole[: int(share * len(whole))])
        assert f"{path} is damaged or no Parquet file" in refusal("mnist", tmp_path)

    def test_other_files(self, tmp_path):
        make(tmp_path)
        path = tmp_path / "train.parquet"
        content = path.read_bytes()
        middle = len(content) // 2
        path.write_bytes(content[:4] + bytes(middle - 4) + content[middle:])  # damaged pages
        assert str(path) in refusal("mnist", tmp_path)
        path.write_text("<html>not found</html>" * 100)
        assert "no Parquet file" in refusal("mnist", tmp_path)

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
    def test_file_without_permission(self, tmp_path):
        make(tmp_path)
        (tmp_path / "train.parquet").chmod(0)
        assert "Permission denied" in refusal("mnist", tmp_path, PermissionError)

    @pytest.mark.parametrize(
        ("table", "words"),
        [
            (pa.table({"picture": [b""], "digit": [1]}), ["picture, digit", "image (or img) and label"]),
            (pa.table({"image": ["a.png"], "label": [1]}), ["the image in row 0 cannot be decoded"]),
            (columns([GOOD], ["seven"]), ["column label is of type string", "whole numbers from 0 to 9"]),
            (columns([GOOD], [1.0]), ["column label is of type double"]),
            (columns([GOOD, GOOD], [0, 10]), ["labels go from 0 to 10; needed are whole numbers from 0 to 9"]),
            (columns([GOOD, GOOD], [0, -1]), ["labels go from -1 to 0"]),
            (columns([GOOD, GOOD], [0, None]), ["row 1 has no label"]),
            (columns([b""], [1]).slice(0, 0), ["holds no images"]),
            (columns([GOOD, None], [0, 1]), ["the image in row 1 cannot be decoded"]),
        ],
        ids=lambda value: str(value)[:30] if isinstance(value, list) else "",
    )
    @pytest.mark.parametrize("split", ["train", "test"])
    def test_wrong_tables(self, tmp_path, split, table, words):
        make(tmp_path)
        write(tmp_path, split, table)
        message = refusal("mnist", tmp_path)
        for word in [f"{split}.parquet", *words]:
            assert word in message

    @pytest.mark.parametrize(
        ("bad", "hint"),
        [
            (b"", "cannot be decoded as PNG or JPEG"),
            *[(bad, "cannot be decoded") for bad in (b"nonsense", GOOD[: len(GOOD) // 2])],
            (encode(np.zeros((28, 28), np.uint8), "GIF"), "cannot be decoded"),
            (encode(np.zeros((28, 27), np.uint8)), "has 27×28 pixels, 8-bit grey; needed are 28×28 pixels"),
            (encode(np.zeros((28, 28, 3), np.uint8)), "has 28×28 pixels, 8-bit RGB"),
        ],
        ids=["empty", "text", "half", "GIF", "narrow", "RGB"],
    )
    def test_image_that_is_none(self, tmp_path, bad, hint):
        make(tmp_path)
        write(tmp_path, "train", columns([GOOD, GOOD, bad, GOOD], [0, 1, 2, 3]))
        assert f"the image in row 2 {hint}" in refusal("mnist", tmp_path)

    def test_another_data_set(self, tmp_path):
        make(tmp_path, "mnist")
        assert "needed are 32×32 pixels, 8-bit RGB" in refusal("cifar10", tmp_path)
        make(tmp_path, "cifar10")
        assert "needed are image (or img) and fine_label" in refusal("cifar100", tmp_path)
        make(tmp_path, "cifar100")
        write(tmp_path, "train", columns([encode(random_pixels("cifar100", 1)[0])], [100], label="fine_label"))
        assert "labels go from 100 to 100; needed are whole numbers from 0 to 99" in refusal("cifar100", tmp_path)

    def test_all_pixels_alike(self, tmp_path):
        for split in ("train", "test"):
            write(tmp_path, split, columns([encode(np.zeros((28, 28), np.uint8))] * 4, [0, 1, 2, 3]))
        assert "the same" in refusal("mnist", tmp_path)
        assert "too few" in refusal("mnist", tmp_path, validation=True)


class TestHub:
    """The hub's own code, on snapshots in its cache; nothing is downloaded."""

    @pytest.fixture(autouse=True)
    def _cache(self, tmp_path, monkeypatch):
        pytest.importorskip("huggingface_hub", reason="needs the extra vision")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr(data, "_hub_answers", lambda: False)

    @staticmethod
    def snapshot(tmp_path: Path, name: str, inside: str) -> Path:
        """A repository in the cache, as the library keeps it; returns the folder of its files."""
        cached = tmp_path / "cache" / f"datasets--{source(name).repository.replace('/', '--')}"
        folder = cached / "snapshots" / ("0" * 40) / inside
        make(folder, name, file=SHARD)
        (cached / "refs").mkdir()
        (cached / "refs" / "main").write_text("0" * 40)
        return folder

    @pytest.mark.parametrize(
        ("name", "inside"), [("mnist", "mnist"), ("cifar10", "plain_text"), ("fashion_mnist", "fashion_mnist")]
    )
    def test_cache_serves_without_network(self, tmp_path, capfd, name, inside):
        from huggingface_hub import snapshot_download  # noqa: F401  (sets the level)
        from huggingface_hub.utils import are_progress_bars_disabled

        folder = self.snapshot(tmp_path, name, inside)
        level = logging.getLogger("huggingface_hub").level
        loaded = load(name)
        assert (len(loaded.train), len(loaded.test)) == (40, 10)
        assert torch.equal(loaded.train.images, load(name, folder).train.images)
        assert capfd.readouterr() == ("", "")
        assert not are_progress_bars_disabled()
        assert logging.getLogger("huggingface_hub").level == level

    def test_only_what_is_needed_is_fetched(self, tmp_path, monkeypatch):
        asked = []

        def fetch(repository: str, **options: Any) -> str:
            asked.append((repository, options["allow_patterns"], options["local_files_only"]))
            return str(self.snapshot(tmp_path, "mnist", "mnist").parent)

        monkeypatch.setattr(data, "_hub_answers", lambda: True)
        monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
        assert len(load("mnist", validation=True).train) == 36
        assert asked == [("ylecun/mnist", ["*train*.parquet"], False)]

    def test_offline(self, monkeypatch, capfd):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        message = refusal("mnist", None, OSError)
        assert "HF_HUB_OFFLINE is set" in message
        assert "--data-dir DIR" in message
        assert capfd.readouterr() == ("", "")

    def test_hub_that_does_not_answer(self, monkeypatch):
        monkeypatch.undo()
        monkeypatch.setattr(data, "CONNECT_SECONDS", 0.2)
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen(5)
            url = f"http://127.0.0.1:{silent.getsockname()[1]}"
            monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
            start = time.perf_counter()
            message = refusal("cifar10", None, OSError)
            assert time.perf_counter() - start < 10
        assert "does not answer" in message
        assert "--data-dir DIR" in message

    def test_other_failures(self, tmp_path, monkeypatch):
        def fail(repository: str, **options: Any) -> str:
            raise RuntimeError("no space left\nat all")

        monkeypatch.setattr(data, "_hub_answers", lambda: True)
        monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
        assert "no space left at all; without" in refusal("mnist", None, OSError)
        monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path))
        assert "no train.parquet and no test.parquet in" in refusal("mnist", None, OSError)


def numbered(count: int, shape: tuple[int, ...] = (1, 2, 3)) -> ImageSet:
    """Images whose pixels name them: 100 × index + position."""
    pixels = torch.arange(math.prod(shape), dtype=torch.float32).view(shape)
    return ImageSet(100.0 * torch.arange(count).view(-1, 1, 1, 1) + pixels, torch.arange(count))


def take(batches: Batches, count: int) -> list[tuple[Tensor, Tensor]]:
    return [next(batches) for _ in range(count)]


def same(first: list[tuple[Tensor, Tensor]], second: list[tuple[Tensor, Tensor]]) -> bool:
    pairs = zip(first, second, strict=True)
    return all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in pairs)


class TestBatches:
    @pytest.mark.parametrize("size", [11, 9])
    def test_epochs(self, size):
        images = numbered(size)
        batches = Batches(images, 3, seed=4)
        epochs = []
        for _ in range(3):
            drawn = take(batches, 3)  # of eleven, the two left over are dropped
            for x, y in drawn:
                assert x.shape == (3, 1, 2, 3)
                assert x.is_contiguous()
                assert torch.equal(x, images.images[y])
            epochs.append(torch.cat([y for _, y in drawn]).tolist())
        assert all(len(set(epoch)) == 9 for epoch in epochs)
        assert epochs[0] != epochs[1] != epochs[2]

    def test_seed_decides(self):
        images, before = numbered(20), torch.get_rng_state()
        assert same(take(Batches(images, 4, 1, flips=True), 12), take(Batches(images, 4, 1, flips=True), 12))
        assert not same(take(Batches(images, 4, 1), 12), take(Batches(images, 4, 2), 12))
        assert torch.equal(torch.get_rng_state(), before)

    def test_flips(self):
        images = numbered(400)
        batches = Batches(images, 400, seed=3, flips=True)
        flipped = torch.empty(2, 400, dtype=torch.bool)
        for epoch in range(2):
            x, y = next(batches)
            plain = images.images[y]
            mirrored = (x == plain.flip(3)).flatten(1).all(1)
            assert torch.equal(x[~mirrored], plain[~mirrored])
            flipped[epoch, y] = mirrored
        assert 0.4 < flipped.float().mean() < 0.6
        assert 0.4 < (flipped[0] == flipped[1]).float().mean() < 0.6  # drawn anew each epoch

    @pytest.mark.parametrize("flips", [False, True])
    @pytest.mark.parametrize("done", [0, 1, 3, 5, 10])
    def test_resumes_exactly(self, tmp_path, flips, done):
        images = numbered(17)
        batches = Batches(images, 5, seed=8, flips=flips)
        take(batches, done)
        state = batches.state_dict()
        rest = take(batches, 20)
        torch.save(state, tmp_path / "state.pt")  # it is of its moment
        resumed = Batches(images, 5, seed=99, flips=flips)
        take(resumed, 2)
        resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        assert same(take(resumed, 20), rest)

    def test_foreign_states(self):
        batches = Batches(numbered(17), 5)
        next(batches)
        for other in (Batches(numbered(18), 5), Batches(numbered(17), 5, flips=True)):
            next(other)
            with pytest.raises(ValueError, match="no state of a stream of batches from 17 images"):
                batches.load_state_dict(other.state_dict())

    @pytest.mark.parametrize("size", [0, -1, 18])
    def test_batch_size(self, size):
        with pytest.raises(ValueError, match=f"from 1 to 17, all images, got {size}"):
            Batches(numbered(17), size)

    @pytest.mark.cuda
    def test_same_order_on_cuda(self):
        images = numbered(40)
        here = take(Batches(images, 16, 5, flips=True), 9)
        there = take(Batches(images.to("cuda"), 16, 5, flips=True), 9)
        assert there[0][0].is_cuda
        assert same(here, [(x.cpu(), y.cpu()) for x, y in there])


MLP: dict[str, Any] = {"hidden": (512, 512)}
CNN: dict[str, Any] = {"channels": (32, 64, 128), "hidden": (512,)}
KINDS = pytest.mark.parametrize("options", [MLP, CNN], ids=["mlp", "cnn"])


class TestModels:
    @pytest.mark.parametrize(
        ("shape", "channels", "hidden", "features"),
        [
            ((1, 28, 28), (), (512, 512), 784),
            ((3, 4, 4), (), (9,), 48),
            ((3, 4, 4), (), (), 48),
            ((1, 28, 28), (32, 64, 128), (512,), 1152),
            ((3, 32, 32), (32, 64, 128), (512,), 2048),
            ((1, 8, 8), (32, 64, 128), (512,), 128),
            ((2, 17, 25), (32, 64, 128), (512,), 768),
            ((1, 4, 4), (5, 6), (7, 8), 6),
        ],
    )
    def test_layers(self, shape, channels, hidden, features):
        model = image_network(shape, 10, channels, hidden)
        kinds = ["Conv2d", "ReLU", "AvgPool2d", "BatchNorm2d"] * len(channels)
        kinds += ["Flatten", *["Linear", "ReLU"] * len(hidden), "Linear"]
        assert [type(each).__name__ for each in model] == kinds
        dense = [each for each in model if isinstance(each, nn.Linear)]
        assert [each.in_features for each in dense] == [features, *hidden]
        assert not any(each.affine for each in model if isinstance(each, nn.BatchNorm2d))
        assert model(torch.randn(4, *shape)).shape == (4, 10)

    @KINDS
    def test_initialisation(self, options):
        for layer in image_network((3, 32, 32), 10, **options, generator=torch.Generator().manual_seed(1)):
            if not isinstance(layer, nn.Linear | nn.Conv2d):
                continue
            outputs, inputs, *kernel = layer.weight.shape
            bound = math.sqrt(6 / ((inputs + outputs) * math.prod(kernel)))
            assert 0.95 * bound < layer.weight.abs().max().item() <= bound
            assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
            bound = math.sqrt(6 / (1 + outputs))
            assert 0.5 * bound < layer.bias.abs().max().item() <= bound
            assert layer.weight.requires_grad
            assert layer.bias.requires_grad
            assert layer.weight.device.type == "cpu"

    @KINDS
    def test_seeded_without_the_global_generator(self, options):
        before = torch.get_rng_state()
        one, two, other = (
            image_network((1, 8, 8), 10, **options, generator=torch.Generator().manual_seed(seed)).state_dict()
            for seed in (1, 1, 2)
        )
        assert torch.equal(torch.get_rng_state(), before)
        assert all(torch.equal(one[key], two[key]) for key in one)
        first = next(iter(one))
        assert not torch.equal(one[first], other[first])

    def test_images_that_are_too_small(self):
        with pytest.raises(ValueError, match=r"7×30 pixels are too small for 3 stages.*at least 8×8"):
            image_network((1, 7, 30), 10, (32, 64, 128))
