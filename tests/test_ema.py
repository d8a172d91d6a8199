"""The average of weights: what validation and checkpoints see, and exact resuming."""

import copy
import itertools

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from smallnets.callbacks import EMA
from smallnets.errors import UserError

# Lightning 2.6 on the newest torch, and on loaders that are no DataLoader.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided.*"),
]
BATCHES, SIZE = 6, 4


class Batches:
    """A fixed list of batches that keeps its place, as the interruption law asks of a loader."""

    def __init__(self, count: int = BATCHES) -> None:
        g = torch.Generator().manual_seed(0)
        self.batches = [
            (torch.randn(SIZE, 3, generator=g), torch.randint(0, 2, (SIZE,), generator=g)) for _ in range(count)
        ]
        self.at = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self):
        # A sized loader is not asked for more than its length: the place at the end is the next epoch's start.
        for i in range(self.at % len(self), len(self)):
            self.at = i + 1
            yield self.batches[i]

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


class Net(L.LightningModule):
    """Keeps a copy of its weights after each step and at each validation and test batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
        self.trained, self.validated, self.tested = [], [], []

    def copied(self):
        return {k: v.detach().clone() for k, v in self.state_dict().items()}

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.trained.append(self.copied())

    def validation_step(self, batch, batch_idx):
        self.validated.append(self.copied())

    def test_step(self, batch, batch_idx):
        self.tested.append(self.copied())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def trainer(folder, *callbacks, **options) -> L.Trainer:
    return L.Trainer(
        **{"max_epochs": 2, "num_sanity_val_steps": 0, **options},
        callbacks=list(callbacks),
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
    )


def fit(folder, module, *callbacks, ckpt_path=None, **options) -> L.Trainer:
    made = trainer(folder, *callbacks, **options)
    made.fit(module, Batches(), Batches(1), ckpt_path=ckpt_path)
    return made


def average(weights, decay):
    """The independent reference: the recursion, in a loop over tensors; counters are those of the last state."""
    result = copy.deepcopy(weights[0])
    for state in weights[1:]:
        for name, value in state.items():
            if value.is_floating_point():
                result[name] = result[name] + (1 - decay) * (value - result[name])
            else:
                result[name] = value.clone()
    return result


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def close(a, b) -> None:
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-6)


def test_validation_checkpoints_and_the_end_hold_the_average(tmp_path):
    module = Net()
    saved = ModelCheckpoint(dirpath=tmp_path / "c", every_n_epochs=1, save_top_k=-1, filename="{epoch}")
    fit(tmp_path, module, EMA(decay=0.5), saved)
    assert len(module.trained) == 2 * BATCHES and len(module.validated) == 2
    for epoch in range(2):
        expected = average(module.trained[: (epoch + 1) * BATCHES], 0.5)
        close(module.validated[epoch], expected)
        checkpoint = torch.load(tmp_path / "c" / f"epoch={epoch}.ckpt", weights_only=True)
        assert same(checkpoint["state_dict"], module.validated[epoch])
        assert same(checkpoint["current_model_state"], module.trained[(epoch + 1) * BATCHES - 1])
    assert same(module.copied(), module.validated[-1])
    assert not same(module.copied(), module.trained[-1])


def test_training_goes_on_with_the_trained_weights(tmp_path):
    with_average, without = Net(), Net()
    fit(tmp_path, with_average, EMA(decay=0.9))
    fit(tmp_path, without)
    assert all(same(a, b) for a, b in zip(with_average.trained, without.trained, strict=True))


@pytest.mark.parametrize(
    ("every", "start", "updates"), [(2, 0, [2, 4, 6, 8, 10, 12]), (3, 4, [7, 10]), (1, 9, [10, 11, 12])]
)
def test_which_steps_are_averaged(tmp_path, every, start, updates):
    module = Net()
    fit(tmp_path, module, EMA(decay=0.5, every_n_steps=every, start_step=start))
    close(module.copied(), average([module.trained[step - 1] for step in updates], 0.5))


def test_before_the_first_update_the_average_is_the_network(tmp_path):
    module = Net()
    saved = ModelCheckpoint(dirpath=tmp_path / "c", every_n_epochs=1, save_top_k=-1, filename="{epoch}")
    fit(tmp_path, module, EMA(start_step=100), saved)
    assert same(module.validated[0], module.trained[BATCHES - 1])
    checkpoint = torch.load(tmp_path / "c" / "epoch=0.ckpt", weights_only=True)
    assert same(checkpoint["state_dict"], module.trained[BATCHES - 1]) and "current_model_state" not in checkpoint
    assert same(module.copied(), module.trained[-1])


def test_accumulated_batches_count_once(tmp_path):
    module = Net()
    fit(tmp_path, module, EMA(decay=0.5), accumulate_grad_batches=2)
    # Running statistics move with every batch; weights with every second.
    close(module.copied(), average(module.trained[1::2], 0.5))


@pytest.mark.parametrize("step", [1, 3, 4, 6, 8, 12])
def test_resumed_run_ends_bitwise_where_the_uninterrupted_one_ends(tmp_path, step):
    def options():
        return EMA(decay=0.9, every_n_steps=2, start_step=2)

    straight = Net()
    every = ModelCheckpoint(dirpath=tmp_path / "c", every_n_train_steps=1, save_top_k=-1, filename="{step}")
    fit(tmp_path, straight, options(), every, max_epochs=3)
    resumed = Net()
    resumed.net[0].weight.data.zero_()
    fit(tmp_path, resumed, options(), ckpt_path=tmp_path / "c" / f"step={step}.ckpt", max_epochs=3)
    assert len(resumed.trained) == 3 * BATCHES - step
    assert all(same(a, b) for a, b in zip(resumed.trained, straight.trained[step:], strict=True))
    assert same(resumed.validated[-1], straight.validated[-1])
    assert same(resumed.copied(), straight.copied())


def test_a_finished_run_saved_afterwards_can_be_prolonged_exactly(tmp_path):
    straight, first, second = Net(), Net(), Net()
    fit(tmp_path, straight, EMA(decay=0.9), max_epochs=3)
    fit(tmp_path, first, EMA(decay=0.9), max_epochs=2).save_checkpoint(tmp_path / "end.ckpt")
    fit(tmp_path, second, EMA(decay=0.9), max_epochs=3, ckpt_path=tmp_path / "end.ckpt")
    assert same(second.copied(), straight.copied())


def test_fit_twice_begins_a_new_average(tmp_path):
    ema, once, again = EMA(decay=0.9), Net(), Net()
    fit(tmp_path, once, ema)
    fit(tmp_path, again, ema)
    assert same(once.copied(), again.copied())
    # One trainer that goes on: the second fit starts from the average and knows only its own steps.
    module = Net()
    made = fit(tmp_path, module, ema, max_epochs=1, accumulate_grad_batches=2)
    module.trained.clear()
    made.fit_loop.max_epochs = 2
    made.fit(module, Batches(), Batches(1))
    close(module.copied(), average(module.trained[1::2], 0.9))


def test_testing_a_checkpoint_tests_the_average(tmp_path):
    module = Net()
    saved = ModelCheckpoint(dirpath=tmp_path / "c", every_n_epochs=1, save_top_k=-1, filename="{epoch}")
    made = fit(tmp_path, module, EMA(decay=0.5), saved)
    first = tmp_path / "c" / "epoch=0.ckpt"
    expected = torch.load(first, weights_only=True)["state_dict"]
    for tester in (made, trainer(tmp_path, EMA(decay=0.5))):
        module.tested.clear()
        module.validated.clear()
        tester.test(module, Batches(1), ckpt_path=first, verbose=False)
        assert same(module.tested[0], expected)
        tester.validate(module, Batches(1), ckpt_path=first, verbose=False)
        assert same(module.validated[0], expected)


def test_interrupted_in_validation_the_trained_weights_come_back(tmp_path):
    class Interrupted(Net):
        def validation_step(self, batch, batch_idx):
            raise RuntimeError("in the middle")

    module = Interrupted()
    with pytest.raises(RuntimeError, match="in the middle"):
        fit(tmp_path, module, EMA(decay=0.5))
    assert same(module.copied(), module.trained[-1])


def test_restart_forgets(tmp_path):
    class Restart(L.Callback):
        def __init__(self, ema):
            self.ema = ema

        def on_train_epoch_start(self, trainer, pl_module):
            self.ema.restart()

    ema, module = EMA(decay=0.9), Net()
    fit(tmp_path, module, ema, Restart(ema))
    close(module.copied(), average(module.trained[BATCHES:], 0.9))


def test_ranges():
    for options, name in itertools.chain([({"decay": 1.0}, "decay"), ({"every_n_steps": 0}, "every_n_steps")]):
        with pytest.raises(UserError, match=f"EMA {name} must be"):
            EMA(**options)
    with pytest.raises(UserError, match="start_step must be 0 or more, got -1"):
        EMA(start_step=-1)
