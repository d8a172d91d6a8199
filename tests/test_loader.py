"""The order law and the interruption law of `BatchLoader`, by itself and under a Lightning Trainer."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from smallnets.data.ahead import read_ahead
from smallnets.data.loader import BatchLoader, Place, batch_bounds
from smallnets.errors import UserError


def make(count: int, **options: Any) -> BatchLoader:
    """A loader of `count` images of one pixel, each labelled with its own index."""
    images = torch.arange(count).remainder(256).to(torch.uint8).view(-1, 1, 1, 1)
    return BatchLoader(images, torch.arange(count), **options)


def seen(loader: BatchLoader) -> list[list[int]]:
    return [labels.tolist() for _, labels, _ in loader]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("count", [20, 21, 23, 64, 97, 101])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_image_once_over_all_ranks(count: int, world_size: int, shuffle: bool) -> None:
    ranks = [
        make(count, batch_size=4, seed=1, shuffle=shuffle, rank=r, world_size=world_size) for r in range(world_size)
    ]
    batches = [seen(loader) for loader in ranks]
    assert len({len(b) for b in batches}) == 1
    assert all(len(b) == len(loader) for b, loader in zip(batches, ranks, strict=True))
    # Global batches put together from the ranks' contiguous shares are the one permutation that all share.
    together = [i for number in range(len(ranks[0])) for b in batches for i in b[number]]
    assert together == ranks[0].order(0).tolist()
    assert sorted(together) == list(range(count))
    for number in range(len(ranks[0])):
        sizes = [len(b[number]) for b in batches]
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) >= 2


def test_bounds_in_the_head() -> None:
    assert batch_bounds(10, 5, 1) == [0, 5, 10]
    assert batch_bounds(12, 5, 1) == [0, 5, 10, 12]
    assert batch_bounds(11, 5, 1) == [0, 5, 11]  # one image left: it joins the batch before
    assert batch_bounds(13, 5, 2) == [0, 13]  # three left for two ranks: one of them would have one image
    assert batch_bounds(14, 5, 2) == [0, 10, 14]
    assert batch_bounds(5, 5, 1) == [0, 5]
    assert batch_bounds(45_000, 128, 1)[-2:] == [44_928, 45_000]


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    loader, same, other = (make(50, batch_size=8, seed=s) for s in (3, 3, 4))
    first = seen(loader)
    assert seen(same) == first
    assert seen(other) != first
    loader.set_epoch(0)
    assert seen(loader) == first
    loader.set_epoch(1)
    assert seen(loader) != first


def test_images_places_and_indices_belong_together() -> None:
    chosen = np.array([3, 5, 8, 13, 21, 34])
    loader = make(40, indices=chosen, batch_size=2, seed=0)
    labels = []
    for number, (images, some, place) in enumerate(loader):
        assert images.dtype == torch.uint8
        assert images.flatten().tolist() == some.tolist()
        assert place == Place(0, number, 0, 1)
        labels += some.tolist()
    assert sorted(labels) == chosen.tolist()
    plain = make(40, indices=chosen, batch_size=2, shuffle=False, train=False)
    assert [(some.tolist(), place) for _, some, place in plain] == [([3, 5], None), ([8, 13], None), ([21, 34], None)]


def test_state_stands_at_the_next_batch() -> None:
    loader = make(20, batch_size=4)
    assert (loader.state_dict()["epoch"], loader.state_dict()["batch"]) == (0, 0)
    states = [(loader.state_dict()["epoch"], loader.state_dict()["batch"]) for _ in loader]
    assert states == [(0, 1), (0, 2), (0, 3), (0, 4), (1, 0)]


@pytest.mark.parametrize("epoch", [0, 2])
@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_resumed_iteration_goes_on(epoch: int, stop: int) -> None:
    whole = make(20, batch_size=4, seed=9)
    whole.set_epoch(epoch)
    expected = seen(whole)
    whole.set_epoch(epoch + 1)
    expected += seen(whole)

    killed = make(20, batch_size=4, seed=9)
    killed.set_epoch(epoch)
    iterator = iter(killed)
    got = [next(iterator)[1].tolist() for _ in range(stop)]
    state = killed.state_dict()

    resumed = make(20, batch_size=4, seed=9)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    iter(resumed)  # an iterator that nobody uses takes nothing away
    resumed.set_epoch(epoch if stop < 5 else epoch + 1)
    got += seen(resumed)
    if stop < 5:
        resumed.set_epoch(epoch + 1)
        got += seen(resumed)
    assert got == expected


def test_only_a_loaded_place_is_resumed() -> None:
    loader = make(20, batch_size=4)
    expected = seen(loader)
    loader.set_epoch(0)
    next(iter(loader))  # broken off, as a sanity check is
    assert seen(loader) == expected
    loader.load_state_dict({"epoch": 0, "batch": 3})
    loader.set_epoch(2)  # another epoch was asked for
    assert len(seen(loader)) == 5


def test_a_place_counted_in_other_batches_is_refused() -> None:
    state = make(40, batch_size=4, seed=1).state_dict() | {"batch": 3}
    with pytest.raises(UserError, match=r"batch 3 of epoch 0, counted with batch_size=4 \(now 5\), seed=1 \(now 2\)"):
        make(40, batch_size=5, seed=2).load_state_dict(state)
    make(40, batch_size=5, seed=2).load_state_dict(state | {"batch": 0})  # at an epoch's start all are the same


def test_errors() -> None:
    with pytest.raises(UserError, match=r"^--data.batch_size=12 x 2 ranks = 24 is more than the 20 images of the set$"):
        make(20, batch_size=12, world_size=2)
    with pytest.raises(UserError, match="1 or more, not 0 and 1"):
        make(20, batch_size=0)
    with pytest.raises(UserError, match="rank 2 is not one of 2"):
        make(20, batch_size=2, rank=2, world_size=2)


class Recorder(L.LightningModule):
    """Writes down the place and the images of each batch that it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.log_of_batches: list[tuple[int, int, list[int]]] = []
        self.fetched_ahead: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        _, labels, place = batch
        assert (place.epoch, place.batch) == (self.current_epoch, batch_idx)
        self.log_of_batches.append((place.epoch, place.batch, labels.tolist()))
        loader: Any = self.trainer.train_dataloader
        self.fetched_ahead.append((loader.state_dict()["epoch"] - place.epoch) * len(loader))
        self.fetched_ahead[-1] += loader.state_dict()["batch"] - place.batch
        return self.weight.sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        assert batch[2] is None

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(
    folder: Path, checkpoints: ModelCheckpoint | None = None, resume: str | None = None, **options: Any
) -> Recorder:
    module = Recorder()
    trainer = L.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=checkpoints is not None,
        callbacks=[checkpoints] if checkpoints else [],
        default_root_dir=folder,
        **options,
    )
    train, val = make(22, batch_size=4, seed=5), make(10, batch_size=5, shuffle=False, train=False)
    trainer.fit(module, train, val, ckpt_path=resume, weights_only=True if resume else None)
    return module


# Lightning's notes: on torch 2.15's names, and that a run that only reads a checkpoint has no ModelCheckpoint.
lightning_notes = pytest.mark.filterwarnings(
    "ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated",
    "ignore:Be aware that when using `ckpt_path`, callbacks used to create the checkpoint",
)


@lightning_notes
@pytest.mark.parametrize(
    "options",
    [{}, {"limit_train_batches": 3}, {"val_check_interval": 2}, {"accumulate_grad_batches": 2}],
    ids=lambda o: next(iter(o), "plain"),
)
def test_a_resumed_fit_sees_what_the_uninterrupted_one_sees(tmp_path: Path, options: dict[str, Any]) -> None:
    whole = fit(tmp_path, **options).log_of_batches
    per_epoch = options.get("limit_train_batches", 6)
    assert [(e, b) for e, b, _ in whole] == [(e, b) for e in range(3) for b in range(per_epoch)]
    keep = ModelCheckpoint(tmp_path / "steps", "{step}", every_n_train_steps=1, save_top_k=-1)
    saving = fit(tmp_path, keep, **options)
    assert saving.log_of_batches == whole
    assert set(saving.fetched_ahead) == {1}  # nothing is fetched before it is used
    files = sorted((tmp_path / "steps").glob("*.ckpt"))
    assert len(files) == len(whole) // options.get("accumulate_grad_batches", 1)
    for file in files:
        done = int(file.stem.split("=")[1]) * options.get("accumulate_grad_batches", 1)
        rest = fit(tmp_path, resume=str(file), **options).log_of_batches
        assert rest == whole[done:], f"resumed after {done} batches"


@lightning_notes
@pytest.mark.parametrize("when", ["validation", "epoch"])
def test_resuming_from_a_checkpoint_of_another_hook(tmp_path: Path, when: str) -> None:
    whole = fit(tmp_path, val_check_interval=3).log_of_batches
    keep = ModelCheckpoint(tmp_path / when, "{step}", save_top_k=-1, save_on_train_epoch_end=when == "epoch")
    fit(tmp_path, keep, val_check_interval=3)
    files = list((tmp_path / when).glob("*.ckpt"))
    assert len(files) == (6 if when == "validation" else 3)
    for file in files:
        done = int(file.stem.split("=")[1].split("-")[0])
        assert fit(tmp_path, resume=str(file), val_check_interval=3).log_of_batches == whole[done:], file.stem


def test_batches_read_in_advance_are_the_same_and_so_is_the_place() -> None:
    plain, ahead = (make(23, batch_size=4, seed=5, device=d) for d in (None, torch.device("cpu")))
    assert seen(ahead) == seen(plain)
    ahead.set_epoch(3)
    batches = iter(ahead)
    first = [next(batches)[1].tolist() for _ in range(2)]
    # Batches 2 and 3 may have been read; what counts is what was used.
    assert (ahead.state_dict()["epoch"], ahead.state_dict()["batch"]) == (3, 2)
    resumed = make(23, batch_size=4, seed=5, device=torch.device("cpu"))
    resumed.load_state_dict(ahead.state_dict())
    plain.set_epoch(3)
    assert first + seen(resumed) == seen(plain)


def test_no_more_than_two_batches_are_read_in_advance_and_a_failure_comes_in_its_turn() -> None:
    read: list[int] = []

    def once(number: int) -> int:
        read.append(number)
        if number == 3:
            raise OSError("the disk is gone")
        return number

    numbers = read_ahead(once, range(10), depth=2)
    assert next(numbers) == 0
    assert max(read) <= 2
    assert [next(numbers), next(numbers)] == [1, 2]
    with pytest.raises(OSError, match="the disk is gone"):
        next(numbers)
    assert len(read) <= 6
