"""`FakeQuantized`: the numbers worked out by hand, every family, and the integers of its file."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_export import FAMILIES, SIDE, made, needs
from torch import Tensor, nn

from smallnets.compress import compare_logits, open_exported, to_file
from smallnets.errors import UserError
from smallnets.layers import QuaternionConv2d, QuaternionLinear
from smallnets.models import LeNet, ResNet
from smallnets.pruning import Masks, select
from smallnets.pruning.criteria import magnitude
from smallnets.surgery import FakeQuantized, fold, to_quaternion
from smallnets.surgery.fake_quantize import fake_quantized_weight, range_numbers, weight_scale


def seen(net: nn.Module, shape: tuple[int, ...]) -> FakeQuantized:
    """The rounded network in eval mode after it was calibrated and has trained its ranges."""
    fake = FakeQuantized(net, decay=0.9).calibrate([torch.randn(16, *shape)]).train()
    with torch.no_grad():
        for _ in range(30):
            fake(torch.randn(16, *shape))
            fake.update_ranges()
    return fake.eval()


# -- numbers -----------------------------------------------------------------------------------------------------------


def linear(*rows: list[float]) -> nn.Linear:
    layer = nn.Linear(len(rows[0]), len(rows), bias=False)
    layer.weight.data = torch.tensor(rows)
    return layer


def test_weights_worked_out_by_hand() -> None:
    layer = linear([127.0, 0.4, 0.6, -126.6], [0.0, 0.0, 0.0, 0.0], [-254.0, 0.9, 1.1, 254.0])
    assert weight_scale(layer).flatten().tolist() == [1.0, 1.0, 2.0]
    found = fake_quantized_weight(layer)
    assert found.tolist() == [[127.0, 0.0, 1.0, -127.0], [0.0, 0.0, 0.0, 0.0], [-254.0, 0.0, 2.0, 254.0]]
    factors = torch.arange(12.0).view(3, 4)
    (found * factors).sum().backward()
    assert torch.equal(layer.weight.grad, factors)  # as if nothing were rounded


def test_ranges_worked_out_by_hand() -> None:
    scale, zero = range_numbers(torch.tensor([51.0, 204.0]))  # from -51 to 204
    assert (float(scale), int(zero)) == (1.0, 51)
    scale, zero = range_numbers(torch.tensor([-3.0, 255.0]))  # from 3 to 255: 0 is held too
    assert (float(scale), int(zero)) == (1.0, 0)
    scale, zero = range_numbers(torch.tensor([255.0, -2.0]))  # from -255 to -2
    assert (float(scale), int(zero)) == (1.0, 255)


@pytest.mark.parametrize("layer", [QuaternionConv2d(8, 12, 3), QuaternionLinear(8, 12)], ids=["conv", "linear"])
def test_a_quaternions_rows_share_their_scale(layer: Any) -> None:
    """The integers of the weight are those of the real kernel, rounded as any other kernel."""
    with torch.no_grad():
        kernel = layer.kernel()
        largest = kernel.abs().flatten(1).amax(1).view(-1, *[1] * (kernel.dim() - 1))
        assert torch.equal(weight_scale(layer).flatten(), (largest / 127).flatten())
        layer.weight.copy_(fake_quantized_weight(layer))
        assert torch.equal(layer.kernel(), (kernel / (largest / 127)).round() * (largest / 127))


def test_rounding_and_folding_commute() -> None:
    """The integers of a folded weight are those of the unfolded one, up to the sign of BatchNorm's factor."""
    net, _ = made("resnet")
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(torch.randn(module.weight.shape))
    folded = dict(fold(FakeQuantized(net).snapped()).named_modules())
    for name, layer in net.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            own, stored = [(each.weight / weight_scale(each)).round() for each in (layer, folded[name])]
            sign = (own * stored).sum(dim=tuple(range(1, own.dim())), keepdim=True).sign()
            assert own.abs().amax() == 127 and torch.equal(own, sign * stored)


# -- the network -------------------------------------------------------------------------------------------------------


class Small(nn.Module):
    """Everything that the choice of rounded values looks at."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.conv(x)))
        return self.head(self.pool(x + x).flatten(1))


def by_hand(net: Small, x: Tensor, bounds: Tensor) -> Tensor:
    """`Small` with its three rounded values and two rounded weights, in plain PyTorch."""

    def rounded(value: Tensor, pair: Tensor) -> Tensor:
        low, high = min(-float(pair[0]), 0.0), max(float(pair[1]), 0.0)
        scale = (high - low) / 255
        zero = round(-low / scale)
        return ((value / scale).round() + zero).clamp(0, 255).sub(zero) * scale

    def weight(value: Tensor) -> Tensor:
        scale = (value.abs().flatten(1).amax(1) / 127).view(-1, *[1] * (value.dim() - 1))
        return (value / scale).round() * scale

    x = F.conv2d(rounded(x, bounds[0]), weight(net.conv.weight), padding=1)
    x = rounded(F.relu(net.norm(x)), bounds[1])
    x = F.max_pool2d(rounded(x + x, bounds[2]), 2)
    return F.linear(x.flatten(1), weight(net.head.weight), net.head.bias)


def test_the_network_equals_one_by_hand() -> None:
    torch.manual_seed(0)
    net = Small()
    fake = seen(net, (1, 4, 4))
    assert fake.points == ["x", "relu", "add"]
    x = torch.randn(8, 1, 4, 4)
    torch.testing.assert_close(fake(x), by_hand(net, x, fake.bounds), rtol=0, atol=1e-5)
    assert (fake(x) - net(x)).abs().max() > 1e-4  # rounding is there
    fake(x).square().sum().backward()
    assert all(bool(each.grad.abs().sum() > 0) for each in net.parameters())


def test_ranges_are_a_moving_average_of_what_training_saw() -> None:
    net = nn.Sequential(nn.Linear(2, 2))
    fake = FakeQuantized(net, decay=0.75).calibrate([torch.tensor([[-1.0, 3.0]]), torch.tensor([[-2.0, 1.0]])])
    assert fake.bounds.tolist() == [[2.0, 3.0]]
    assert fake.training and net.training
    fake(torch.tensor([[-6.0, 2.0]]))
    fake(torch.tensor([[-1.0, 7.0]]))  # gradients of two batches, one step
    assert fake.bounds.tolist() == [[2.0, 3.0]]  # a pass moves nothing
    fake.update_ranges()
    assert fake.bounds.tolist() == [[3.0, 4.0]]
    fake.update_ranges()  # nothing was seen since
    assert fake.bounds.tolist() == [[3.0, 4.0]]
    fake.eval()(torch.tensor([[-99.0, 99.0]]))
    fake.update_ranges()
    assert fake.bounds.tolist() == [[3.0, 4.0]]  # validation is not looked at
    fake.train()(torch.tensor([[-7.0, 8.0]]))
    fake.update_ranges(lambda values: values + 4)  # another process saw more
    assert fake.bounds.tolist() == [[5.0, 6.0]]


def test_an_activation_outside_of_its_range_has_no_gradient() -> None:
    fake = FakeQuantized(nn.Sequential(nn.Linear(2, 2))).calibrate([torch.tensor([[-1.0, 3.0]])])
    x = torch.tensor([[-2.0, 1.0]], requires_grad=True)
    fake(x).sum().backward()
    assert x.grad[0, 0] == 0 and x.grad[0, 1] != 0


def test_calibration_takes_floats_in_eval_mode() -> None:
    """Ranges as those of post-training quantisation: the float network's own values; statistics stay."""
    net, shape = made("resnet")
    net.train()
    buffers = {name: value.clone() for name, value in net.named_buffers()}
    images, found = torch.randn(8, *shape), []
    fake = FakeQuantized(net).calibrate([images])
    assert net.training and all(torch.equal(value, buffers[name]) for name, value in net.named_buffers())
    net.stages[0][0].conv1.register_forward_pre_hook(lambda module, given: found.append(given[0]))
    with torch.no_grad():
        net.eval()(images)
    assert fake.points[:2] == ["x", "relu"]
    wanted = [[float(-each.min()), float(each.max())] for each in (images, found[0])]
    # The weights before it are rounded, the activations are not.
    assert fake.bounds[0].tolist() == wanted[0] and fake.bounds[1].tolist() == pytest.approx(wanted[1], rel=0.02)


def test_a_network_is_left_as_it_was_and_a_record_brings_the_same_back() -> None:
    net, shape = made("preact")
    keys, x = list(net.state_dict()), torch.randn(4, *shape)
    before = net(x)
    fake = seen(net, shape)
    buffers = {name: value.clone() for name, value in net.named_buffers()}
    record = fake.record()
    assert list(net.state_dict()) == keys and type(net).__name__ == "PreActResNet"
    again = FakeQuantized(net, record=record)
    assert again.record().keys() == record.keys() and not net.training
    assert torch.equal(again(x), fake(x)) and not torch.equal(again(x), before)
    assert all(torch.equal(value, buffers[name]) for name, value in net.named_buffers())
    with pytest.raises(UserError, match="the ranges are those of another network than this LeNet"):
        FakeQuantized(LeNet(), record=record)


class Switches(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.layer = kind, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "data":
            return self.layer(x) if x.sum() > 0 else x
        return F.dropout(self.layer(x), training=self.training)


@pytest.mark.parametrize(
    ("net", "numbers", "message"),
    [
        (nn.Sequential(nn.Linear(2, 2)), {"decay": 1.0}, "decay must be at least 0 and below 1, got 1.0"),
        (nn.Sequential(nn.ReLU(), nn.BatchNorm1d(2)), {}, "Sequential has no convolution and no linear layer"),
        (Switches("data"), {}, "Switches cannot be quantised, its forward cannot be followed"),
        (Switches("mode"), {}, "its forward differs between training and evaluation"),
        (
            to_quaternion(ResNet(blocks=[1], channels=[8], in_channels=4), norm="whitening"), {},
            r"net.bn1 cannot be quantised: a whitening norm mixes the channels of net.conv1",
        ),
        (nn.Sequential(QuaternionConv2d(8, 8, 3, groups=2)), {}, "a quaternion convolution of 2 groups cannot be"),
    ],
)  # fmt: skip
def test_what_is_refused(net: nn.Module, numbers: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        FakeQuantized(net, **numbers)


# -- the file ----------------------------------------------------------------------------------------------------------


def integers(path: Path) -> list[np.ndarray]:
    """Every weight of an ONNX file, all of which must be int8."""
    import onnx

    stored = [onnx.numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer]
    assert not [each.shape for each in stored if each.ndim >= 2 and each.dtype == np.float32 and each.shape[0] > 1]
    return [each for each in stored if each.ndim >= 2 and each.dtype == np.int8]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_file_computes_what_was_trained(family: str, tmp_path: Path) -> None:
    """With masks: its zeros are the masks', and each other integer is that of the unfolded weight."""
    needs("onnx")
    net, shape = made(family)
    masks = select(magnitude(net, Masks.dense(net)), density=0.3)
    masks.apply_(net)
    with torch.no_grad():  # no weight that is kept lies within half a step of 0
        for name, weight in masks.weights(net).items():
            weight.add_(masks[name] * weight.sign() * 0.3 * weight.abs().max())
    fake = seen(net, shape)
    path = to_file(fake, tmp_path / "a.onnx", shape, dtype="int8")
    agreement = compare_logits(fake, open_exported(path, 1), torch.randn(64, *shape))
    assert agreement.relative < 0.02
    layers = dict(net.named_modules())
    for name, mask in masks.items():
        layer: Any = layers[name.removesuffix(".weight")]
        kernel = layer.kernel() if hasattr(layer, "kernel") else layer.weight
        kept = mask if kernel is layer.weight else kernel != 0
        assert int(kept.sum()) == int(mask.sum()) * (kernel.numel() // mask.numel())
        scale = kernel.detach().abs().flatten(1).amax(1).clamp(min=1e-30).view(-1, *[1] * (kernel.dim() - 1)) / 127
        wanted = (kernel.detach() / scale).round().abs().numpy()
        assert np.array_equal(wanted != 0, kept.numpy())
        ways = (wanted, wanted.T) if wanted.ndim == 2 else (wanted,)
        assert any(np.array_equal(abs(each), way) for each in integers(path) for way in ways)
    total = sum(int((each == 0).sum()) for each in integers(path))
    factor = 4 if family == "quaternion" else 1
    heads = 0
    if factor == 4:  # its head is an ordinary linear layer
        heads = next(int((~mask).sum()) for name, mask in masks.items() if name.endswith("head.weight"))
    assert total == factor * (masks.total - masks.kept) - 3 * heads


def test_a_bias_beyond_int32_gets_a_larger_scale(tmp_path: Path) -> None:
    needs("onnx")
    net = LeNet(hidden_widths=[4], image_size=SIDE, in_channels=1).eval()
    with torch.no_grad():
        net.head[0].weight[0] = 1e-12
        net.head[0].bias[0] = 3.0
    fake = seen(net, (1, SIDE, SIDE))
    path = to_file(fake, tmp_path / "a.onnx", (1, SIDE, SIDE), dtype="int8")
    assert compare_logits(fake, open_exported(path, 1), torch.randn(8, 1, SIDE, SIDE)).relative < 1e-3


def test_it_is_written_as_onnx_int8_alone(tmp_path: Path) -> None:
    net, shape = made("resnet")
    fake = seen(net, shape)
    for format, dtype in (("onnx", "fp32"), ("pt2", "fp16"), ("executorch", "int8")):
        with pytest.raises(UserError, match=f"is written as onnx, int8; asked for was {format}, {dtype}"):
            to_file(fake, tmp_path / "a", shape, format=format, dtype=dtype)
    assert not list(tmp_path.iterdir())


def test_copies_and_embeddings_follow_the_network() -> None:
    """A learned embedding that is replaced (another width, another device) is the one that is used."""
    net, shape = made("vit")
    fake, x = seen(net, shape), torch.randn(4, *shape)
    before, again = fake(x), copy.deepcopy(fake)
    assert torch.equal(again(x), before)
    name = next(name for name, _ in net.named_parameters() if "pos" in name)
    setattr(net, name, nn.Parameter(getattr(net, name).detach() + 1))
    moved = fake(x)
    assert not torch.equal(moved, before) and torch.equal(again(x), before)
    assert torch.equal(moved, FakeQuantized(net, record=fake.record())(x))
    assert {f"net.{name}" for name in net.state_dict()} == set(fake.state_dict())
