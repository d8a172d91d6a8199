"""fit_widths, and through it `smallnets.load`: a network comes back from the shapes of its tensors alone."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import smallnets
from smallnets import models
from smallnets.errors import UserError
from smallnets.measure import count
from smallnets.models import spec_of
from smallnets.pruning import prune_layers
from smallnets.surgery import fit_widths

# One of each family: network, image side, channels of its images, what is pruned.
FAMILIES = {
    "ResNet": (lambda: models.resnet20(), 16, 3, {"stages.*.conv?": 0.3}),
    "ResNet pooled": (
        lambda: models.ResNet(blocks=[1, 1], channels=[8, 12], pool=2, image_size=16), 16, 3, {"*.conv2": 0.3},
    ),
    "bottleneck": (
        lambda: models.ResNet(blocks=[1, 1], channels=[8, 12], block="bottleneck"), 16, 3, {"*.conv?": 0.3},
    ),
    "ResNet A": (lambda: models.resnet20(shortcut="A"), 16, 3, {"stages.*.conv1": 0.3}),
    "VGG": (lambda: models.vgg16_s(), 32, 3, {"stages.0.*": 0.3, "stages.4.*": 0.3, "head.1": 0.3}),
    "PreActResNet": (lambda: models.PreActResNet(channels=[8, 12, 16, 20]), 16, 3, {"stages.*.conv?": 0.3}),
    "DenseNet": (
        lambda: models.DenseNet(blocks=[2, 2], growth_rate=6, stem_channels=8), 16, 3,
        {"start.0": 0.3, "stages.*.conv?": 0.3},
    ),
    "LeNet": (lambda: models.lenet_300_100(), 28, 1, {"head.0": 0.3, "head.2": 0.3}),
    "ConvNet": (lambda: models.conv2(), 32, 3, {"stages.*": 0.3, "head.0": 0.3}),
}  # fmt: skip


def saved(net: nn.Module, path: Path) -> Path:
    """A checkpoint with what `load` reads of one."""
    state = {f"net.{name}": value for name, value in net.state_dict().items()}
    torch.save({"smallnets": {"net": spec_of(net)}, "state_dict": state}, path)
    return path


def numbers(net: nn.Module) -> dict[str, str]:
    """What each layer says of itself: its channels, groups, features."""
    return {name: module.extra_repr() for name, module in net.named_modules()}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_pruned_network_is_loaded_with_bitwise_equal_logits(name, tmp_path):
    build, size, channels, ratios = FAMILIES[name]
    torch.manual_seed(0)
    net = build()
    dense = count(net, size, channels)
    prune_layers(net, ratios, "l1", size, channels)
    net.train()(torch.rand(8, channels, size, size))  # running statistics of its own
    images = torch.rand(4, channels, size, size)
    loaded = smallnets.load(saved(net, tmp_path / "best.ckpt"))
    assert torch.equal(loaded(images), net.eval()(images))
    assert numbers(loaded) == numbers(net)
    counts = count(loaded, size, channels)
    assert counts == count(net, size, channels) and counts.parameters < dense.parameters
    assert count(prune_layers(loaded, ratios, "l1", size, channels), size, channels).parameters < counts.parameters


def test_a_dense_network_is_not_touched():
    net = models.ResNet(blocks=[1], channels=[8])
    before = dict(net.named_parameters())
    assert fit_widths(net, copy.deepcopy(net.state_dict())) is net
    assert all(net.get_parameter(name) is parameter for name, parameter in before.items())


def test_layers_tell_their_new_numbers():
    def layers(width: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, groups=width),
            nn.InstanceNorm2d(width, affine=True), nn.Flatten(1, 2), nn.Linear(4, width), nn.LayerNorm(width),
        )  # fmt: skip

    net, narrow = layers(8), layers(5)
    fit_widths(net, narrow.state_dict()).load_state_dict(narrow.state_dict())
    assert numbers(net) == numbers(narrow)
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(net.eval()(images), narrow.eval()(images))


def test_flags_and_memory_format_stay():
    net = nn.Sequential(nn.Conv2d(3, 8, 3).requires_grad_(False), nn.BatchNorm2d(8))
    net = net.to(memory_format=torch.channels_last, dtype=torch.bfloat16)
    fit_widths(net, nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)).state_dict())
    assert [p.requires_grad for p in net.parameters()] == [False, False, True, True]
    assert net[0].weight.is_contiguous(memory_format=torch.channels_last) and not net[0].weight.is_contiguous()
    assert net[1].running_mean.dtype == net[0].weight.dtype == torch.bfloat16
    assert set(net.state_dict()) == {"0.weight", "0.bias"} | {
        f"1.{n}" for n in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }


def test_shared_tensors_stay_shared():
    def tied(width: int) -> nn.Sequential:
        net = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        net[2].weight = net[0].weight
        return net

    net, narrow = tied(8), tied(5)
    fit_widths(net, narrow.state_dict()).load_state_dict(narrow.state_dict())
    assert net[0].weight is net[2].weight
    assert sum(p.numel() for p in net.parameters()) == 5 * 5 + 5 + 5
    assert torch.equal(net(torch.ones(1, 5)), narrow(torch.ones(1, 5)))


class Scaled(nn.Module):
    """A parameter that a class of its own holds."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))


def test_a_parameter_of_a_class_of_ones_own_is_resized():
    assert fit_widths(Scaled(8), Scaled(5).state_dict()).scale.shape == (5,)


@pytest.mark.parametrize(
    ("net", "other", "message"),
    [
        (nn.Conv2d(4, 8, 1, groups=2), nn.Conv2d(4, 4, 1, groups=2), r"weight: the width of a grouped \(2 groups\)"),
        (nn.ConvTranspose2d(3, 8, 1), nn.ConvTranspose2d(3, 5, 1), "weight: the width of a transposed convolution"),
        (nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 5), r"weight has shape \[8, 3, 5, 5\] .* and \[8, 3, 3, 3\] in the net"),
        (nn.Conv2d(3, 8, 1), nn.Conv1d(3, 8, 1), "weight has 3 dimensions in the checkpoint and 4 in the network"),
        (nn.PReLU(8), nn.PReLU(5), "weight: the width of a PReLU cannot be read"),
        (nn.Linear(4, 4), nn.Linear(3, 4, bias=False), "a Linear of these numbers: the checkpoint lacks 'bias'"),
        (nn.Linear(4, 4, bias=False), nn.Linear(3, 4), "the network has no place for 'bias'"),
    ],
)
def test_what_cannot_be_told_from_shapes_is_refused(net, other, message):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(UserError, match=message):
        fit_widths(net, other.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_names_that_one_side_lacks_are_let_pass_where_asked():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    fit_widths(net, {"0.weight": torch.ones(3, 4), "0.bias": torch.ones(3), "9": torch.ones(1)}, strict=False)
    assert net[0].out_features == 3 and net[1].in_features == 4


def test_heads_follow_the_rows_of_q_k_and_v():
    def vit(heads: int) -> models.ViT:
        """Heads of four channels."""
        net = models.ViT(dim=16, depth=2, heads=4, mlp_dim=8, head_widths=[], image_size=8).eval()
        attention = net.encoder[1].attention
        attention.heads, attention.qkv, attention.project = (
            heads, nn.Linear(16, 12 * heads, bias=False), nn.Linear(4 * heads, 16),
        )  # fmt: skip
        return net

    net, fewer = vit(4), vit(3)
    fit_widths(net, fewer.state_dict()).load_state_dict(fewer.state_dict())
    assert [block.attention.heads for block in net.encoder] == [4, 3]
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(net(images), fewer(images))
    state = fewer.state_dict()
    state["encoder.1.attention.qkv.weight"] = torch.ones(30, 16)
    with pytest.raises(
        UserError, match=r"encoder\.1\.attention\.qkv\.weight has 30 rows .* no whole heads of 4 channels"
    ):
        fit_widths(net, state)
    assert net.encoder[1].attention.heads == 3 and net.encoder[1].attention.qkv.out_features == 36
