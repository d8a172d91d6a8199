"""prune_to: within every limit, and with one step fewer not; counts on shapes are those of the network."""

import copy

import pytest
import torch
from families import FAMILIES, frozen_state
from torch import nn

from smallnets import models
from smallnets.errors import UserError
from smallnets.measure import Budget, count
from smallnets.pruning import prune_to
from smallnets.pruning.channel_scores import channel_scores
from smallnets.pruning.groups import Group, remove
from smallnets.pruning.ranking import ranking, removed_by
from smallnets.pruning.structured import channel_groups
from smallnets.pruning.to_budget import counter
from smallnets.pruning.trial import NoEffectWarning

NAMES = ("parameters", "nonzero_parameters", "macs", "bytes", "activation_bytes")
family = pytest.mark.parametrize("name", FAMILIES)


def thinned(net: nn.Module) -> nn.Module:
    """The network with a third of its weights at 0."""
    with torch.no_grad():
        for p in net.parameters():
            p[torch.rand(p.shape, generator=torch.Generator().manual_seed(p.numel())) < 1 / 3] = 0.0
    return net


def width(net: nn.Module, group: Group) -> int:
    """Channels or heads that a group has left, read from its first layer."""
    rows = len(net.get_submodule(group.name).weight)
    return rows // (3 * group.size) if group.name.endswith("qkv") else rows


def shapes(net: nn.Module) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in net.state_dict().items()}


@family
@pytest.mark.parametrize("limit", NAMES)
def test_it_fits_and_one_step_fewer_would_not(name, limit):
    build, size, channels = FAMILIES[name]
    image = {"image_size": size, "in_channels": channels}
    torch.manual_seed(0)
    net = thinned(build())
    groups = channel_groups(net, **image)
    steps = ranking(groups, channel_scores(net, groups))
    have = getattr(count(net, **image), limit)
    least = getattr(count(remove(copy.deepcopy(net), groups, removed_by(steps)), **image), limit)
    budget = Budget(**{limit: (have + least) // 2})
    pruned = prune_to(copy.deepcopy(net), budget, **image)
    assert not budget.over(count(pruned, **image))
    # A step is one unit: what is gone tells how many there were.
    taken = sum(group.width - width(pruned, group) for group in groups)
    assert shapes(remove(copy.deepcopy(net), groups, removed_by(steps[:taken]))) == shapes(pruned)
    assert budget.over(count(remove(copy.deepcopy(net), groups, removed_by(steps[: taken - 1])), **image))


@family
def test_counts_on_shapes_are_those_of_the_network(name):
    build, size, channels = FAMILIES[name]
    image = {"image_size": size, "in_channels": channels}
    net = thinned(build())
    next(iter(net.parameters())).requires_grad_(False)  # counts as bytes, not as a parameter
    groups, dense = channel_groups(net, **image), count(net, **image)
    steps = ranking(groups, channel_scores(net, groups, "random"))
    for limits in (["parameters", "nonzero_parameters", "macs", "bytes"], NAMES):
        guess = counter(net, groups, dense, Budget(**dict.fromkeys(limits, 1)), **image)
        for k in (1, len(steps) // 3, len(steps)):
            found = guess(removed_by(steps[:k]))
            true = count(remove(copy.deepcopy(net), groups, removed_by(steps[:k])), **image)
            assert [getattr(found, each) for each in limits] == [getattr(true, each) for each in limits]


def two(hidden: int) -> nn.Sequential:
    """2 * hidden parameters and as many MACs."""
    return nn.Sequential(nn.Flatten(), nn.Linear(1, hidden, bias=False), nn.Linear(hidden, 1, bias=False))


PIXEL = {"image_size": 1, "in_channels": 1}


@pytest.mark.parametrize(
    ("budget", "options", "left"),
    [
        ({"parameters": 7}, {}, 3),
        ({"parameters": 8}, {}, 4),
        ({"macs": 7}, {}, 3),
        ({"bytes": 55}, {}, 6),
        ({"parameters": 14, "macs": 11, "bytes": 60}, {}, 5),
        ({"parameters": 14}, {"multiple": 4}, 4),
        ({"parameters": 19}, {"multiple": 4}, 8),
        ({"parameters": 7}, {"scope": "layer", "criterion": "random"}, 3),
    ],
)
def test_numbers_that_one_can_check_in_the_head(budget, options, left):
    net = two(10)
    assert prune_to(net, Budget(**budget), **PIXEL, **options) is net
    assert net[1].out_features == net[2].in_features == left


def test_the_lowest_scores_go():
    net = two(6)
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[5.0], [-1.0], [4.0], [2.0], [-6.0], [3.0]]))
    prune_to(net, Budget(parameters=6), **PIXEL)
    assert net[1].weight.flatten().tolist() == [5.0, 4.0, -6.0]


def test_zeros_count_for_nonzero_parameters_only():
    net = two(10)
    with torch.no_grad():
        net[1].weight[:4] = 0.0  # 16 nonzero: 6 + 10
    prune_to(net, Budget(nonzero_parameters=12), **PIXEL)
    assert net[1].out_features == 6  # the four zeros go first, each with the one weight that reads it


def test_scope_layer_narrows_all_groups_alike():
    net = models.resnet20()
    groups = channel_groups(net, 16)
    prune_to(net, Budget(parameters=100_000), scope="layer", image_size=16)
    shares = [len(net.get_submodule(group.name).weight) / group.width for group in groups]
    assert max(shares) - min(shares) < 1 / 16  # one channel of the narrowest


def test_excluded_groups_stay_whole():
    net = models.resnet20()
    prune_to(net, Budget(parameters=100_000), exclude=["conv1"], image_size=16)
    assert net.conv1.out_channels == 16 and count(net).parameters <= 100_000


def test_heads_and_mlps_of_a_vit():
    net = models.vit_h4_s()
    assert count(net).parameters == 504_266
    prune_to(net, Budget(parameters="300k", macs="15M"))
    counts = count(net)
    assert counts.parameters <= 300_000 and counts.macs <= 15_000_000
    assert {block.attention.heads for block in net.encoder} != {8}
    assert all(
        block.attention.qkv.out_features == 3 * 16 * block.attention.heads == 3 * block.attention.project.in_features
        for block in net.encoder
    )


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1, groups=12),
            nn.ReLU(), nn.Conv2d(12, 20, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(80, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(images))


def test_a_network_of_ones_own():
    net = Own()
    before = count(net, 8)
    prune_to(net, Budget(parameters=before.parameters // 2, macs=before.macs // 2), image_size=8)
    after = count(net, 8)
    assert after.parameters <= before.parameters // 2 and after.macs <= before.macs // 2
    assert net.body[3].groups == net.body[0].out_channels < 12
    assert net(torch.rand(2, 3, 8, 8)).shape == (2, 10)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "preact_resnet18", "vgg16_bn", "vit_h4", "densenet121"])
def test_the_large_networks_come_to_a_million_parameters(name):
    net = models.make(name)
    prune_to(net, Budget(parameters="1M"))
    assert 990_000 < count(net).parameters <= 1_000_000


# -- what is said and refused ------------------------------------------------------------------------------------------


def test_within_the_budget_nothing_is_removed():
    net = models.lenet_12()
    same = frozen_state(net)
    with pytest.warns(NoEffectWarning, match=r"LeNet is within its budget \(parameters 9,550\): nothing removed"):
        assert prune_to(net, Budget(parameters=9_550), image_size=28, in_channels=1) is net
    assert same()


@pytest.mark.parametrize(
    ("build", "budget", "options", "message"),
    [
        (
            lambda: two(10), Budget(parameters=1, macs=1), {},
            r"to its budget: the smallest .* has parameters 2, macs 2; parameters 2 > limit 1; macs 2 > limit 1",
        ),
        (lambda: two(10), Budget(parameters=7), {"floor": 4}, "network of floor 4 and multiple 1 has param.* 8"),
        (lambda: two(10), Budget(parameters=7), {"multiple": 8}, "floor 1 and multiple 8 has parameters 16"),
        (lambda: two(10), Budget(parameters=7), {"exclude": ["x"]}, "exclude: 'x' matches none"),
        (lambda: two(10), Budget(parameters=7), {"criterion": "bn_scale"}, "1 has no batch norm"),
        (lambda: two(10), Budget(parameters=7), {"scope": "both"}, "scope must be one of"),
        (lambda: two(10), 7, {}, r"needs a Budget, such as Budget\(parameters='1M'\), got 7"),
        (lambda: two(10), Budget(parameters=7), {"image_size": 2}, "cannot run on an input of shape"),
    ],
)  # fmt: skip
def test_mistakes_are_named_and_leave_the_network_alone(build, budget, options, message):
    net = build()
    same = frozen_state(net)
    with pytest.raises(UserError, match=message):
        prune_to(net, budget, **{**PIXEL, **options})
    assert same()
