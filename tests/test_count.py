"""Exact counts of networks, and the table that `smallnets models` prints."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.utils import prune

from smallnets.errors import UserError
from smallnets.measure import Counts, count, stored_bytes
from smallnets.models import NETWORKS, ResNet, make
from smallnets.models.vit import Attention
from smallnets.verbs.models import run

# MACs with 10 classes at the network's usual image, from the documents' tables.
MACS = {
    "resnet18": 555_422_720,
    "resnet34": 1_159_402_496,
    "resnet18_s": 35_046_656,
    "resnet20": 40_813_184,
    "resnet34_imagenet": 74_765_312,
    "preact_resnet18": 555_422_720,
    "vgg16": 313_725_952,
    "vgg16_s": 19_940_608,
    "vit_h4": 641_215_488,
    "vit_h4_s_published": 58_223_360,
    "densenet121_imagenet": 57_829_376,
    "res26_avvari": 1_179_483_088,
    "res24_avvari": 1_324_564_396,
}


def on_meta(name: str, num_classes: int = 10, **overrides: object) -> nn.Module:
    with torch.device("meta"):
        return make(name, num_classes, **overrides)


def by_hand(net: nn.Module, images: Tensor) -> int:
    """MACs of convolutions, linear layers and attention from the shapes of a forward: an independent reference."""
    total = 0

    def add(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            total += output.numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            total += output.numel() * module.in_features
        elif isinstance(module, Attention):
            # Each token with each: q k^T, and the softmax's rows with v.
            total += 2 * output.shape[1] ** 2 * module.heads * module.head_width

    handles = [module.register_forward_hook(add) for module in net.modules()]
    with torch.no_grad():
        net(images)
    for handle in handles:
        handle.remove()
    return total


# --- MACs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MACS)
def test_macs_of_the_documents(name: str) -> None:
    counts = count(on_meta(name))
    assert counts.macs == MACS[name] and counts.flops == 2 * MACS[name]


@pytest.mark.parametrize(
    ("channels", "blocks", "macs"),
    [
        ([94, 192, 120, 200], [3, 3, 2, 3], 1_034_341_328),
        ([32, 64, 128, 256], [3, 4, 6, 3], 290_294_272),
        ([64, 128, 256], [3, 4, 3], 723_192_320),
    ],
)
def test_macs_of_the_other_rows_of_document_002(channels: list[int], blocks: list[int], macs: int) -> None:
    with torch.device("meta"):
        net = ResNet(channels=channels, blocks=blocks, pool=8 if len(blocks) == 3 else 4)
    assert count(net).macs == macs


def test_layer_removal_of_document_004_with_stride_4_and_2() -> None:
    with torch.device("meta"):
        narrow = ResNet(blocks=[2, 2, 2], channels=[64, 128, 256], strides=[1, 2, 4])
        wide = ResNet(blocks=[2, 2, 2], channels=[64, 128, 256])
    assert count(narrow).macs == 320_539_136 and count(wide).macs == 421_202_432


def test_options_and_heads_change_macs_as_stated() -> None:
    assert count(on_meta("resnet20", shortcut="A")).macs == 40_551_040
    assert count(on_meta("densenet121_imagenet", 1000)).macs == 58_843_136
    assert count(on_meta("vit_h4", 100)).macs - MACS["vit_h4"] == 512 * 90
    # A fourth channel adds 64 x 9 products at each of 32 x 32 places.
    assert count(on_meta("resnet18", in_channels=4), in_channels=4).macs - MACS["resnet18"] == 64 * 9 * 1024


@pytest.mark.parametrize("name", NETWORKS)
def test_macs_equal_those_of_the_shapes_of_a_forward(name: str) -> None:
    entry = NETWORKS[name]
    net = on_meta(name).eval()
    images = torch.zeros(1, entry.in_channels, entry.image_size, entry.image_size, device="meta")
    assert count(net, entry.image_size, entry.in_channels).macs == by_hand(net, images)


def test_attention_adds_two_products_over_all_tokens() -> None:
    net = make("vit_h4_s").eval()
    attention = 4 * 2 * 65 * 65 * 128
    linear = by_hand(net, torch.zeros(1, 3, 32, 32)) - attention
    assert linear == sum(layer.macs for layer in count(net).layers if layer.kind in ("Linear", "Conv2d"))
    layers = {layer.name: layer for layer in count(net).layers}
    assert layers["encoder.0.attention"].macs == 2 * 65 * 65 * 128
    assert layers["encoder.0.attention"].parameters == 0


@pytest.mark.parametrize(
    ("name", "giga", "parameters"),
    [("resnet18", 1.814, 11_689_512), ("vit_b_16", 17.564, 86_567_656), ("densenet121", 2.834, 7_978_856)],
)
def test_torchvision_publishes_the_same_numbers(name: str, giga: float, parameters: int) -> None:
    with torch.device("meta"):
        net = getattr(torchvision.models, name)()
    counts = count(net, image_size=224)
    assert round(counts.macs / 1e9, 3) == giga and counts.parameters == parameters


# --- layers -----------------------------------------------------------------------------------------------------------


class Tiny(nn.Module):
    """A 2-channel convolution on 4 x 4 images, a functional convolution with a parameter of its own, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1, bias=False)
        self.kernel = nn.Parameter(torch.ones(3, 2, 1, 1))
        self.head = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(self.conv(x), self.kernel)
        return self.head(x.mean(dim=(2, 3)) + torch.zeros(3))


def test_layers_by_hand() -> None:
    net = Tiny()
    with torch.no_grad():
        net.conv.weight.fill_(1.0)
        net.conv.weight[0, 0, 0, :2] = 0.0
        net.head.weight.fill_(1.0)
        net.head.bias.zero_()
    counts = count(net, image_size=4, in_channels=1)
    assert [(layer.name, layer.kind, layer.parameters, layer.macs) for layer in counts.layers] == [
        ("", "Tiny", 6, 16 * 6),
        ("conv", "Conv2d", 18, 16 * 18),
        ("head", "Linear", 20, 15),
    ]
    assert [layer.nonzero_parameters for layer in counts.layers] == [6, 16, 15]
    assert [layer.output_shape for layer in counts.layers] == [(5,), (2, 4, 4), (5,)]
    assert (counts.parameters, counts.nonzero_parameters, counts.macs) == (44, 37, 96 + 288 + 15)
    assert counts.bytes == 4 * 44 and counts.flops == 2 * 399
    assert [layer.name for layer in counts.largest(2)] == ["head", "conv"]
    assert [layer.name for layer in counts.largest(1, by="macs")] == ["conv"]


@pytest.mark.parametrize("name", ["resnet20", "vit_h4_s", "densenet121"])
def test_layers_sum_to_the_network(name: str) -> None:
    counts = count(on_meta(name))
    assert sum(layer.parameters for layer in counts.layers) == counts.parameters
    assert sum(layer.macs for layer in counts.layers) == counts.macs
    assert counts.nonzero_parameters == counts.parameters  # there are no values on the meta device


def test_a_layer_called_twice_counts_its_macs_twice_and_its_parameters_once() -> None:
    shared = nn.Linear(4, 4, bias=False)
    net = nn.Sequential(nn.Flatten(), shared, nn.ReLU(), shared)
    counts = count(net, image_size=2, in_channels=1)
    assert (counts.parameters, counts.macs, counts.bytes) == (16, 32, 64)


def test_frozen_parameters_are_stored_but_not_trainable() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False), nn.Linear(2, 3, bias=False))
    net[1].requires_grad_(False)
    counts = count(net, image_size=2, in_channels=1)
    assert (counts.parameters, counts.nonzero_parameters, counts.macs, counts.bytes) == (6, 6, 14, 4 * 14)


# --- the network stays as it was --------------------------------------------------------------------------------------


def test_count_leaves_the_network_alone() -> None:
    net = make("resnet18_s")
    net.stages[1].eval()
    modes = [module.training for module in net.modules()]
    state = copy.deepcopy(net.state_dict())
    calls: list[str] = []
    net.conv1.register_forward_hook(lambda module, inputs, output: calls.append("conv1"))
    net.register_forward_pre_hook(lambda module, inputs: calls.append("net"))
    count(net)
    assert calls == []
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(state[key], each) for key, each in net.state_dict().items())
    assert all(each.requires_grad and each.device.type == "cpu" and each.grad is None for each in net.parameters())
    net(torch.zeros(2, 3, 32, 32))
    assert calls == ["net", "conv1"]


def test_networks_with_reparametrised_weights_or_half_precision_can_be_counted() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    prune.random_unstructured(net[1], "weight", 0.5)
    net(torch.zeros(1, 1, 2, 2))
    assert count(net, 2, 1).macs == 8
    assert count(make("resnet20").to(torch.bfloat16)).macs == MACS["resnet20"]


def test_an_image_that_does_not_fit_is_a_users_error() -> None:
    with pytest.raises(UserError) as caught:
        count(make("lenet_12"))
    asked, reason = str(caught.value).split("\n")
    assert asked == "LeNet cannot run on an input of shape (1, 3, 32, 32):" and "1 x 28 x 28, got 3 x 32 x 32" in reason
    with pytest.raises(UserError, match=r"^Sequential cannot run on an input of shape \(1, 3, 8, 8\):\n.*192.*$"):
        count(nn.Sequential(nn.Flatten(), nn.Linear(7, 2)), image_size=8)


# --- bytes ------------------------------------------------------------------------------------------------------------


def test_stored_bytes_of_resnet20() -> None:
    # Four bytes a parameter; two statistics a BatchNorm channel and an eight-byte step counter a BatchNorm.
    widths = [16] * 7 + [32] * 7 + [64] * 7
    assert stored_bytes(make("resnet20")) == 4 * 272_474 + 4 * 2 * sum(widths) + 8 * len(widths)
    assert stored_bytes(on_meta("resnet20").half()) == 2 * 272_474 + 2 * 2 * sum(widths) + 8 * len(widths)


# --- smallnets models -------------------------------------------------------------------------------------------------


def test_models_json_has_every_name_with_10_and_100_classes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["num_classes"]) for row in found] == [(n, c) for n in NETWORKS for c in (10, 100)]
    macs = {row["name"]: row["macs"] for row in found if row["num_classes"] == 10}
    assert {name: macs[name] for name in MACS} == MACS
    row = next(row for row in found if row["name"] == "resnet20" and row["num_classes"] == 100)
    assert row == {
        "name": "resnet20",
        "num_classes": 100,
        "parameters": 278_324,
        "macs": 40_818_944,
        "class_path": "smallnets.models.ResNet",
        "image_size": 32,
        "in_channels": 3,
    }


def test_models_of_some_names_is_a_plain_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--num_classes", "7", "resnet20", "lenet_12"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["name", "input", "parameters", "(7)", "MACs", "(7)"]
    assert lines[0].split() == ["resnet20", "3x32x32", f"{272_474 - 3 * 65:,}", f"{40_813_184 - 3 * 64:,}"]
    assert lines[1].split() == ["lenet_12", "1x28x28", f"{9_550 - 3 * 13:,}", f"{9_528 - 3 * 12:,}"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["resnet21"], "no network is called 'resnet21'; nearest: 'resnet20'"),
        (["--num_classes", "ten"], "argument --num_classes: invalid int value: 'ten'"),
        (["--num_classes", "0", "resnet20"], "num_classes must be a whole number of at least 1, got 0"),
        (["--jsn"], "--jsn"),
    ],
)
def test_models_command_line_mistakes(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(argv) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and words in printed.err and len(printed.err.splitlines()) <= 2


def test_models_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    assert "smallnets models" in capsys.readouterr().out


def test_counts_is_a_value() -> None:
    counts = count(on_meta("resnet20"))
    assert isinstance(counts, Counts) and counts == count(on_meta("resnet20"))
    with pytest.raises(AttributeError):
        counts.macs = 0  # type: ignore[misc]
