"""Quaternion networks by conversion: exact counts of document 003, files that rebuild them, masks, the command line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import smallnets
from smallnets import models
from smallnets.cli import main
from smallnets.errors import UserError
from smallnets.layers import AppendGray, QuaternionBatchNorm2d, QuaternionConv2d, QuaternionLinear
from smallnets.layers.quaternion_blocks import LUMA, QuaternionAttention
from smallnets.measure import count
from smallnets.models import build, spec_of
from smallnets.models.name import name_of
from smallnets.pruning import Masks, next_masks, prune_layers, select
from smallnets.pruning.criteria import magnitude, synflow_scores, taylor
from smallnets.pruning.lottery import LotteryPlan
from smallnets.pruning.quaternion import by_unit, choose, join, select_quaternions, split, units
from smallnets.results import read_row
from smallnets.surgery import Quaternion, WithGray, fold, remove_stage, to_quaternion
from smallnets.surgery.names import make

# Small ones of each family: network, image side, channels.
FAMILIES: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "ResNet": (lambda: models.resnet20(), 16, 3),
    "ResNet A": (lambda: models.resnet20(shortcut="A"), 16, 3),
    "ResNet pooled": (lambda: models.ResNet(blocks=[1, 1], channels=[8, 12], pool=2, image_size=16), 16, 3),
    "bottleneck": (lambda: models.ResNet(100, blocks=[1, 1], channels=[8, 12], block="bottleneck"), 16, 3),
    "PreActResNet": (lambda: models.PreActResNet(channels=[8, 12, 16, 20]), 16, 3),
    "VGG": (lambda: models.vgg16_s(), 32, 3),
    "VGG BN": (lambda: models.VGG(100, blocks=[1, 1], channels=[8, 16], batch_norm=True, image_size=16), 16, 3),
    "DenseNet": (lambda: models.DenseNet(blocks=[2, 2], growth_rate=8, stem_channels=8), 16, 3),
    "ViT": (lambda: models.ViT(dim=32, depth=2, heads=4, mlp_dim=16, head_widths=[16], image_size=16), 16, 3),
    "LeNet": (lambda: models.lenet_300_100(), 28, 1),
    "LeNet RGB": (lambda: models.LeNet(hidden_widths=[8], in_channels=3, image_size=8), 8, 3),
    "ConvNet": (lambda: models.conv2(), 32, 3),
}


def parameters(net: nn.Module) -> int:
    return sum(each.numel() for each in net.parameters())


def saved(net: nn.Module, path: Path) -> Path:
    """A checkpoint with what `load` reads of one."""
    state = {f"net.{name}": value for name, value in net.state_dict().items()}
    torch.save({"smallnets": {"net": spec_of(net)}, "state_dict": state}, path)
    return path


# -- counts of document 003 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "quaternion", "real", "quaternion_100", "real_100", "quaternion_layers", "norms"),
    [
        ("resnet18", 2_928_552, 11_682_408, 2_812_452, 11_220_708, 2_789_952, 9_600),
        ("resnet34", 5_461_160, 21_790_568, 5_345_060, 21_328_868, 5_315_136, 17_024),
        ("resnet50", 6_428_072, 25_549_928, 5_966_372, 23_705_828, 5_861_952, 53_120),
        ("resnet101", 11_215_272, 44_542_056, 10_753_572, 42_697_956, 10_596_928, 105_344),
        ("resnet152", 15_160_744, 60_185_704, 14_699_044, 58_341_604, 14_496_320, 151_424),
    ],
)
def test_the_counts_of_the_resnets(
    name, quaternion, real, quaternion_100, real_100, quaternion_layers, norms
):  # fmt: skip
    with torch.device("meta"):
        net = to_quaternion(models.make(name, 1000))
        assert parameters(net) == quaternion
        assert parameters(to_quaternion(models.make(name, 100))) == quaternion_100
        for classes, expected in ((1000, real), (100, real_100)):
            assert parameters(models.make(name, classes, in_channels=4)) == expected
            assert parameters(WithGray(name, classes)) == expected
        # A net of four channels is converted as it is.
        assert parameters(to_quaternion(models.make(name, 100, in_channels=4))) == quaternion_100
    kinds = (QuaternionConv2d, nn.BatchNorm2d)
    convs, norm_count = (sum(parameters(m) for m in net.modules() if isinstance(m, kind)) for kind in kinds)
    assert (convs, norm_count) == (quaternion_layers, norms)


@pytest.mark.parametrize(
    ("name", "real", "quaternion", "hundred", "convs"),
    [
        ("lenet_300_100", 266_610, 67_710, None, None),
        ("lenet_12", 9_550, 2_494, None, None),
        ("conv2", 4_301_642, 1_077_962, 1_101_092, 9_792),
        ("conv4", 2_425_930, 609_226, 632_356, 65_088),
        ("conv6", 2_262_602, 568_778, 591_908, 286_272),
    ],
)
def test_the_counts_of_the_earlier_paper(name, real, quaternion, hundred, convs):
    with torch.device("meta"):
        assert parameters(models.make(name)) == real
        net = to_quaternion(models.make(name))
        assert parameters(net) == quaternion
        if hundred:
            assert parameters(to_quaternion(models.make(name, 100), head="real")) == hundred
            assert sum(m.weight.numel() for m in net.modules() if isinstance(m, QuaternionConv2d)) == convs


def test_a_head_is_converted_only_if_four_divides_the_classes():
    with torch.device("meta"):
        ten = to_quaternion(models.resnet18(10))
        assert parameters(ten) == 2_804_682
        assert type(ten.net.head) is nn.Linear and ten.net.head.out_features == 10
        hundred = to_quaternion(models.resnet18(100))
        assert type(hundred.net.head) is QuaternionLinear and parameters(hundred.net.head) == 12_900
        assert parameters(to_quaternion(models.resnet50(1000)).net.head) == 513_000
        assert type(to_quaternion(models.resnet18(100), head="real").net.head) is nn.Linear
        with pytest.raises(UserError, match=r"^head has 512 inputs and 10 outputs, and four must divide both"):
            to_quaternion(models.resnet18(10), head="quaternion")


@pytest.mark.parametrize("norm", ["real", "whitening"])
@pytest.mark.parametrize("family", FAMILIES)
def test_macs_are_those_of_the_real_network(family, norm):
    make_real, size, channels = FAMILIES[family]
    real, net = make_real(), to_quaternion(make_real(), norm=norm)
    if channels == 3:
        real = build({"class_path": spec_of(real)["class_path"],
                      "init_args": {**spec_of(real)["init_args"], "in_channels": 4}})  # fmt: skip
    assert count(net, size, channels).macs == count(real, size, 4 if channels == 3 else channels).macs > 0


# -- every family ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["real", "whitening"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_trains_saves_and_loads_bitwise(family, norm, tmp_path):
    make_real, size, channels = FAMILIES[family]
    torch.manual_seed(0)
    net = to_quaternion(make_real(), norm=norm)
    images = torch.rand(8, channels, size, size)
    net(images).sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.count_nonzero() or family.startswith("VGG"), name  # dead units of a net without training
    real = [name for name, m in net.named_modules() if type(m) in (nn.Conv2d, nn.Linear)]
    last = [name for name, m in net.named_modules() if isinstance(m, (nn.Linear, QuaternionLinear))][-1]
    assert real == ([last] if net.num_classes == 10 else [])
    net.eval()
    loaded = smallnets.load(saved(net, tmp_path / "net.ckpt"))
    assert isinstance(loaded, Quaternion) and spec_of(loaded) == spec_of(net) and spec_of(loaded)["init_args"]["of"]
    with torch.no_grad():
        assert torch.equal(loaded(images), net(images))
    assert [type(m) for m in loaded.modules()] == [type(m) for m in net.modules()]


def test_the_seed_gives_the_network_however_it_is_asked_for():
    torch.manual_seed(3)
    first = to_quaternion(models.resnet20(100))
    torch.manual_seed(3)
    second = Quaternion("resnet20", num_classes=100)
    torch.manual_seed(3)
    third = build(spec_of(first))
    for other in (second, third):
        assert spec_of(other) == spec_of(first)
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_what_stays_real_keeps_its_values_and_its_place():
    net = models.resnet20().eval().double()
    torch.nn.init.normal_(net.bn1.weight)
    net.head.weight.requires_grad_(False)
    before = {k: v.clone() for k, v in net.state_dict().items() if "bn" in k or "head" in k}
    whole = to_quaternion(net)
    assert whole.net is net and not whole.training and not any(m.training for m in whole.modules())
    assert all(torch.equal(net.state_dict()[key], value) for key, value in before.items())
    assert {p.dtype for p in whole.parameters()} == {torch.double}
    assert net.conv1.weight.requires_grad and not net.head.weight.requires_grad
    assert whole(torch.rand(2, 3, 8, 8, dtype=torch.double)).shape == (2, 10)


def test_frozen_statistics_stay_frozen():
    net = models.DenseNet(blocks=[1], growth_rate=8, stem_channels=8).train()
    net.bn.eval()
    net.stages[0][0].bn1.eval()
    whole = to_quaternion(net)
    assert {name for name, m in whole.named_modules() if not m.training} == {"net.bn", "net.stages.0.0.bn1"}


def test_the_network_sees_red_green_blue_and_gray():
    net = to_quaternion(models.resnet20())
    assert isinstance(net.gray, AppendGray) and net.net.conv1.in_channels == 4 and net.in_channels == 3
    images = torch.rand(2, 3, 8, 8)
    gray = sum(weight * images[:, [i]] for i, weight in enumerate(LUMA))
    net.eval()
    torch.testing.assert_close(net(images), net.net(torch.cat([images, gray], 1)))
    four = to_quaternion(models.resnet20(in_channels=4)).eval()
    four.net.load_state_dict(net.net.state_dict())
    images4 = torch.cat([images, gray], 1)
    assert four.in_channels == 4 and torch.equal(four(images4), net.net(images4))
    real = WithGray("resnet20").eval()
    assert torch.equal(real(images), real.net(real.gray(images)))


def rotated(x: Tensor, dim: int) -> Tensor:
    """x times the unit i from the right: (r + i a + j b + k c) i = -a + i r + j c - k b."""
    r, a, b, c = x.chunk(4, dim)
    return torch.cat([-a, r, c, -b], dim)


@pytest.mark.parametrize("family", ["ResNet A", "DenseNet", "ViT", "PreActResNet"])
def test_components_stay_in_their_places_through_the_network(family):
    """W (x q) = (W x) q: without its activations a quaternion network commutes with a unit from the right.

    A channel that is taken for another component anywhere would break it.
    """
    make_real, size, _ = FAMILIES[family]
    torch.manual_seed(0)
    net = to_quaternion(make_real()).net.double().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()  # the scale 1 and the shift 0 of every component
        for name, child in list(module.named_children()):
            if isinstance(child, (nn.ReLU, nn.GELU, nn.LayerNorm)) or name == "head":
                setattr(module, name, nn.Identity())
    for name, parameter in net.named_parameters():
        if name.endswith("bias") or name in ("positions", "class_token"):
            nn.init.zeros_(parameter)
    x = torch.randn(2, 4, size, size, dtype=torch.double)
    y = net(x)
    assert y.abs().max() > 0
    torch.testing.assert_close(net(rotated(x, 1)), rotated(y, 1))
    assert not torch.allclose(net(x.roll(1, 1)), y.roll(1, 1))


def test_a_head_of_attention_has_all_four_components():
    torch.manual_seed(0)
    dim, heads = 16, 2
    attention = QuaternionAttention(8, 0.3, QuaternionLinear(dim, 3 * dim), nn.Identity(), nn.Identity())
    x = torch.randn(2, 5, dim)
    qkv = attention.qkv(x).detach()
    out = torch.zeros(2, 5, 4, dim // 4)
    width = dim // 4 // heads  # quaternions of a head
    for head in range(heads):
        for n in range(2):
            # Component c of quaternion u of head h of q stands at c * 3 * 4 + 0 * 4 + 2 h + u.
            q, k, v = (
                torch.stack([qkv[n, :, c * 12 + which * 4 + width * head + u] for c in range(4) for u in range(2)], 1)
                for which in range(3)
            )
            mixed = (0.3 * q @ k.T).softmax(1) @ v
            out[n, :, :, width * head : width * (head + 1)] = mixed.view(5, 4, 2)
    torch.testing.assert_close(attention(x).detach(), out.flatten(2))


# -- what cannot be converted ------------------------------------------------------------------------------------------


class Own(nn.Module):
    """No constructor arguments kept, no `in_channels`."""

    def __init__(self, secret: int = 8) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, secret, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.last = nn.Linear(secret, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.body(images))


def test_a_network_of_ones_own_is_converted_and_has_no_spec():
    net = to_quaternion(Own())
    assert net(torch.rand(2, 3, 8, 8)).shape == (2, 10)
    assert parameters(net) == 4 * 8 * 9 // 4 + 8 + 90
    assert spec_of(net) is None and name_of(net) == "Quaternion"


@pytest.mark.parametrize(
    ("make_net", "message"),
    [
        (lambda: Own(6), "body.0 has 4 inputs and 6 outputs, and four must divide both in a quaternion layer"),
        (lambda: models.res24_avvari(), "conv1 has 4 inputs and 138 outputs"),
        (lambda: models.resnet20(in_channels=1), "conv1 has 1 inputs.*images have 3 channels, to which gray is added"),
        (lambda: models.ViT(dim=24, heads=4), "encoder.0.attention: its heads have 6 channels"),
        (lambda: nn.Linear(8, 8), "Linear is not a network of convolutions or linear layers"),
        (lambda: nn.Sequential(nn.ReLU()), "Sequential is not a network of convolutions or linear layers"),
        (lambda: models.LeNet(hidden_widths=[]), "LeNet has no layer but its head, which stays real"),
        (lambda: to_quaternion(models.resnet20()), "this Quaternion is a quaternion network already"),
        (lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Linear(8, 8)), "0: 2 groups of quaternions"),
        (lambda: nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect"), nn.Linear(8, 8)), "'reflect'"),
        (lambda: nn.Sequential(nn.Linear(8, 8), nn.MultiheadAttention(8, 2), nn.Linear(8, 8)), "1: torch's Multihead"),
    ],
)
def test_what_cannot_be_converted_is_named_and_left_alone(make_net, message):
    net = make_net()
    before = [(name, id(module)) for name, module in net.named_modules()]
    with pytest.raises(UserError, match=message):
        to_quaternion(net)
    assert [(name, id(module)) for name, module in net.named_modules()] == before


def test_wrong_options_are_named():
    for option, allowed in (("head", "auto"), ("norm", "whitening"), ("init", "glorot")):
        with pytest.raises(UserError, match=rf"{option} must be one of .*'{allowed}'.*got 'none'"):
            to_quaternion(models.resnet20(), **{option: "none"})
    with pytest.raises(UserError, match=r"bn1.*cannot become a whitening norm"):
        net = models.resnet20()
        net.bn1 = nn.BatchNorm2d(16, affine=False)
        to_quaternion(net, norm="whitening")
    with pytest.raises(UserError, match="in_channels 1"):
        WithGray("resnet20", in_channels=1)
    with pytest.raises(UserError, match="nearest: 'resnet20'"):
        Quaternion("resnet21")


# -- with the rest of the house ----------------------------------------------------------------------------------------


def test_shortened_and_pruned_networks_are_converted(tmp_path):
    short = to_quaternion(remove_stage(models.resnet18_s(), 4))
    assert short(torch.rand(2, 3, 16, 16)).shape == (2, 10)
    net = models.resnet20()
    prune_layers(net, {"stages.*.conv1": 0.25}, "l1", 16)
    whole = to_quaternion(net).eval()
    assert whole.net.stages[0][0].conv1.out_channels == 12
    images = torch.rand(2, 3, 16, 16)
    for each in (short.eval(), whole):
        with torch.no_grad():
            assert torch.equal(smallnets.load(saved(each, tmp_path / "x.ckpt"))(images), each(images))


def test_names():
    assert name_of(make("quaternion_resnet20")) == "quaternion_resnet20"
    assert name_of(make("gray_conv2")) == "gray_conv2"
    assert name_of(Quaternion("resnet20", 100, head="real")) == "Quaternion"
    small = {"class_path": "ResNet", "init_args": {"blocks": [1], "channels": [8]}}
    assert name_of(Quaternion(small)) == "Quaternion"
    assert spec_of(make("quaternion_resnet20"))["class_path"] == "smallnets.surgery.Quaternion"


def test_masks_are_of_the_component_weights():
    net = to_quaternion(models.resnet20(100))
    masks = Masks.dense(net)
    quaternions = [n for n, m in net.named_modules() if isinstance(m, (QuaternionConv2d, QuaternionLinear))]
    assert list(masks) == [f"{name}.weight" for name in quaternions] and len(masks) == 22
    assert masks.total == sum(net.get_submodule(name).weight.numel() for name in quaternions)
    whitened = Masks.dense(to_quaternion(models.resnet20(100), norm="whitening"))
    assert list(whitened) == list(masks)
    pruned = select(magnitude(net), density=0.3)
    pruned.apply_(net)
    pruned.check(net)
    batches = [(torch.rand(2, 3, 8, 8), torch.tensor([0, 1]))]
    scores = taylor(net, batches, nn.functional.cross_entropy)
    assert all(scores[name].shape == mask.shape for name, mask in masks.items())


def test_synflow_of_a_quaternion_layer_is_that_of_its_real_kernel():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), QuaternionLinear(8, 4, bias=False), nn.Linear(4, 2, bias=False))
    scores = synflow_scores(net, in_channels=2, image_size=2)["1.weight"]
    # R = ones |K| |V| summed; each weight stands in four entries of K.
    weight = net[1].weight.detach().double()
    outgoing = net[2].weight.detach().double().abs().sum(0)
    expected = weight.abs().view(4, 1, 2) * outgoing.sum()
    torch.testing.assert_close(scores, expected.flatten(0, 1))


def test_components_are_pruned_each_by_itself():
    net = nn.Sequential(QuaternionLinear(20, 8, bias=False), nn.Linear(8, 10, bias=False))
    with torch.no_grad():  # r: 0..9, i: 10..19, j: 20..29, k: 30..39; the real layer 0..79
        net[0].weight.copy_(torch.arange(40.0).view(8, 5))
        net[1].weight.copy_(torch.arange(80.0).view(10, 8))
    masks = join(select(split(magnitude(net), net), density=0.7, scope="layer"))
    assert list(masks) == ["0.weight", "1.weight"]
    kept = [10 * component + n for component in range(4) for n in range(3, 10)]
    assert masks["0.weight"].flatten().nonzero().flatten().tolist() == kept
    assert masks["1.weight"].flatten().nonzero().flatten().tolist() == list(range(24, 80))
    again = join(select(split(magnitude(net), net), density=0.5, scope="layer", masks=Masks(split(masks, net))))
    assert [int(part.sum()) for part in again["0.weight"].chunk(4)] == [5] * 4
    with pytest.raises(UserError, match="all four components"):
        join({"0.weight:r": torch.ones(2, dtype=torch.bool)})


def test_whole_quaternions_are_pruned_by_their_norm():
    net = nn.Sequential(QuaternionLinear(20, 8, bias=False), nn.Linear(8, 10, bias=False))
    with torch.no_grad():  # quaternion n has the norm n, and all of it in the component n % 4
        parts = torch.zeros(4, 10)
        for n in range(10):
            parts[n % 4, n] = n
        net[0].weight.copy_(parts.view(8, 5))
        net[1].weight.copy_(torch.arange(80.0).view(10, 8))
    masks = select_quaternions(net, density=0.3)
    for part in masks["0.weight"].chunk(4):
        assert part.flatten().nonzero().flatten().tolist() == [7, 8, 9]
    assert masks["1.weight"].flatten().nonzero().flatten().tolist() == list(range(56, 80))
    # What is removed in part is removed.
    earlier = {name: masks[name] for name in masks}
    earlier["0.weight"].view(4, 10)[2, 9] = False
    fewer = select_quaternions(net, density=0.1, masks=Masks(earlier))
    assert fewer["0.weight"].view(4, 10).all(0).nonzero().flatten().tolist() == [8] and fewer.kept == 4 + 8
    with pytest.raises(UserError, match="unit quaternion: LeNet has no quaternion weights to prune"):
        select_quaternions(models.lenet_12(), density=0.5)


def two_layers():
    """Ten quaternions, in whose components stand 0..9, 40..49, 20..29 and 30..39, and a real layer of 0..79."""
    net = nn.Sequential(QuaternionLinear(20, 8, bias=False), nn.Linear(8, 10, bias=False))
    with torch.no_grad():
        parts = torch.arange(10.0) + torch.tensor([0.0, 40, 20, 30])[:, None]
        net[0].weight.copy_(parts.view(8, 5))
        net[1].weight.copy_(torch.arange(80.0).view(10, 8))
    return net


def kept_places(mask: Tensor) -> list[list[int]]:
    return [part.flatten().nonzero().flatten().tolist() for part in mask.chunk(4)]


@pytest.mark.parametrize(
    ("unit", "scope", "quaternion", "real"),
    [
        # All 120 weights together: 84 stay.
        ("weight", "global", None, 84),
        ("weight", "layer", [[], list(range(10)), list(range(2, 10)), list(range(10))], 56),
        ("component", "layer", [list(range(3, 10))] * 4, 56),
        ("quaternion", "layer", [list(range(3, 10))] * 4, 56),
        ("quaternion", "global", [list(range(3, 10))] * 4, 56),
    ],
)
def test_a_lottery_round_and_a_schedule_take_30_percent_of_their_units(unit, scope, quaternion, real):
    net = two_layers()
    plan = LotteryPlan(rounds=2, epochs=1, fraction=0.3, scope=scope, unit=unit)
    plan.check(net, Masks.dense(net))
    found = [plan.prune(net, Masks.dense(net), 1), next_masks(net, None, "magnitude", 0.7, scope=scope, unit=unit)]
    assert found[0] == found[1] and list(found[0]) == ["0.weight", "1.weight"]
    if quaternion is None:
        assert found[0].kept == real
        return
    assert kept_places(found[0]["0.weight"]) == quaternion
    assert found[0]["1.weight"].flatten().nonzero().flatten().tolist() == list(range(80 - real, 80))
    # 10 - 3 - ceil(2.1); 40 - 12 - ceil(8.4); 80 - 24 - ceil(16.8).
    second = plan.prune(net, found[0], 2)
    left = {"weight": 19, "component": 4 * 4, "quaternion": 4 * 4}[unit]
    assert [layer.kept for layer in second.layers] == [left, 39]
    if unit != "weight":
        assert kept_places(second["0.weight"]) == [list(range(6, 10))] * 4


def test_a_component_is_a_layer_that_is_not_emptied_and_half_the_rate_is_the_heads():
    net = two_layers()
    half = LotteryPlan(rounds=1, epochs=1, fraction=0.5, scope="layer", head_rate_half=True, unit="component")
    assert [layer.kept for layer in half.prune(net, Masks.dense(net), 1).layers] == [20, 60]
    whole = to_quaternion(models.LeNet(4, hidden_widths=[8], image_size=4))
    plan = LotteryPlan(rounds=1, epochs=1, fraction=0.5, scope="layer", head_rate_half=True, unit="component")
    # 8 x 16 / 4 weights, 8 of each component; the head's 4 x 8 / 4 have 2 of each, of which ceil(0.5) goes.
    assert [layer.kept for layer in plan.prune(whole, Masks.dense(whole), 1).layers] == [16, 4]
    most = LotteryPlan(rounds=2, epochs=1, fraction=0.5, scope="layer", unit="component")
    with pytest.raises(UserError, match=r"round 2 would remove all 2 weights of net\.head\.2\.weight:r"):
        most.check(whole, Masks.dense(whole))
    with pytest.raises(UserError, match=r"round 1 would keep 0 quaternions of 2 layers"):
        LotteryPlan(rounds=1, epochs=1, fraction=0.99, unit="quaternion").check(whole, Masks.dense(whole))


def test_what_no_quaternion_network_has_is_refused():
    for unit in ("component", "quaternion"):
        with pytest.raises(UserError, match=f"unit {unit}: LeNet has no quaternion weights to prune"):
            next_masks(models.lenet_12(), None, "magnitude", 0.5, unit=unit)
        with pytest.raises(UserError, match=f"synflow scores single weights, anew in rounds: it has no unit {unit}"):
            next_masks(two_layers(), None, "synflow", 0.5, unit=unit)
    with pytest.raises(UserError, match="unit must be one of weight, component, quaternion, got 'norm'"):
        LotteryPlan(rounds=1, epochs=1, unit="norm")
    with pytest.raises(UserError, match="unit must be one of"):
        next_masks(two_layers(), None, "magnitude", 0.5, unit="norm")


def test_the_score_of_a_quaternion_is_the_norm_or_the_sum_of_its_weights():
    """Quaternion 0 is (3, 4, 0, 0), of norm 5 and sum 7; quaternion 1 (5.5, 0, 0, 0), of norm 5.5."""
    net = nn.Sequential(QuaternionLinear(8, 4, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[3.0, 5.5], [4, 0], [0, 0], [0, 0]]))
    masks = Masks.dense(net)

    def half(scores, masks):
        return select(scores, density=0.5, masks=masks)

    assert kept_places(choose(net, magnitude(net), masks, "quaternion", half)["0.weight"]) == [[1]] * 4
    assert kept_places(choose(net, magnitude(net), masks, "quaternion", half, norm=False)["0.weight"]) == [[0]] * 4
    assert next_masks(net, None, "magnitude", 0.5, unit="quaternion") == Masks(
        {"0.weight": torch.tensor([[False, True]] * 4)}
    )
    batches = [(torch.rand(2, 8), torch.tensor([0, 1]))]
    scores = taylor(net, batches, nn.functional.cross_entropy)["0.weight"].sum(0)
    chosen = next_masks(net, None, "taylor", 0.5, unit="quaternion", batches=batches)
    assert kept_places(chosen["0.weight"]) == [[int(scores.argmax())]] * 4


@pytest.mark.parametrize("unit", ["weight", "component", "quaternion"])
def test_masks_are_the_same_in_units_and_back(unit):
    net = two_layers()
    masks = select_quaternions(net, density=0.4)
    assert by_unit(net, masks, unit, lambda each: each) == masks
    shapes = {"weight": [(8, 5), (10, 8)], "component": [(2, 5)] * 4 + [(10, 8)], "quaternion": [(2, 5), (10, 8)]}
    found = [tuple(mask.shape) for group in units(net, masks, unit) for mask in group.values()]
    assert found == shapes[unit]


# -- the command line --------------------------------------------------------------------------------------------------


def test_summary_and_models_count_a_quaternion_network(capsys):
    assert main(["models", "quaternion_resnet18", "gray_resnet18", "--num_classes=100", "--json"]) == 0
    quaternion, gray = json.loads(capsys.readouterr().out)
    assert (quaternion["name"], quaternion["parameters"], quaternion["in_channels"]) == (
        "quaternion_resnet18", 2_812_452, 3,
    )  # fmt: skip
    assert (gray["name"], gray["parameters"]) == ("gray_resnet18", 11_220_708)
    assert quaternion["macs"] == gray["macs"] > count(models.resnet18(100)).macs
    assert quaternion["class_path"] == "smallnets.surgery.Quaternion"
    assert main(["summary", "--model.net=quaternion_resnet18", "--data=CIFAR100", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["name"], shown["parameters"], shown["macs"]) == (
        "quaternion_resnet18", 2_812_452, quaternion["macs"],
    )  # fmt: skip
    assert shown["real"] == {"parameters": 11_220_708, "macs": shown["macs"]}
    assert main(["summary", "--model.net=quaternion_resnet18", "--data=CIFAR100"]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith("the real network of these widths has 11,220,708 parameters and ")
    assert said.endswith(": here are 25.1% of its parameters, and 100.0% of its MACs")
    # Of a class path, with numbers of the real network's.
    of = json.dumps({"class_path": "smallnets.models.ResNet", "init_args": {"blocks": [1], "channels": [8]}})
    argv = ["summary", "--model.net=smallnets.surgery.Quaternion", f"--model.net.of={of}", "--json"]
    assert main(argv) == 0
    # Stem 4 x 8 x 9 / 4, two convolutions 8 x 8 x 9 / 4, three norms of 16, the real head 8 x 10 + 10.
    assert json.loads(capsys.readouterr().out)["parameters"] == 72 + 2 * 144 + 3 * 16 + 90
    assert main(["summary", "--model.net=quaternion_resnet21"]) == 2
    assert "nearest: 'resnet20'" in capsys.readouterr().err


def test_a_run_trains_a_quaternion_network_and_its_checkpoint_is_the_network(here, tiny):
    rgb = ("--data.in_channels=3", "--trainer.max_epochs=1", "--trainer.limit_train_batches=2")
    options = ("--model.net.init=xavier", "--name=q", *rgb)
    assert main(tiny("fit", *options, net="quaternion_resnet20")) == 0
    row = read_row(here / "lightning_logs/q/run-1")
    assert row is not None and (row["steps"], row["status"]) == (2, "finished")
    net = smallnets.load(here / "lightning_logs/q/run-1/checkpoints/best.ckpt")
    assert isinstance(net, Quaternion) and net.init == "xavier" and net.image_size == 8
    assert row["parameters"] == parameters(net) == parameters(make("quaternion_resnet20"))
    assert any(isinstance(m, QuaternionConv2d) for m in net.modules())
    assert not any(isinstance(m, QuaternionBatchNorm2d) for m in net.modules())
    assert main(tiny("test", *options, net="quaternion_resnet20")) == 0
    # The run's own config runs it again, and a channels-last run is a run like others.
    config = str(here / "lightning_logs/q/run-1/config.yaml")
    assert main(["fit", "--config", config, "--name=again", "--model.channels_last=true"]) == 0
    again = read_row(here / "lightning_logs/again/run-1")
    assert again is not None and again["parameters"] == row["parameters"]


def test_a_transposed_network_is_transposed_everywhere_and_comes_back(tmp_path):
    """Its logits are those of the plain one with conjugated weights; folded and loaded it gives the same."""
    torch.manual_seed(0)
    net = to_quaternion(models.ResNet(12, blocks=[1, 1], channels=[8, 16]), transposed=True).eval()
    torch.manual_seed(0)
    plain = to_quaternion(models.ResNet(12, blocks=[1, 1], channels=[8, 16])).eval()
    layers = [m for m in net.modules() if isinstance(m, (QuaternionConv2d, QuaternionLinear))]
    assert layers and all(layer.transposed for layer in layers)
    images = torch.rand(2, 3, 16, 16)
    assert not torch.allclose(net(images), plain(images))
    with torch.no_grad():
        for layer in plain.modules():
            if isinstance(layer, (QuaternionConv2d, QuaternionLinear)):
                layer.weight[len(layer.weight) // 4 :].neg_()
    torch.testing.assert_close(net(images), plain(images))
    torch.testing.assert_close(fold(net)(images), net(images), rtol=1e-4, atol=1e-5)
    assert torch.equal(smallnets.load(saved(net, tmp_path / "net.ckpt"))(images), net(images))
