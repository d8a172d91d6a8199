"""The data modules: readers, split, statistics, stages, and what reaches a network; on small files made here."""

import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torchvision
from jsonargparse import ArgumentParser
from PIL import Image

from smallnets.data import CIFAR10, CIFAR100, MNIST, Digits, ImageData, ImageFolder, ImageNet64
from smallnets.data.arrays import Arrays
from smallnets.data.loader import Place
from smallnets.data.modules import _fits
from smallnets.errors import RunError, UserError

Published = dict[str, np.ndarray]


def _batch(rng: np.random.Generator, count: int, classes: int, size: int) -> tuple[np.ndarray, list[int]]:
    return rng.integers(0, 256, (count, 3 * size * size), dtype=np.uint8), [i % classes for i in range(count)]


def cifar(root: Path, **options: Any) -> CIFAR10:
    return CIFAR10(root=str(root), download=False, **{"batch_size": 16, **options})


def ready(data: ImageData, stage: str = "fit") -> ImageData:
    data.prepare_data()
    data.setup(stage)
    return data


# -- the split law and the statistics ------------------------------------------------------------------------------


def test_cifar10_is_read_split_and_counted(fake_cifar: Path) -> None:
    data = ready(cifar(fake_cifar))
    assert (data.num_classes, data.in_channels, data.image_size, data.name) == (10, 3, 32, "CIFAR10")
    assert data.split_sizes == {"train": 180, "val": 20}
    assert data.labels("train").bincount().tolist() == [18] * 10
    assert data.labels("val").bincount().tolist() == [2] * 10
    assert data.classes[3] == "kind 3"
    # Pixels come out as the files hold them: planes of rows.
    raw = pickle.loads((fake_cifar / "cifar-10-batches-py" / "data_batch_2").read_bytes())
    assert np.array_equal(data._parts.train.images[40:80].numpy().reshape(40, -1), raw["data"])


def test_numpys_remark_on_old_pickles_is_not_an_error(fake_cifar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = pickle.load

    def remarking(*args: Any, **more: Any) -> Any:
        remark = "dtype(): align should be passed as Python or NumPy boolean but got `align=0`."
        warnings.warn(remark, np.exceptions.VisibleDeprecationWarning, stacklevel=2)
        return load(*args, **more)

    monkeypatch.setattr(pickle, "load", remarking)
    assert ready(cifar(fake_cifar)).split_sizes == {"train": 180, "val": 20}


def test_the_split_depends_on_its_seed_alone(fake_cifar: Path) -> None:
    one = ready(cifar(fake_cifar, split_seed=1, batch_size=8, order_seed=4, augment=["flip"]))._parts
    same = ready(cifar(fake_cifar, split_seed=1, order_seed=9))._parts
    other = ready(cifar(fake_cifar, split_seed=2))._parts
    assert np.array_equal(one.val_indices, same.val_indices)
    assert not np.array_equal(one.val_indices, other.val_indices)
    assert not set(one.val_indices) & set(one.train_indices)


def test_statistics_are_those_of_the_training_split(fake_cifar: Path) -> None:
    data = ready(cifar(fake_cifar))
    pixels = data._parts.train.images[data._parts.train_indices].numpy().astype(np.float64) / 255
    np.testing.assert_allclose(data.true_mean, pixels.mean((0, 2, 3)), rtol=0, atol=1e-12)
    np.testing.assert_allclose(data.true_std, pixels.std((0, 2, 3)), rtol=0, atol=1e-12)
    assert (data.mean, data.std) == (data.true_mean, data.true_std)
    given = ready(cifar(fake_cifar, mean=[0.5, 0.5, 0.5], std=[0.1, 0.2, 0.3]))
    assert given.mean == [0.5, 0.5, 0.5]
    assert given.std == [0.1, 0.2, 0.3]
    assert given.true_mean == data.true_mean


def test_statistics_in_the_head_and_constant_channels() -> None:
    from smallnets.data.arrays import channel_statistics

    images = torch.tensor([0, 255, 255, 0], dtype=torch.uint8).view(4, 1, 1, 1)
    assert channel_statistics(images, np.arange(4), "it") == ([0.5], [0.5])
    with pytest.raises(RunError, match=r"it: channel 0 has one value.*set --data.std"):
        channel_statistics(images, np.array([1, 2]), "it")


def test_train_size_takes_a_stratified_subset(fake_cifar: Path) -> None:
    whole, some = ready(cifar(fake_cifar)), ready(cifar(fake_cifar, train_size=50))
    assert some.split_sizes == {"train": 50, "val": 20}
    assert some.labels("train").bincount().tolist() == [5] * 10
    assert set(some._parts.train_indices) < set(whole._parts.train_indices)
    assert np.array_equal(some._parts.val_indices, whole._parts.val_indices)
    assert some.mean == whole.mean
    assert some.digest != whole.digest
    assert ready(cifar(fake_cifar, train_size=180)).digest == whole.digest
    for wrong in (9, 171, 181):
        with pytest.raises(UserError, match=f"train_size={wrong}: .* 10 classes; allowed: 10 .. 170, or 180"):
            ready(cifar(fake_cifar, train_size=wrong))


def test_the_digest_knows_pixels_and_labels(fake_cifar: Path) -> None:
    first = ready(cifar(fake_cifar)).digest
    assert len(first) == 64
    assert ready(cifar(fake_cifar, order_seed=3)).digest == first
    assert ready(cifar(fake_cifar, split_seed=3)).digest != first
    data = ready(cifar(fake_cifar))
    data._parts.train.images[int(data._parts.train_indices[0]), 0, 0, 0] ^= 1
    assert data.digest != first


# -- stages --------------------------------------------------------------------------------------------------------


def test_only_the_test_stage_reads_test_images(fake_cifar: Path) -> None:
    (fake_cifar / "cifar-10-batches-py" / "test_batch").write_bytes(b"not to be opened")
    data = ready(cifar(fake_cifar))
    data.setup("validate")
    data.setup("predict")
    assert sum(len(labels) for _, labels, _ in data.predict_dataloader()) == 20
    with pytest.raises(UserError, match=r"call setup\('test'\) first"):
        data.test_dataloader()
    with pytest.raises(pickle.UnpicklingError):
        data.setup("test")


def test_the_test_stage_with_given_statistics_reads_nothing_else(fake_cifar: Path) -> None:
    for i in range(1, 6):
        (fake_cifar / "cifar-10-batches-py" / f"data_batch_{i}").write_bytes(b"not to be opened")
    data = ready(cifar(fake_cifar, mean=[0.5] * 3, std=[0.5] * 3), "test")
    assert data.split_sizes == {"test": 40}
    assert sum(len(labels) for _, labels, _ in data.test_dataloader()) == 40


def test_predicting_a_folder(fake_cifar: Path, tmp_path: Path) -> None:
    (tmp_path / "mine" / "deep").mkdir(parents=True)
    for name, colour in (("b.png", (255, 0, 0)), ("deep/c.jpg", (0, 0, 255)), ("a.png", (0, 255, 0))):
        Image.new("RGB", (40, 64), colour).save(tmp_path / "mine" / name)
    (tmp_path / "mine" / "notes.txt").write_text("no image")
    data = ready(cifar(fake_cifar, predict_from=str(tmp_path / "mine")), "predict")
    assert [f.name for f in data.predict_files] == ["a.png", "b.png", "c.jpg"]
    [(images, labels, place)] = list(data.predict_dataloader())
    assert place is None
    assert labels.tolist() == [-1, -1, -1]
    assert images[1].flatten(1)[:, 0].tolist() == [255, 0, 0]
    with pytest.raises(UserError, match=r"predict_from=.*no images"):
        ready(cifar(fake_cifar, predict_from=str(tmp_path / "none")), "predict")


# -- what reaches a network ----------------------------------------------------------------------------------------


def through(data: ImageData, loader: Any) -> list[torch.Tensor]:
    return [data.on_after_batch_transfer(batch, 0)[0] for batch in loader]


def test_validation_and_test_images_are_never_augmented(fake_cifar: Path) -> None:
    data = ready(cifar(fake_cifar, augment=["autoaugment", "crop", "flip", "cutout", "erase"]))
    data.setup("test")
    plain = ready(cifar(fake_cifar))
    plain.setup("test")
    for loader in ("val_dataloader", "test_dataloader", "predict_dataloader"):
        seen = through(data, getattr(data, loader)())
        expected = through(plain, getattr(plain, loader)())
        assert all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))
    raw = data._parts.train.images[data._parts.val_indices].numpy() / 255
    expected = (raw - np.reshape(data.mean, (3, 1, 1))) / np.reshape(data.std, (3, 1, 1))
    np.testing.assert_allclose(torch.cat(through(data, data.val_dataloader())).numpy(), expected, rtol=0, atol=1e-5)
    assert not torch.equal(*(through(d, d.train_dataloader())[0] for d in (data, plain)))


def test_augmentation_is_a_function_of_seed_and_place(fake_cifar: Path) -> None:
    data = ready(cifar(fake_cifar, augment=["crop", "flip"], augment_seed=3))
    batch = next(iter(data.train_dataloader()))
    images, labels, place = batch
    assert place is not None

    def result(where: dict[str, int], module: ImageData = data) -> torch.Tensor:
        return module.on_after_batch_transfer((images, labels, Place(**{**place._asdict(), **where})), 0)[0]

    first = result({})
    torch.rand(7)
    assert torch.equal(result({}), first)
    for where in ({"epoch": 1}, {"batch": 1}, {"rank": 1}, {"world_size": 2}):
        assert not torch.equal(result(where), first)
    other = ready(cifar(fake_cifar, augment=["crop", "flip"], augment_seed=4))
    assert not torch.equal(result({}, other), first)


def test_seeds_default_to_the_runs(fake_cifar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def epoch(**options: Any) -> torch.Tensor:
        data = ready(cifar(fake_cifar, augment=["flip"], **options))
        return torch.cat(through(data, data.train_dataloader()))

    monkeypatch.setenv("PL_GLOBAL_SEED", "8")
    of_the_run = epoch()
    monkeypatch.delenv("PL_GLOBAL_SEED")
    assert torch.equal(epoch(order_seed=8, augment_seed=8), of_the_run)
    assert not torch.equal(epoch(), of_the_run)
    assert torch.equal(epoch(), epoch(order_seed=0, augment_seed=0))


def test_batches_and_evaluation_sizes(fake_cifar: Path) -> None:
    data = ready(cifar(fake_cifar, batch_size=16))
    assert data.batches_per_epoch() == len(data.train_dataloader()) == 12  # 180 = 11 x 16 + 4
    assert data.batches_per_epoch(world_size=2) == 6
    assert len(data.val_dataloader()) == 1  # 512 and no more than there are
    assert [len(labels) for _, labels, _ in ready(cifar(fake_cifar, eval_batch_size=8)).val_dataloader()] == [8, 8, 4]
    with pytest.raises(UserError, match="batch_size=181 is more than the 180 images"):
        ready(cifar(fake_cifar, batch_size=181)).train_dataloader()


class Watcher(L.LightningModule):
    """Keeps the images and labels of every step, and trains one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(3 * 8 * 8, 10)
        self.seen: dict[str, list[torch.Tensor]] = {"train": [], "val": [], "test": []}

    def _step(self, split: str, batch: Any) -> torch.Tensor:
        images, labels = batch
        self.seen[split].append(images)
        return torch.nn.functional.cross_entropy(self.net(images.flatten(1)), labels)

    def training_step(self, batch: Any) -> torch.Tensor:
        return self._step("train", batch)

    def validation_step(self, batch: Any) -> None:
        self._step("val", batch)

    def test_step(self, batch: Any) -> None:
        self._step("test", batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated")
@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_under_a_trainer(precision: Any, tmp_path: Path) -> None:
    def run(augment: list[Any]) -> Watcher:
        data = Digits(image_size=8, batch_size=256, augment=augment)
        trainer = L.Trainer(
            max_epochs=2,
            precision=precision,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=2,
            default_root_dir=tmp_path,
        )
        watcher = Watcher()
        trainer.fit(watcher, datamodule=data)
        trainer.test(watcher, datamodule=data, verbose=False)
        return watcher

    plain, augmented, again = run([]), run(["crop", "flip"]), run(["crop", "flip"])
    assert [len(x) for x in plain.seen["train"]] == [256, 256, 256, 256, 256, 68] * 2
    assert plain.seen["train"][0].dtype == {"32-true": torch.float32, "bf16-true": torch.bfloat16}[precision]
    for split, changed in (("train", True), ("val", False), ("test", False)):
        a, b, c = (torch.cat(w.seen[split]) for w in (plain, augmented, again))
        assert torch.equal(b, c)
        assert torch.equal(a, b) != changed
    assert len(torch.cat(plain.seen["test"])) == 299


# -- the other sets ------------------------------------------------------------------------------------------------


def test_digits() -> None:
    data = ready(Digits())
    data.setup("test")
    assert data.split_sizes == {"train": 1348, "val": 150, "test": 299}
    images = data._parts.train.images
    assert images.shape == (1498, 3, 32, 32)
    assert torch.equal(images[:, 0], images[:, 2])
    assert (int(images.min()), int(images.max())) == (0, 255)
    # Each of the 8 x 8 values is a block of 4 x 4.
    assert torch.equal(images[:, :, ::4, ::4].repeat_interleave(4, 2).repeat_interleave(4, 3), images)
    grey = ready(Digits(image_size=12, in_channels=1))
    assert grey._parts.train.images.shape == (1498, 1, 12, 12)
    assert grey.in_channels == 1
    with pytest.raises(UserError, match="in_channels is 1 or 3, not 4"):
        Digits(in_channels=4)
    with pytest.raises(UserError, match="image_size is 1 or more, not 0"):
        Digits(image_size=0)


def test_cifar100_and_its_fine_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    rng = np.random.default_rng(1)
    for name in ("train", "test"):
        pixels, labels = _batch(rng, 300, 100, 32)
        content = {"data": pixels, "fine_labels": labels, "coarse_labels": [0] * 300}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [str(i) for i in range(100)]}))
    reader = torchvision.datasets.CIFAR100
    monkeypatch.setattr(reader, "train_list", [["train", None]])
    monkeypatch.setattr(reader, "test_list", [["test", None]])
    monkeypatch.setattr(reader, "meta", reader.meta | {"md5": None})
    data = ready(CIFAR100(root=str(tmp_path)))
    assert data.num_classes == 100
    # 30 by share, and one of each class.
    assert data.split_sizes == {"train": 200, "val": 100}


def _idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(header + array.tobytes())


def test_mnist(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(2)
    counts = {"train": 100, "t10k": 20}
    pixels = {stem: rng.integers(0, 256, (n, 28, 28), dtype=np.uint8) for stem, n in counts.items()}
    for stem, images in pixels.items():
        _idx(raw / f"{stem}-images-idx3-ubyte", images)
        _idx(raw / f"{stem}-labels-idx1-ubyte", (np.arange(len(images)) % 10).astype(np.uint8))
    data = ready(MNIST(root=str(tmp_path)))
    data.setup("test")
    assert (data.in_channels, data.image_size) == (1, 28)
    assert data.split_sizes == {"train": 90, "val": 10, "test": 20}
    assert np.array_equal(data._parts.train.images[:, 0].numpy(), pixels["train"])
    assert data.classes[9] == "9"
    short = raw / "train-images-idx3-ubyte"
    short.write_bytes(short.read_bytes()[:-1])
    with pytest.raises(
        RunError, match="train-images-idx3-ubyte is damaged: it has 78415 bytes, and 78416 by its header"
    ):
        ready(MNIST(root=str(tmp_path)))


@pytest.fixture
def fake_imagenet(tmp_path: Path) -> tuple[Path, Published]:
    rng = np.random.default_rng(3)
    truth = {}
    for name in [*(f"train_data_batch_{i}" for i in range(1, 11)), "val_data"]:
        data, labels = _batch(rng, 8, 4, 64)
        numbers = [label + 1 for label in labels]
        truth[name] = data
        content = {"data": data, "labels": numbers, "mean": data.mean(0)}
        if name == "train_data_batch_10":  # the other published form
            np.savez(tmp_path / name, data=data, labels=np.array(numbers))
        else:
            (tmp_path / name).write_bytes(pickle.dumps(content, protocol=2))
    return tmp_path, truth


def test_imagenet64_is_converted_once_and_mapped(fake_imagenet: tuple[Path, Published]) -> None:
    root, truth = fake_imagenet
    data = ready(ImageNet64(root=str(root), cache=str(root / "cache"), batch_size=8))
    data.setup("test")
    assert (data.num_classes, data.image_size) == (1000, 64)
    assert data.split_sizes == {"train": 72, "val": 8, "test": 8}
    assert data.labels("test").tolist() == [0, 1, 2, 3] * 2
    expected = np.concatenate([truth[f"train_data_batch_{i}"] for i in range(1, 11)])
    assert np.array_equal(data._parts.train.images.numpy().reshape(80, -1), expected)
    assert data._parts.train.mapped
    pixels = data._parts.train.images[data._parts.train_indices].numpy() / 255.0
    np.testing.assert_allclose(data.mean, pixels.mean((0, 2, 3)), rtol=0, atol=1e-12)
    names = {p.name for p in (root / "cache").iterdir()}
    assert names == {
        *(f"imagenet64-{part}-{what}.npy" for part in ("train", "test") for what in ("images", "labels")),
        "imagenet64-computed.json",
    }
    # What was published is not needed any more, and figures are not computed again.
    for name in truth:
        (root / name).unlink(missing_ok=True)
    again = ready(ImageNet64(root=str(root), cache=str(root / "cache"), batch_size=8))
    assert again.mean == data.mean
    assert again.digest == data.digest
    images, labels, _ = next(iter(again.train_dataloader()))
    assert images.shape == (8, 3, 64, 64)
    # Image i of a batch file has class i % 4, and no two images are the same.
    whole = again._parts.train.images
    assert [int((whole == image).flatten(1).all(1).nonzero()) % 4 for image in images] == labels.tolist()


def test_imagenet64_says_what_is_wrong(fake_imagenet: tuple[Path, Published]) -> None:
    root, _ = fake_imagenet
    broken = root / "train_data_batch_3"
    good = pickle.loads(broken.read_bytes())

    def message(content: bytes | None) -> str:
        broken.unlink(missing_ok=True)
        if content is not None:
            broken.write_bytes(content)
        with pytest.raises(RunError) as caught:
            ready(ImageNet64(root=str(root)))
        assert not [p for p in root.iterdir() if p.suffix in (".part", ".npy")]
        return str(caught.value)

    assert "train_data_batch_3 (or train_data_batch_3.npz) is missing" in message(None)
    assert "has labels 0 .. 3; 1 .. 1000" in message(pickle.dumps(good | {"labels": [0, 1, 2, 3] * 2}))
    assert "holds data uint8 (8, 12) for 8 labels" in message(pickle.dumps(good | {"data": good["data"][:, :12]}))
    assert "is damaged" in message(b"rubbish")
    assert "os.system" in message(b"cos\nsystem\n.")  # a pickle that would run a command


def _pictures(folder: Path, count: int, colour: int) -> None:
    folder.mkdir(parents=True)
    for i in range(count):
        picture = np.full((20, 30, 3), colour, dtype=np.uint8)
        picture[:, :, 1] = i
        Image.fromarray(picture).save(folder / f"{i:02}.png")


def test_folder_with_a_test_part(tmp_path: Path) -> None:
    for label, name in enumerate(("cat", "dog")):
        _pictures(tmp_path / "train" / name, 10, 50 + label)
        _pictures(tmp_path / "test" / name, 3, 90 + label)
    data = ready(ImageFolder(root=str(tmp_path), image_size=16, batch_size=4))
    data.setup("test")
    assert data.num_classes == 2
    assert data.classes == ["cat", "dog"]
    assert data.split_sizes == {"train": 18, "val": 2, "test": 6}
    [(images, labels, _)] = list(data.test_dataloader())
    assert images[:, 0, 8, 8].tolist() == [90, 90, 90, 91, 91, 91]
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert images.shape == (6, 3, 16, 16)
    (tmp_path / "test" / "cow").mkdir()
    with pytest.raises(UserError, match=r"has classes that .*train has not: cow"):
        ready(ImageFolder(root=str(tmp_path)), "test")


def test_folder_alone_is_split_in_three_without_opening_test_files(tmp_path: Path) -> None:
    for label, name in enumerate(("a", "b")):
        _pictures(tmp_path / name, 60, 50 + label)
    data = ImageFolder(root=str(tmp_path), image_size=8, in_channels=1, batch_size=8)
    parts = {part: data.source.files(part)[0] for part in ("train", "test")}  # type: ignore[attr-defined]
    assert not set(parts["train"]) & set(parts["test"])
    for path in parts["test"]:
        path.write_bytes(b"not to be opened")
    assert ready(data).split_sizes == {"train": 90, "val": 10}
    assert data._parts.train.images.shape == (100, 1, 8, 8)
    with pytest.raises(RunError, match=f"{parts['test'][0].name} cannot be read as an image"):
        data.setup("test")


def test_decoding_resizes_the_shorter_side_and_cuts_the_middle(tmp_path: Path) -> None:
    from smallnets.data.folder import decode

    wide = np.zeros((10, 30), dtype=np.uint8)
    wide[:, 10:20] = 200  # the middle third
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(wide.T.copy()).save(tmp_path / "tall.png")
    images = decode([tmp_path / "wide.png", tmp_path / "tall.png"], 10, 1)
    assert images.unique().tolist() == [200]
    assert decode([tmp_path / "wide.png"], 5, 3).shape == (1, 3, 5, 5)


def test_folder_mistakes(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"there is no folder .*none"):
        ImageFolder(root=str(tmp_path / "none"))
    with pytest.raises(UserError, match="two or more classes; found none"):
        ImageFolder(root=str(tmp_path))
    _pictures(tmp_path / "a", 3, 1)
    with pytest.raises(UserError, match="found only 'a'"):
        ImageFolder(root=str(tmp_path))
    (tmp_path / "b").mkdir()
    with pytest.raises(UserError, match="b has no images"):
        ready(ImageFolder(root=str(tmp_path)))


# -- settings and files that are wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "--data.batch_size is 1 or more, not 0"),
        ({"eval_batch_size": -1}, "--data.eval_batch_size is 1 or more"),
        ({"train_size": 0}, "--data.train_size is 1 or more"),
        ({"mean": [0.5]}, r"--data.mean has one value for each of 3 channels, not \[0.5\]"),
        ({"std": [0.1, 0.0, 0.1]}, "--data.std is above 0"),
        ({"augment": ["crp"]}, "there is no 'crp'; did you mean crop"),
    ],
)
def test_settings_are_checked_before_anything_is_read(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CIFAR10(root="nowhere", **options)


def test_missing_and_damaged_files_are_named(fake_cifar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match=r"none/cifar-10-batches-py/data_batch_1 is missing.*--data.root.*fetch CIFAR10"):
        ready(cifar(fake_cifar / "none"))
    inner = fake_cifar / "cifar-10-batches-py"
    with pytest.raises(RunError) as caught:
        ready(cifar(inner))
    assert f"(that is {fake_cifar})" in str(caught.value)
    assert "\n" not in str(caught.value)
    wrong = [["data_batch_1", "0" * 32], *torchvision.datasets.CIFAR10.train_list[1:]]
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "train_list", wrong)
    with pytest.raises(RunError, match=r"data_batch_1 is damaged: its md5 differs from the published 0{32}"):
        ready(cifar(fake_cifar))


@pytest.mark.parametrize(("cls", "what"), [(CIFAR10, "cifar-10-python.tar.gz"), (MNIST, "ubyte.gz")])
def test_no_network_is_one_line(
    cls: type[ImageData], what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*args: Any, **more: Any) -> None:
        raise OSError("no route to host")

    for module in (torchvision.datasets.cifar, torchvision.datasets.mnist):
        monkeypatch.setattr(module, "download_and_extract_archive", offline)
    with pytest.raises(RunError) as caught:
        cls(root=str(tmp_path)).prepare_data()
    message = str(caught.value)
    assert "no route to host" in message
    assert what in message
    assert f"smallnets data fetch {cls.__name__} --root {tmp_path}" in message
    assert "\n" not in message


# -- the command line ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [CIFAR10, CIFAR100, MNIST, Digits, ImageNet64])
def test_jsonargparse_builds_them(cls: type[ImageData]) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ImageData, "data")
    augment = '["crop", {"cutout": {"size": 8}}, {"perspective": null}]'
    args = [f"--data={cls.__module__}.{cls.__name__}", f"--data.augment={augment}", "--data.batch_size=32"]
    config = parser.parse_args([*args, "--data.train_size=100"])
    data = parser.instantiate_classes(config).data
    assert type(data) is cls
    assert data.augment == ["crop", {"cutout": {"size": 8}}, {"perspective": None}]
    assert (data.batch_size, data.train_size) == (32, 100)
    # A written config is read again.
    text = parser.dump(parser.parse_args(args[:1]))
    assert parser.parse_string(text).data.init_args.augment in ([], ())


# -- the real thing ------------------------------------------------------------------------------------------------

needs_cifar10 = pytest.mark.skipif(
    "SMALLNETS_CIFAR10" not in os.environ, reason="SMALLNETS_CIFAR10 does not name a folder with CIFAR-10"
)


@pytest.fixture
def real() -> Callable[..., ImageData]:
    return lambda **options: ready(CIFAR10(root=os.environ["SMALLNETS_CIFAR10"], download=False, **options))


@needs_cifar10
def test_the_real_cifar10(real: Callable[..., ImageData]) -> None:
    data = real()
    data.setup("test")
    assert data.split_sizes == {"train": 45_000, "val": 5_000, "test": 10_000}
    for split, count in (("train", 4_500), ("val", 500), ("test", 1_000)):
        assert data.labels(split).bincount().tolist() == [count] * 10  # type: ignore[arg-type]
    # The known pixel statistics, from all 50,000 training images, to within the 5,000 that are left out.
    np.testing.assert_allclose(data.mean, [0.4914, 0.4822, 0.4465], atol=5e-4)
    np.testing.assert_allclose(data.std, [0.2470, 0.2435, 0.2616], atol=5e-4)
    assert data.batches_per_epoch() == 352
    assert data.classes[0] == "airplane"


@pytest.mark.parametrize("free", [2 * 6400 - 1, 2 * 6400])
def test_a_set_of_more_than_half_the_free_memory_of_a_gpu_stays_pinned_on_the_host(monkeypatch, free):
    """A GPU by name alone: what would be copied to it is noted, and stays here. 100 images are of 64 bytes each."""
    gpu, home, copied = torch.device("cuda"), torch.Tensor.to, []

    def to(tensor, device, *rest, **more):
        copied.append(more) if device == gpu else None
        return tensor if device == gpu else home(tensor, device, *rest, **more)

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 0))
    monkeypatch.setattr(torch.Tensor, "to", to)
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(len(tensor)) or tensor)
    data = Digits(image_size=8, in_channels=1)
    monkeypatch.setattr(data, "_device", lambda: gpu)
    arrays = Arrays(torch.zeros(100, 1, 8, 8, dtype=torch.uint8), torch.zeros(100, dtype=torch.int64), ["0"])
    assert data._placed(arrays)[0] is data._placed(arrays)[0], "moved once"
    assert len(copied) == (2 if free == 2 * 6400 else 0), "images and labels, or nothing"
    assert _fits(arrays.images, torch.device("cpu"))
    if free == 2 * 6400:
        return
    batches = list(data._loader(arrays, np.arange(100), 50, shuffle=True, train=True))
    assert [len(images) for images, _, _ in batches] == [50, 50]
    # Images and labels of two batches, each without waiting.
    assert pinned == [50] * 4 and copied == [{"non_blocking": True}] * 4
