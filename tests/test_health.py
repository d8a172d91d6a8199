"""Health: what it sees in networks, figures and schedules, and how it speaks up in a run."""

import math
import warnings
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR
from torch.utils.data import DataLoader, TensorDataset

from smallnets.callbacks import Health, HealthWarning
from smallnets.errors import RunError, UserError
from smallnets.training import health

# Lightning 2.6 on the newest torch, and small loaders.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided.*"),
    pytest.mark.filterwarnings("ignore:.*resuming from a checkpoint that ended before the epoch ended.*"),
]

# -- the network -----------------------------------------------------------------------------------------------------


class Forgetful(nn.Module):
    """A Dropout and a Linear that the forward forgets, and attention, whose projection it uses without calling it."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.1)
        self.used_drop = nn.Dropout(0.5)
        self.spare = nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, classes)

    def forward(self, images):
        x = self.bn(self.stem(images)).flatten(2).mT
        x, _ = self.attention(x, x, x)
        return self.head(self.used_drop(x.mean(1)))


def test_modules_that_the_forward_does_not_use():
    found = health.probe(Forgetful(), 3, 4)
    assert found.unused == ["drop", "spare"]
    assert (found.logits, found.head, found.row_parameters) == (10, "head", 9)


def test_probing_leaves_no_trace():
    net = Forgetful().train()
    net.stem.weight.requires_grad_(False)
    net.bn.eval()
    calls = []
    net.head.register_forward_hook(lambda *_: calls.append(1))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    modes = [m.training for m in net.modules()]
    random = torch.random.get_rng_state()
    with torch.no_grad():
        health.probe(net, 3, 4)
        assert not torch.is_grad_enabled()
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert [m.training for m in net.modules()] == modes and not net.stem.weight.requires_grad
    assert all(p.grad is None for p in net.parameters())
    assert not any(m._forward_pre_hooks for m in net.modules())
    assert torch.equal(torch.random.get_rng_state(), random)


def test_head_width():
    # Document 001's mistake at our size: 990 rows of 8 weights and a bias.
    message = health.superfluous_head(health.probe(Forgetful(1000), 3, 4), 10)
    assert message == "the network gives 1000 logits for 10 classes: 8,910 parameters of 'head' do nothing"
    assert health.superfluous_head(health.probe(Forgetful(10), 3, 4), 10) is None
    with pytest.raises(RunError, match="8 logits for 10 classes"):
        health.superfluous_head(health.probe(Forgetful(8), 3, 4), 10)


def test_images_that_do_not_fit():
    with pytest.raises(RunError, match="Forgetful does not take images of 1x4x4"):
        health.probe(Forgetful(), 1, 4)
    with pytest.raises(RunError, match=r"must give logits \(1, classes\) for one image of 3x4x4, got \(1, 8, 4, 4\)"):
        health.probe(nn.Conv2d(3, 8, 3, padding=1), 3, 4)


def test_dead_layers_and_first_non_finite():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    assert health.dead_layers(net) == [] and health.first_non_finite(net) is None
    net[3].bias.data.zero_()  # biases and norms do not count
    net[1].weight.data.zero_()
    assert health.dead_layers(net) == []
    net[3].weight.data.zero_()
    assert health.dead_layers(net) == ["3"]
    net[0].weight.data.zero_()[0, 0, 1, 1] = 1e-30
    assert health.dead_layers(net) == ["3"]
    net[1].running_var[1] = math.inf
    assert health.first_non_finite(net) == "1.running_var"
    net[3].bias.data[0] = math.nan
    assert health.first_non_finite(net) == "3.bias"


# -- normalisation ---------------------------------------------------------------------------------------------------

C10 = ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616])
C100 = ([0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762])


def test_statistics_of_another_data_set_are_named():
    message = health.strange_statistics(*C10, *C100)
    assert message is not None and "std (0.2470, 0.2435, 0.2616) (CIFAR-10's); the training split has" in message
    copied = health.strange_statistics(C10[0], [0.2023, 0.1994, 0.2010], *C10)
    assert copied is not None and "often copied std" in copied and "std (1.2210, 1.2212, 1.3015)" in copied
    assert "ImageNet's" in str(health.strange_statistics([0.485, 0.456, 0.406], [0.229, 0.224, 0.225], *C10))
    assert health.strange_statistics([-0.5, -0.5, -0.5], [0.25] * 3, *C10) is not None
    assert "3 channels are normalised with figures for 1" in str(health.strange_statistics([0.1], [0.3], *C10))
    assert health.strange_statistics(C10[0], [0.0] * 3, *C10) is not None


def test_statistics_that_are_near_enough():
    assert health.strange_statistics(*C10, *C10) is None
    rounded = ([round(v, 2) for v in C10[0]], [round(v, 2) for v in C10[1]])
    assert health.strange_statistics(*rounded, *C10) is None
    # The tolerance is 0.03 of a deviation.
    assert health.strange_statistics([0.5], [0.25], [0.5 + 0.0074], [0.25]) is None
    assert health.strange_statistics([0.5], [0.25], [0.5 + 0.0076], [0.25]) is not None
    assert health.strange_statistics([0.5], [0.25], [0.5], [0.25 * 1.031]) is not None


# -- chance ----------------------------------------------------------------------------------------------------------


def test_chance_limit_by_hand():
    # 10 classes, 10,000 images: deviation sqrt(0.1 * 0.9 / 10000) = 0.003; 100 classes: sqrt(0.01 * 0.99) / 100.
    assert health.chance_limit(10, 10_000) == pytest.approx(0.115)
    assert health.chance_limit(100, 10_000) == pytest.approx(0.01 + 5 * 0.000994987)


def test_signs_of_chance():
    def kinds(**given):
        usual = {"train_loss": 1.0, "accuracy": 0.9, "predicted": [5, 5] + [0] * 8, "images": 10_000}
        return [kind for kind, _ in health.chance_findings(10, **{**usual, **given})]

    assert kinds() == []
    assert kinds(accuracy=0.1) == kinds(accuracy=0.1149) == kinds(accuracy=0.0) == ["accuracy_at_chance"]
    assert kinds(accuracy=0.1151) == []
    assert kinds(predicted=[0, 7] + [0] * 8) == ["one_class_predicted"]
    assert kinds(train_loss=math.log(10)) == ["loss_at_chance"]
    assert kinds(train_loss=2.3025) == []
    assert kinds(train_loss=None, accuracy=None, predicted=None) == []
    assert health.chance_findings(1, 0.0, 1.0, [5], 5) == []


# -- in a run --------------------------------------------------------------------------------------------------------

CLASSES, IMAGES, BATCH = 4, 64, 8


class Sums:
    def __init__(self):
        self.loss, self.count = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.int64)


class Module(L.LightningModule):
    """The parts of a classifier that Health reads. `spoil_at`: the step whose loss becomes NaN."""

    def __init__(self, lr=0.01, schedule=None, interval="epoch", net=None, spoil_at=None, rank=None):
        super().__init__()
        torch.manual_seed(0)
        self.net = net or nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES))
        self.lr, self.schedule, self.interval, self.spoil_at, self.rank = lr, schedule, interval, spoil_at, rank
        self.num_classes, self.train_sums = CLASSES, Sums()

    def make_optimizer(self):
        return torch.optim.SGD(self.net.parameters(), lr=self.lr, momentum=0.9)

    def make_schedule(self, optimizer):
        return self.schedule(optimizer) if self.schedule else None

    def configure_optimizers(self):
        return self.make_optimizer()

    def on_train_epoch_start(self):
        self.train_sums = Sums()

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        if self.global_step == self.spoil_at and self.rank in (None, self.global_rank):
            loss = loss * math.nan
        self.train_sums.loss += loss.detach() * len(batch[0])
        self.train_sums.count += len(batch[0])
        return loss

    def on_validation_epoch_start(self):
        self.right, self.val_predicted = 0, torch.zeros(CLASSES, dtype=torch.int64)

    def validation_step(self, batch, batch_idx):
        predicted = self.net(batch[0]).argmax(1)
        self.right += int((predicted == batch[1]).sum())
        self.val_predicted += torch.bincount(predicted, minlength=CLASSES)

    def on_validation_epoch_end(self):
        self.log("val/accuracy", self.right / int(self.val_predicted.sum()))


class Data(L.LightningDataModule):
    """Images of (1, 4, 4) whose labels can be learned; `mean` and `std` as a user gave them."""

    num_classes, in_channels, image_size, batch_size = CLASSES, 1, 4, BATCH

    def __init__(self, mean=0.0, std=1.0):
        super().__init__()
        self.mean, self.std, self.true_mean, self.true_std = [mean], [std], [0.0], [1.0]
        g = torch.Generator().manual_seed(0)
        labels = torch.arange(IMAGES) % CLASSES
        images = 0.3 * torch.randn(IMAGES, 1, 4, 4, generator=g) + 3 * nn.functional.one_hot(labels, 16).view(
            -1, 1, 4, 4
        )
        self.set = TensorDataset(images, labels)

    def train_dataloader(self):
        return DataLoader(self.set, self.batch_size)

    val_dataloader = train_dataloader


def run(tmp_path, module, *callbacks, data=None, ckpt_path=None, **options):
    """(warnings of Health, the trainer, the error or None)."""
    trainer = L.Trainer(
        **{"max_epochs": 3, "accelerator": "cpu", **options},
        callbacks=list(callbacks),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        default_root_dir=tmp_path,
    )
    error = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", HealthWarning)
        try:
            trainer.fit(module, datamodule=data or Data(), ckpt_path=ckpt_path)
        except RunError as raised:
            error = raised
    return [str(w.message) for w in caught if w.category is HealthWarning], trainer, error


def kinds(callback: Health) -> list[str]:
    return [finding["kind"] for finding in callback.findings]


def test_a_healthy_run_says_nothing(tmp_path):
    watch = Health()
    said, _, error = run(tmp_path, Module(schedule=lambda o: CosineAnnealingLR(o, 3)), watch)
    assert said == [] and watch.findings == [] and error is None


def test_document_000s_rate_and_milestones(tmp_path):
    watch = Health()
    said, _, _ = run(tmp_path, Module(lr=0.1, schedule=lambda o: MultiStepLR(o, [100, 150])), watch, max_epochs=3)
    assert kinds(watch) == ["schedule_beyond_run", "rate_far_from_reference"]
    assert "the run has 3 epochs: milestones 100, 150 are never reached" in said[0]
    assert said[1] == "SGD lr 0.1 at batch 8 is 16x the reference 0.1 at batch 128 scaled linearly (0.00625)"
    assert watch.findings[1] == {"kind": "rate_far_from_reference", "epoch": 0, "step": 0, "message": said[1]}


def test_the_run_is_measured_in_the_schedules_own_unit(tmp_path):
    # 8 batches an epoch, 2 accumulated: 4 steps an epoch, 12 in 3 epochs; max_steps 6 leaves 2 epochs of them.
    for steps, options in ((12, {}), (6, {"max_steps": 6}), (8, {"max_steps": 8, "max_epochs": -1})):
        fits = Module(lr=0.02, schedule=lambda o, n=steps: CosineAnnealingLR(o, n), interval="step")
        assert run(tmp_path, fits, Health(), accumulate_grad_batches=2, **options)[0] == []
        over = Module(lr=0.02, schedule=lambda o, n=steps: CosineAnnealingLR(o, 2 * n), interval="step")
        said = run(tmp_path, over, Health(), accumulate_grad_batches=2, **options)[0]
        assert len(said) == 1 and f"stepped once per step and the run has {steps} steps" in said[0]


def test_network_and_normalisation_are_checked_first(tmp_path):
    class Net(nn.Module):
        def __init__(self, classes):
            super().__init__()
            self.drop, self.head = nn.Dropout(0.2), nn.Linear(16, classes)

        def forward(self, x):
            return self.head(x.flatten(1))

    class Wide(Module):
        def on_validation_epoch_start(self):
            super().on_validation_epoch_start()
            self.val_predicted = torch.zeros(6, dtype=torch.int64)

        def validation_step(self, batch, batch_idx):
            self.val_predicted[0] += 1

    watch = Health()
    said, _, _ = run(tmp_path, Wide(net=Net(6)), watch, data=Data(mean=0.1), max_epochs=1)
    assert kinds(watch) == ["superfluous_head", "unused_module", "strange_statistics"]
    assert said[0] == "the network gives 6 logits for 4 classes: 34 parameters of 'head' do nothing"
    assert said[1] == "drop (Dropout) is never called in the network's forward"
    _, trainer, error = run(tmp_path, Module(net=Net(3)), Health())
    assert "3 logits for 4 classes" in str(error) and trainer.global_step == 0


@pytest.mark.parametrize(("check_every", "stopped_at"), [(1, 4), (3, 6), (100, 8)])
def test_nan_stops_the_run(tmp_path, check_every, stopped_at):
    _, trainer, error = run(tmp_path, Module(spoil_at=3), Health(check_every=check_every))
    assert trainer.global_step == stopped_at
    assert f"by step {stopped_at} (epoch 0); first in '1.weight'" in str(error)


class Frozen(nn.Module):
    """Predicts class 0 whatever it sees."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, CLASSES)
        self.head.weight.data.zero_()

    def forward(self, x):
        return 0 * self.head(x.flatten(1)) + torch.tensor([1.0, 0, 0, 0])


def test_a_network_at_chance(tmp_path):
    watch = Health()
    said, _, _ = run(tmp_path, Module(net=Frozen(), lr=0.02), watch, max_epochs=4)
    assert kinds(watch) == ["dead_layer", "accuracy_at_chance", "one_class_predicted", "loss_at_chance"]
    assert [f["epoch"] for f in watch.findings] == [0, 1, 1, 1]
    assert said[0] == "every weight of head is exactly 0"
    assert said[1].startswith("epoch 1: validation accuracy 0.2500 is at chance") and "on 64 images" in said[1]
    assert "every validation image is predicted to be class 0" in said[2]
    assert "not below ln 4 = 1.3863" in said[3]
    _, trainer, error = run(tmp_path, Module(net=Frozen(), lr=0.02), Health(on_chance="stop"), max_epochs=4)
    assert "stopped, as Health on_chance=stop asks: epoch 1" in str(error) and trainer.current_epoch == 1


def test_the_grace_begins_again_with_a_round(tmp_path):
    watch = Health()

    class Round(L.pytorch.callbacks.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                watch.begin_again(1)

    run(tmp_path, Module(net=Frozen(), lr=0.02), watch, Round(), max_epochs=4)
    assert [f["epoch"] for f in watch.findings] == [0, 2, 2, 2]  # a layer of zeros is told at once
    again = Health()
    again.load_state_dict(watch.state_dict())
    assert again.state_dict() == watch.state_dict() and watch.state_dict()["since"] == 1


def test_accuracy_is_judged_only_where_a_validation_was(tmp_path):
    watch = Health(grace_epochs=1)
    run(tmp_path, Module(net=Frozen(), lr=0.02), watch, max_epochs=4, check_val_every_n_epoch=3)
    assert [(f["kind"], f["epoch"]) for f in watch.findings[1:]] == [
        ("loss_at_chance", 0),
        ("accuracy_at_chance", 2),
        ("one_class_predicted", 2),
    ]


def test_a_resumed_run_does_not_repeat_itself(tmp_path):
    def module():
        return Module(lr=0.1, net=Frozen(), schedule=lambda o: MultiStepLR(o, [100]))

    saved = ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", every_n_epochs=1, save_top_k=-1)
    straight, resumed = Health(), Health()
    run(tmp_path, module(), straight, saved, max_epochs=4)
    assert len(straight.findings) == 6
    torch.load(tmp_path / "epoch=2.ckpt", weights_only=True)
    said, _, _ = run(tmp_path, module(), resumed, ckpt_path=tmp_path / "epoch=2.ckpt", max_epochs=4)
    assert said == [] and resumed.findings == straight.findings
    # A run of its own starts with nothing found.
    said, _, _ = run(tmp_path, Module(), resumed)
    assert said == [] and resumed.findings == []


def test_the_run_itself_is_not_changed(tmp_path):
    watched, alone = Module(schedule=lambda o: CosineAnnealingLR(o, 3)), Module()
    run(tmp_path, watched, Health(check_every=1))
    run(tmp_path, alone)
    assert all(torch.equal(a, b) for a, b in zip(watched.parameters(), alone.parameters(), strict=True))


def test_a_rank_with_finite_sums_stops_with_the_others():
    class OtherRankIsNaN:
        def reduce(self, value, reduce_op):
            assert reduce_op == "sum"
            return value + (math.nan if value.is_floating_point() else BATCH)

    trainer = SimpleNamespace(strategy=OtherRankIsNaN(), global_step=7, current_epoch=1)
    with pytest.raises(RunError, match=r"by step 7 \(epoch 1\); all parameters are still finite"):
        Health()._mean_loss(trainer, Module())


@pytest.mark.filterwarnings("ignore:.*use_distributed_sampler.*", "ignore:.*fork.*", "ignore:.*sync_dist=True.*")
def test_ranks_stop_together(tmp_path):
    """The loss of rank 1 alone becomes NaN: a decision made on a rank's own sums would leave rank 0 waiting for it."""
    options = {"strategy": "ddp_fork", "devices": 2, "num_sanity_val_steps": 0, "max_epochs": 1}
    with pytest.raises(Exception, match=r"NaN or infinity in the training loss by step 3"):
        L.Trainer(
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            default_root_dir=tmp_path,
            callbacks=[Health(check_every=1)],
            **options,
        ).fit(Module(spoil_at=2, rank=1), datamodule=Data())


def test_wrong_arguments():
    for options, words in (
        ({"check_every": 0}, "check_every must be at least 1"),
        ({"grace_epochs": -1}, "grace_epochs must be 0 or more"),
        ({"on_chance": "ignore"}, "on_chance must be warn or stop, got 'ignore'"),
    ):
        with pytest.raises(UserError, match=words):
            Health(**options)
