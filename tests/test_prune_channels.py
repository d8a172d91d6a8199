"""prune_channels: exact counts of groups, the law of channels, heads, and what is left whole or refused."""

import copy
import math
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from families import FAMILIES, frozen_state, saved, shaken
from torch import nn

import smallnets
from smallnets import models
from smallnets.errors import UserError
from smallnets.measure import Budget, count
from smallnets.pruning import prune_channels, prune_to
from smallnets.pruning.structured import channel_groups
from smallnets.pruning.trial import NoEffectWarning

family = pytest.mark.parametrize("name", FAMILIES)


def widths(net: nn.Module, groups) -> list[int]:
    """What the first layer of each group has, read from its weight: channels, or heads."""
    found = []
    for group in groups:
        rows = len(net.get_submodule(group.name).weight)
        found.append(rows // (3 * group.size) if group.name.endswith("qkv") else rows)
    return found


# -- every family, every way -------------------------------------------------------------------------------------------


def by_layer(net: nn.Module, image: dict[str, int]) -> None:
    prune_channels(net, 0.5, scope="layer", **image)


def over_all(net: nn.Module, image: dict[str, int]) -> None:
    prune_channels(net, 0.5, **image)


def to_half(net: nn.Module, image: dict[str, int]) -> None:
    # Sums of shortcut A and the tokens of a ViT stay whole: half is well above what these can come down to.
    prune_to(net, Budget(parameters=count(net, **image).parameters // 2), **image)


@family
@pytest.mark.parametrize("way", [by_layer, over_all, to_half])
def test_a_pruned_network_is_smaller_trains_and_comes_back(name, way, tmp_path):
    build, size, channels = FAMILIES[name]
    image = {"image_size": size, "in_channels": channels}
    torch.manual_seed(0)
    net = build()
    before = count(net, **image)
    way(net, image)
    after = count(net, **image)
    assert after.parameters < before.parameters and after.macs < before.macs and after.bytes < before.bytes
    assert after.parameters == sum(p.numel() for p in net.parameters())

    images, labels = torch.randn(8, channels, size, size), torch.arange(8)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        assert all(p.grad is not None and p.grad.shape == p.shape for p in net.parameters())
        optimizer.step()
    loaded = smallnets.load(saved(net, tmp_path / "best.ckpt"))
    logits = net.eval()(images)
    assert logits.shape == (8, 10) and logits.isfinite().all() and torch.equal(loaded(images), logits)
    assert count(loaded, **image) == count(net, **image)


@family
@pytest.mark.parametrize("ratio", [0.3, 0.5])
def test_layer_each_group_loses_the_floor_of_its_share(name, ratio):
    build, size, channels = FAMILIES[name]
    net = build()
    groups = channel_groups(net, size, channels)
    have = widths(net, groups)
    assert have == [group.width for group in groups]
    prune_channels(net, ratio, scope="layer", criterion="random", image_size=size, in_channels=channels)
    assert widths(net, groups) == [width - math.floor(Fraction(str(ratio)) * width) for width in have]


@family
@pytest.mark.parametrize("ratio", [0.29, 0.7])
def test_global_all_groups_lose_exactly_the_share_of_all(name, ratio):
    build, size, channels = FAMILIES[name]
    net = build()
    groups = channel_groups(net, size, channels)
    total = sum(widths(net, groups))
    prune_channels(net, ratio, image_size=size, in_channels=channels, floor=2)
    assert sum(widths(net, groups)) == total - math.floor(Fraction(str(ratio)) * total)
    assert min(widths(net, groups)) >= 2


@family
def test_a_network_whose_removed_channels_were_zero_gives_the_same_logits(name):
    """Random channels are a function of the seed alone: a copy with marks in place of weights tells which they are."""
    build, size, channels = FAMILIES[name]
    options = {"criterion": "random", "seed": 3, "image_size": size, "in_channels": channels}
    net = shaken(build()).double().eval()
    marked = copy.deepcopy(net)
    with torch.no_grad():
        for p in marked.parameters():
            p.copy_(torch.arange(1.0, len(p) + 1).view(-1, *[1] * (p.dim() - 1)).expand_as(p))
    prune_channels(marked, 0.5, **options)
    with torch.no_grad():
        for key, left in marked.named_parameters():
            whole = net.get_parameter(key)
            kept = (
                {int(value) - 1 for value in left.flatten(1)[:, 0].tolist()}
                if left.dim() > 1
                else {int(value) - 1 for value in left.tolist()}
            )
            assert len(kept) == len(left)
            whole[sorted(set(range(len(whole))) - kept)] = 0.0
    images = torch.rand(4, channels, size, size, dtype=torch.float64)
    before = net(images)
    prune_channels(net, 0.5, **options)
    assert before.std() > 0
    torch.testing.assert_close(net(images), before, rtol=1e-9, atol=1e-9)


# -- which channels ----------------------------------------------------------------------------------------------------


def chain(*rows: list[float]) -> nn.Sequential:
    """Linear layers without bias on an image of one pixel; `rows` are the values that fill each layer's filters."""
    layers: list[nn.Module] = [nn.Flatten()]
    inputs = 1
    for each in rows:
        layer = nn.Linear(inputs, len(each), bias=False)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(each)[:, None].expand_as(layer.weight))
        layers.append(layer)
        inputs = len(each)
    return nn.Sequential(*layers, nn.Linear(inputs, 1, bias=False))


PIXEL = {"image_size": 1, "in_channels": 1}


def test_global_compares_channels_by_the_share_of_their_groups_mean():
    # Norms 1 2 3 2 (mean 2): 0.5 1 1.5 1. Norms 4 40 40 76 (inputs 4, mean 40): 0.1 1 1 1.9.
    net = chain([1.0, -2.0, 3.0, 2.0], [1.0, 10.0, -10.0, 19.0])
    prune_channels(net, 0.25, **PIXEL)  # 2 of 8: 0.1 and 0.5
    assert net[1].weight[:, 0].tolist() == [-2.0, 3.0, 2.0] and net[2].weight[:, 0].tolist() == [10.0, -10.0, 19.0]


def test_among_equal_scores_the_earlier_group_and_channel_go():
    net = chain([1.0, -2.0, 3.0, 2.0], [1.0, 10.0, -10.0, 19.0])
    prune_channels(net, 0.625, **PIXEL)  # 5 of 8: 0.1, 0.5, then of four equal ones three: two of the first group
    assert net[1].weight[:, 0].tolist() == [3.0] and net[2].weight[:, 0].tolist() == [-10.0, 19.0]


def test_layer_takes_the_smallest_of_each():
    net = chain([5.0, -1.0, 4.0, 2.0], [100.0, 300.0, -200.0, 400.0])
    prune_channels(net, 0.5, scope="layer", **PIXEL)
    assert net[1].weight[:, 0].tolist() == [5.0, 4.0] and net[2].weight[:, 0].tolist() == [300.0, 400.0]


def test_floors_hold_and_the_total_is_still_exact():
    net = chain([1.0] * 4, [1.0, 2.0, 4.0, 9.0])
    prune_channels(net, 0.5, floor=3, scope="layer", **PIXEL)
    assert [len(net[1].weight), len(net[2].weight)] == [3, 3]  # not 2: the floor
    net = chain([0.0] * 6 + [6.0] * 2, [1.0] * 8)
    prune_channels(net, 0.5, floor=4, **PIXEL)  # 8 of 16: four of the zeros, which the floor stops, and four ones
    assert [len(net[1].weight), len(net[2].weight)] == [4, 4]


@pytest.mark.parametrize(("width", "ratio", "left"), [(20, 0.5, 16), (24, 0.5, 16), (32, 0.5, 16), (20, 0.1, 20),
                                                     (20, 0.2, 16), (6, 0.9, 6)])  # fmt: skip
def test_widths_are_multiples_and_no_more_than_asked_goes(width, ratio, left):
    net = chain([float(i) for i in range(width)], [1.0] * 80)
    prune_channels(net, ratio, scope="layer", multiple=8, **PIXEL)
    assert len(net[1].weight) == left
    # With a group that is always wide enough, something goes: 80 -> the next multiple above (1 - ratio) * 80.
    assert len(net[2].weight) == math.ceil(math.ceil((1 - Fraction(str(ratio))) * 80) / 8) * 8


def test_global_multiples():
    net = models.resnet20()
    groups = channel_groups(net, 16)
    total = sum(widths(net, groups))
    prune_channels(net, 0.4, multiple=4, image_size=16)
    now = widths(net, groups)
    assert all(width % 4 == 0 for width in now) and 0 <= sum(now) - (total - math.floor(0.4 * total)) < 4


def test_heads_are_multiples_in_channels():
    net = models.ViT(dim=32, depth=1, heads=8, mlp_dim=32, head_widths=[], image_size=8)  # heads of 4 channels
    prune_channels(net, 0.4, scope="layer", multiple=8, image_size=8)
    assert net.encoder[0].attention.heads == 6 and net.encoder[0].mlp[0].out_features == 24


def test_excluded_groups_stay_whole():
    net = models.resnet20()
    # conv2 of the second block adds to the stem's output: the whole sum stays.
    prune_channels(net, 0.5, scope="layer", exclude=["stages.0.1.conv2", "stages.2.*.conv1"], image_size=16)
    assert net.conv1.out_channels == 16 and net.stages[0][0].conv1.out_channels == 8
    assert net.stages[2][1].conv1.out_channels == 64 and net.stages[2][1].conv2.out_channels == 32


def test_nothing_to_remove_is_said():
    net = chain([1.0] * 4)
    same = frozen_state(net)
    with pytest.warns(NoEffectWarning, match="ratio 0.2 removes no channel of Sequential"):
        prune_channels(net, 0.2, **PIXEL)
    prune_channels(net, 0.0, **PIXEL)
    assert same()


# -- heads -------------------------------------------------------------------------------------------------------------


def test_whole_heads_go_with_their_rows_of_q_k_and_v():
    net = models.ViT(dim=8, depth=1, heads=4, mlp_dim=4, head_widths=[], qkv_bias=True, image_size=8)
    attention = net.encoder[0].attention
    with torch.no_grad():
        attention.qkv.weight.copy_(torch.arange(24.0)[:, None].expand(24, 8))
        for row in (0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21):  # heads 0 and 2 are small
            attention.qkv.weight[row] *= 1e-3
        attention.qkv.bias.copy_(torch.arange(24.0))
        attention.project.weight.copy_(torch.arange(8.0).expand(8, 8))
    prune_channels(net, 0.5, scope="layer", image_size=8)
    assert attention.heads == 2 and attention.head_width == 2 and attention.qkv.out_features == 12
    assert attention.qkv.bias.tolist() == [2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23]
    assert attention.qkv.weight[:, 0].tolist() == attention.qkv.bias.tolist()
    assert attention.project.weight[0].tolist() == [2, 3, 6, 7]
    assert net.positions.shape[-1] == net.encoder[0].norm1.weight.numel() == 8  # tokens stay


def test_heads_can_be_pruned_again():
    net = models.ViT(dim=16, depth=1, heads=8, mlp_dim=8, head_widths=[], image_size=8)
    for left in (4, 2, 1):
        prune_channels(net, 0.5, scope="layer", image_size=8)
        assert net.encoder[0].attention.heads == left
    assert net(torch.rand(2, 3, 8, 8)).shape == (2, 10)


def small(**more) -> models.ResNet:
    return models.ResNet(blocks=[1, 1], channels=[8, 12], **more)


# -- networks of one's own ---------------------------------------------------------------------------------------------


class OwnAttention(nn.Module):
    """q, k and v as three layers; a tracer that takes attention for elementwise would mix its heads."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(3, 16), nn.Linear(3, 16), nn.Linear(3, 16), nn.Linear(16, 8))
        self.head = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = (layer(tokens).unflatten(-1, (4, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, scale=0.5).transpose(1, 2).flatten(2)
        return self.head(torch.relu(self.out(mixed)).mean(1))


class Normed(nn.Module):
    """A LayerNorm takes the channels of the first layer together."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(48, 16), nn.LayerNorm(16)
        self.second, self.head = nn.Linear(16, 8), nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.second(self.norm(self.first(x.flatten(1))))))


class Branches(nn.Module):
    """Concatenation and a sum over it: 6 + 4 channels are those of a third layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(3, 10, 1)
        self.head = nn.Linear(10, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(torch.cat([self.a(x), self.b(x)], 1) + self.c(x)).mean((2, 3)))


class Softmaxed(nn.Module):
    """Channels that share a softmax: one that is zero still takes its part."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.second(self.first(x).softmax(1))).mean((2, 3)))


@pytest.mark.parametrize(
    ("build", "there"),
    [
        (OwnAttention, ["out"]),
        (Normed, ["second"]),
        (Branches, []),
        (Softmaxed, ["second"]),
        (lambda: small(shortcut="A"), ["stages.0.0.conv1", "stages.1.0.conv1"]),
    ],
)  # fmt: skip
def test_what_a_tracer_cannot_know_is_left_whole(build, there):
    net = build()
    if there:
        assert [group.name for group in channel_groups(net, 4)] == there
        prune_channels(net, 0.5, scope="layer", image_size=4)
        assert net(torch.rand(2, 3, 4, 4)).shape == (2, 10)
    else:
        with pytest.raises(UserError, match=f"{type(net).__name__} has no channels that can be removed"):
            channel_groups(net, 4)


# -- what stays, what is refused ---------------------------------------------------------------------------------------


def test_modes_flags_hooks_and_memory_format_stay():
    net = models.ResNet(blocks=[1, 1], channels=[8, 12]).to(memory_format=torch.channels_last)
    net.train()
    net.stages[0].eval()
    net.conv1.weight.requires_grad_(False)
    seen = []
    net.head.register_forward_hook(lambda *_: seen.append(1))
    modes = {n: m.training for n, m in net.named_modules()}
    flags = {n: p.requires_grad for n, p in net.named_parameters()}
    state = torch.get_rng_state()
    prune_channels(net, 0.5, image_size=8)
    assert {n: m.training for n, m in net.named_modules()} == modes and torch.equal(torch.get_rng_state(), state)
    assert {n: p.requires_grad for n, p in net.named_parameters()} == flags
    assert len(net.head._forward_hooks) == 1 and not seen and all(p.grad is None for p in net.parameters())
    assert net.stages[0][0].conv1.weight.is_contiguous(memory_format=torch.channels_last)


def masked_by_torch() -> nn.Module:
    net = small()
    nn.utils.prune.l1_unstructured(net.conv1, "weight", 0.5)
    return net


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.conv(x), x


@pytest.mark.parametrize(
    ("build", "ratio", "options", "message"),
    [
        (small, 1.0, {}, "ratio must be a number from 0 to below 1, got 1.0"),
        (small, -0.1, {}, "got -0.1"),
        (small, True, {}, "got True"),
        (small, float("nan"), {}, "got nan"),
        (small, "0.5", {}, "got '0.5'"),
        (small, 0.5, {"scope": "local"}, "scope must be one of global, layer, got 'local'"),
        (small, 0.5, {"criterion": "l3"}, "criterion must be one of l1, l2, random, bn_scale, taylor, fpgm, got 'l3'"),
        (small, 0.5, {"criterion": "taylor"}, "'taylor' needs batches"),
        (small, 0.5, {"multiple": 0}, "multiple must be a whole number of at least 1, got 0"),
        (small, 0.5, {"floor": 0}, "floor must be a whole number of at least 1, got 0"),
        (small, 0.9, {"floor": 4}, r"ratio 0.9 is 36 of 40 channels; the floor of 4 lets 24 go"),
        (small, 0.9, {"multiple": 4}, r"36 of 40 channels; widths in multiples of 4 and the floor of 1 let 24 go"),
        (small, 0.5, {"exclude": ["stages.9.*"]}, r"exclude: 'stages.9.\*' matches none of the 7 .* ResNet \(conv1, "),
        (small, 0.5, {"exclude": "head"}, "exclude takes a list of patterns, got the string 'head'"),
        (small, 0.5, {"exclude": ["*"]}, r"leaves none of the 4 groups"),
        (small, 0.5, {"in_channels": 1}, r"cannot be followed .* images of shape \[1, 1, 8, 8\]"),
        (small, 0.5, {"criterion": "fpgm", "image_size": 0}, "cannot be followed"),
        (lambda: models.LeNet(image_size=8, in_channels=3), 0.5, {"criterion": "bn_scale"}, "head.0 has no batch norm"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), 0.5, {}, "Sequential has no channels that can be"),
        (lambda: small().to("meta"), 0.5, {}, "ResNet is on the meta device"),
        (masked_by_torch, 0.5, {}, r"ResNet cannot be copied: make weights .* \(torch.nn.utils.prune\) plain"),
        (TwoOutputs, 0.5, {}, "TwoOutputs's channels cannot be followed"),
    ],
)  # fmt: skip
def test_mistakes_are_named_and_leave_the_network_alone(build, ratio, options, message):
    net = build()
    same = frozen_state(net)
    with pytest.raises(UserError, match=message):
        prune_channels(net, ratio, **{"image_size": 8, **options})
    assert same()
