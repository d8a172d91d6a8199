"""Masks that cannot be lost: through steps, checkpoints, copies, averages, another optimizer, export."""

import copy
import io
import pickle

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, ModelPruning
from test_interruption import checkpoint, equal
from test_pruning_schedule_callback import fit, options
from torch import nn
from torch.optim import SGD, Adam

import smallnets
from smallnets.callbacks import PruningSchedule
from smallnets.cli import main
from smallnets.errors import RunError
from smallnets.measure.dispatch import count_dispatched
from smallnets.models import LeNet, ResNet
from smallnets.optim import AdaBound
from smallnets.pruning import Masks, next_masks
from smallnets.results import read_row
from smallnets.results.load import load_masks
from smallnets.surgery import to_quaternion
from smallnets.training.classifier import Classifier
from smallnets.training.steps import StepCallback

pytestmark = [
    pytest.mark.filterwarnings("default::smallnets.callbacks.HealthWarning"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed from"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided.*"),
]


def sgd(parameters):
    return SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-2)


OPTIMIZERS = {
    "sgd": sgd,
    "nesterov": lambda p: SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2, nesterov=True),
    "adam": lambda p: Adam(p, lr=0.01, weight_decay=1e-2),
    "adabound": lambda p: AdaBound(p, lr=0.01, weight_decay=1e-2),
}


def resnet():
    torch.manual_seed(0)
    return ResNet(num_classes=10, blocks=[1], channels=[8], in_channels=1)


def classifier(net=None, optimizer=sgd, **given):
    return Classifier(net or resnet(), optimizer=optimizer, **given)


def zeros(net, masks):
    """How many weights of the layers that have masks are 0.0."""
    return sum(int((weight == 0).sum()) for weight in masks.weights(net).values())


class Zeros(StepCallback):
    """The count after each optimizer step under masks."""

    def __init__(self):
        self.seen = []

    def after_optimizer_step(self, trainer, pl_module, step):
        if pl_module.masks is not None:
            self.seen.append((step, zeros(pl_module.net, pl_module.masks)))


# -- in every step -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_the_count_of_zeros_is_exact_after_every_optimizer_step(here, optimizer):
    """The masks come after two steps, when momentum and averages still push removed weights."""
    seen, module = Zeros(), classifier(optimizer=optimizer, check_masks="step")
    fit(module, PruningSchedule(density=0.25, at="2it"), seen)
    total = 72 + 2 * 576 + 80
    assert seen.seen == [(step, total - total // 4) for step in range(2, 11)]
    assert {name for name, p in module.net.named_parameters() if (p == 0).any()} <= set(module.masks)


def test_a_masked_weight_that_moved_breaks_the_run(here):
    class Meddles(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            name, mask = next(iter(pl_module.masks.items()))
            pl_module.masks.weights(pl_module.net)[name].data[~mask] = 0.1

    with pytest.raises(RunError, match=r"conv1.weight: \d+ of \d+ masked weights are not 0.0"):
        fit(classifier(), PruningSchedule(density=0.25, at="2it"), Meddles())


@pytest.mark.filterwarnings("ignore:Encountered `nan` values in tensor")
@pytest.mark.parametrize(("check", "steps"), [("step", 3), ("epoch", 5)])
def test_an_infinite_gradient_of_a_masked_weight_is_found_at_its_step_in_the_debug_mode_alone(here, check, steps):
    """Infinity times 0 is not 0: the weight is no longer masked after step 3, of 5 in an epoch."""

    class Overflows(StepCallback):
        taken = 0

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            Overflows.taken += 1
            if trainer.global_step == 2:
                name, mask = next(iter(pl_module.masks.items()))
                pl_module.masks.weights(pl_module.net)[name].grad[~mask] = float("inf")

        def after_optimizer_step(self, trainer, pl_module, step):
            pass

    with pytest.raises(RunError, match=r"conv1.weight: \d+ of \d+ masked weights are not 0.0"):
        fit(classifier(check_masks=check), PruningSchedule(density=0.25, at="0it"), Overflows())
    assert Overflows.taken == steps


@pytest.mark.parametrize("unit", ["component", "quaternion"])
def test_the_count_of_zeros_in_quaternion_layers_is_exact_after_every_optimizer_step(here, unit):
    torch.manual_seed(0)
    net = to_quaternion(ResNet(num_classes=10, blocks=[1], channels=[8]))
    seen, module = Zeros(), classifier(net, check_masks="step")
    fit(module, PruningSchedule(density=0.5, at="2it", scope="layer", unit=unit), seen)
    # The stem has 4 x 8 x 9 / 4 weights, each convolution 8 x 8 x 9 / 4, the real head 80; half of each is kept.
    assert seen.seen == [(step, 36 + 2 * 72 + 40) for step in range(2, 11)]
    for mask in list(module.masks.values())[:3]:
        assert [int(part.sum()) for part in mask.chunk(4)] == [mask.numel() // 8] * 4
        parts = mask.chunk(4)
        assert all(torch.equal(part, parts[0]) for part in parts) == (unit == "quaternion")


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_masks_are_one_more_operation_a_step(here, optimizer):
    class Counting(Classifier):
        def optimizer_step(self, *args):
            self.operations.append(count_dispatched(lambda: super(Counting, self).optimizer_step(*args)))

    counts = []
    for callbacks in ([], [PruningSchedule(density=0.25, at="0it")], [PruningSchedule(density=0.25, at="6it")]):
        module = Counting(resnet(), optimizer=optimizer)
        module.operations = []
        fit(module, *callbacks)
        counts.append(module.operations)
    dense, masked, later = counts
    # The first step prepares the optimizer and the masks.
    assert [a - b for a, b in zip(masked[1:], dense[1:], strict=True)] == [1] * 9
    assert later[1:5] == dense[1:5], "a schedule that has not begun costs nothing"
    assert later[7:] == masked[7:]


# -- from one place to another -----------------------------------------------------------------------------------------


def test_copies_and_pickles_keep_the_masks(here):
    module = classifier()
    fit(module, PruningSchedule(density=0.25, at="2it"))
    stored = io.BytesIO()
    torch.save(module, stored)
    stored.seek(0)
    again = torch.load(stored, weights_only=False)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), again):
        assert other.masks == module.masks and other.masks is not None
        fit(other, max_epochs=1)
        assert zeros(other.net, other.masks) == module.masks.total - module.masks.kept
        assert not equal(other.net.state_dict(), module.net.state_dict()), "it has been trained"
        other.masks.check(other.net)


def test_another_optimizer_and_another_fit_keep_the_masks(here, tiny):
    first = tiny("fit", *options(density=0.1, at="4it"), "--name=first")
    assert main(first) == 0
    path = here / "lightning_logs/first/run-1/checkpoints/last.ckpt"
    again = tiny("fit", f"--model.init_from={path}", "--model.optimizer=Adam", "--name=again", "--model.fast=true")
    assert main([*again, "--model.check_masks=step"]) == 0
    folder = here / "lightning_logs/again/run-1"
    assert load_masks(folder / "checkpoints/last.ckpt") == load_masks(path)
    rows = [read_row(path.parents[1]), read_row(folder)]
    assert rows[0]["nonzero_parameters"] == rows[1]["nonzero_parameters"] == 910 - (888 - 89)
    assert not equal(checkpoint(path)["state_dict"], checkpoint(folder / "checkpoints/last.ckpt")["state_dict"])


def test_the_tested_and_the_loaded_network_are_masked(here, tiny):
    run = tiny("fit", *options(density=0.1, curve="geometric", end="1ep", every="2it"), "--name=one")
    assert main(run) == 0
    assert main(tiny("test", "--name=one")) == 0
    folder = here / "lightning_logs/one/run-1"
    net, masks = (read(folder / "checkpoints/best.ckpt") for read in (smallnets.load, load_masks))
    assert masks.kept == 89 and zeros(net, masks) == 888 - 89
    assert set(net.state_dict()) == set(LeNet(hidden_widths=[12], image_size=8, in_channels=1).state_dict())
    row = read_row(folder)
    assert row["test_reads"] == 1 and row["nonzero_parameters"] == 910 - (888 - 89)


def test_an_average_of_weights_has_exact_zeros(here, tiny):
    average = ("--trainer.callbacks+=EMA", "--trainer.callbacks.decay=0.99")
    schedule = options(density=0.1, curve="cubic", end="9it", every="1it")
    for name, both in {"before": [*average, *schedule], "after": [*schedule, *average]}.items():
        assert main(tiny("fit", *both, f"--name={name}")) == 0
        path = here / f"lightning_logs/{name}/run-1/checkpoints/last.ckpt"
        masks, saved = load_masks(path), checkpoint(path)
        assert masks.kept == 89
        for state in (saved["state_dict"], saved["current_model_state"]):
            assert sum(int((state[f"net.{name}"] == 0).sum()) for name in masks) == 888 - 89
        assert not equal(saved["state_dict"], saved["current_model_state"])
        assert zeros(smallnets.load(path), masks) == 888 - 89
    runs = [checkpoint(here / f"lightning_logs/{name}/run-1/checkpoints/last.ckpt") for name in ("before", "after")]
    assert equal(runs[0]["state_dict"], runs[1]["state_dict"]), "the callbacks' order means nothing"


class RoundedConv2d(nn.Conv2d):
    """Its forward uses the weight rounded to int8 per filter, straight through, as in quantisation-aware training."""

    def rounded(self):
        step = self.weight.detach().abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-8) / 127
        return self.weight + ((self.weight / step).round() * step - self.weight).detach()

    def forward(self, images):
        return self._conv_forward(images, self.rounded(), self.bias)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_masks_stay_in_quantisation_aware_training_and_in_the_integers(here, name):
    torch.manual_seed(0)
    net = nn.Sequential(RoundedConv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    before = net[0].weight.detach().clone()
    module = classifier(net, OPTIMIZERS[name], check_masks="step")
    fit(module, PruningSchedule(density=0.3, curve="cubic", end="6it", every="2it"), max_epochs=2)
    masks = module.masks
    assert masks.kept == round(0.3 * masks.total) and zeros(net, masks) == masks.total - masks.kept
    assert not torch.equal(net[0].weight[masks["0.weight"]], before[masks["0.weight"]]), "it was trained"
    rounded = net[0].rounded()
    assert not rounded[~masks["0.weight"]].any() and rounded[masks["0.weight"]].any()


# -- beside Lightning's own --------------------------------------------------------------------------------------------


def straight_and_resumed(here, pruning, name):
    """The networks after four epochs, and after the first two of them and a resume for the others."""
    nets = []
    for part, start in (("straight", None), ("resumed", here / name / "straight/epoch=1.ckpt")):
        module = classifier()
        save = ModelCheckpoint(dirpath=here / name / part, save_top_k=-1, every_n_epochs=1, filename="{epoch}")
        fit(module, pruning(), save, max_epochs=4, ckpt_path=start)
        nets.append(smallnets.load(here / name / part / "epoch=3.ckpt"))
    return nets


@pytest.mark.filterwarnings("ignore:.*deprecat.*")
def test_lightnings_own_pruning_forgets_on_a_resume_and_this_does_not(here):
    """Of Lightning 2.6: its masks are in no checkpoint, and it prunes what keeps a network alive."""

    def theirs():
        return ModelPruning("l1_unstructured", amount=0.2, use_global_unstructured=True)

    def share_of_zeros(net):
        return sum(int((p == 0).sum()) for p in net.parameters()) / sum(p.numel() for p in net.parameters())

    def norms(net):
        return [p for m in net.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()]

    straight, resumed = straight_and_resumed(here, theirs, "theirs")
    assert share_of_zeros(straight) == pytest.approx(1 - 0.8**4, abs=0.01)
    assert share_of_zeros(resumed) < share_of_zeros(straight) - 0.05
    assert any((p == 0).any() for p in norms(straight))

    def ours():
        return PruningSchedule(density=0.8**4, curve="geometric", end="4ep", every="1ep")

    straight, resumed = straight_and_resumed(here, ours, "ours")
    assert equal(straight.state_dict(), resumed.state_dict())
    masks = load_masks(here / "ours/resumed/epoch=3.ckpt")
    assert masks.kept == round(0.8**4 * masks.total) and zeros(straight, masks) == masks.total - masks.kept
    assert not any((p == 0).all() for p in norms(straight))


# -- export ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def masked():
    """A network with masks, and images."""
    net = resnet().eval()
    masks = next_masks(net, None, "magnitude", 0.1, scope="layer")
    masks.apply_(net)
    assert zeros(net, masks) == masks.total - masks.kept
    return net, torch.rand(3, 1, 8, 8)


def test_a_masked_network_goes_through_torch_export(masked):
    net, images = masked
    program = torch.export.export(net, (images,))
    assert torch.equal(program.module()(images), net(images))
    weights = {name: value for name, value in program.state_dict.items() if name in Masks.dense(net)}
    assert len(weights) == 4
    assert all(torch.equal(value, net.get_parameter(name)) for name, value in weights.items())


@pytest.mark.filterwarnings("ignore")
def test_a_masked_network_goes_through_onnx(masked, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    net, images = masked
    torch.onnx.export(net, (images,), tmp_path / "net.onnx", dynamo=True, verbose=False)
    session = runtime.InferenceSession(tmp_path / "net.onnx")
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), net(images).detach(), rtol=1e-5, atol=1e-6)
