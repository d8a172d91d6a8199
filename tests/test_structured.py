"""Channel pruning: exact counts, the law of channels, and what is refused."""

import copy

import pytest
import torch
import torch_pruning as tp
from torch import nn

from smallnets import models
from smallnets.errors import UserError
from smallnets.measure import Budget, BudgetExceeded, count
from smallnets.pruning import prune_layers
from smallnets.pruning.structured import NoEffectWarning

# Document 004: the eight blocks of ResNet-18, in each block conv1 and then conv2.
SHARES = (0.1, 0.1, 0.2, 0.2, 0.2, 0.2, 0.3, 0.3)
DOCUMENT_004 = {f"stages.{i // 2}.{i % 2}.conv{c}": share for i, share in enumerate(SHARES) for c in (1, 2)}

# Name -> network, image side, channels of its images, and ratios that reach sums, concatenations and flattened maps.
FAMILIES = {
    "ResNet": (lambda: models.ResNet(blocks=[2, 1], channels=[8, 12]), 8, 3, {"stages.*.conv?": 0.3, "conv1": 0.3}),
    "ResNet pooled": (
        lambda: models.ResNet(blocks=[1, 1], channels=[8, 12], pool=2, image_size=8), 8, 3, {"stages.*.conv?": 0.3},
    ),
    "bottleneck": (
        lambda: models.ResNet(blocks=[1, 1], channels=[8, 12], block="bottleneck"), 8, 3, {"stages.*.conv?": 0.3},
    ),
    "ResNet A": (
        lambda: models.ResNet(blocks=[1, 1], channels=[8, 12], shortcut="A"), 8, 3, {"stages.*.conv1": 0.3},
    ),
    "PreActResNet": (
        lambda: models.PreActResNet(blocks=[2, 1], channels=[8, 12]), 8, 3, {"conv1": 0.3, "stages.*.conv?": 0.3},
    ),
    "VGG": (
        lambda: models.VGG(blocks=[1, 2], channels=[8, 12], batch_norm=True, head_widths=[16], image_size=8), 8, 3,
        {"stages.*": 0.3, "head.1": 0.3},
    ),
    "DenseNet": (
        lambda: models.DenseNet(blocks=[2, 2], growth_rate=6, stem_channels=8), 8, 3,
        {"start.0": 0.3, "stages.*.conv?": 0.3, "stages.0.2.2": 0.3},
    ),
    "LeNet": (lambda: models.LeNet(hidden_widths=[20, 10], image_size=8), 8, 1, {"head.0": 0.3, "head.2": 0.3}),
    "ConvNet": (
        lambda: models.ConvNet(channels=[8], head_widths=[16], image_size=8), 8, 3, {"stages.*": 0.3, "head.0": 0.3},
    ),
    "depthwise": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 12, 1), nn.Flatten(),
            nn.Linear(12 * 36, 10),
        ), 8, 3, {"0": 0.3, "3": 0.3},
    ),
}  # fmt: skip
family = pytest.mark.parametrize("name", FAMILIES)


def shaken(net: nn.Module) -> nn.Module:
    """The network with no value left at 0 or 1: statistics, affine numbers and biases too."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if value.is_floating_point() and value.dim() == 1:
                value.copy_(torch.rand(value.shape, generator=generator) + (0.5 if "var" in name else 0.1))
    return net


def shapes(net: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in net.state_dict().items()}


# -- document 004 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", ["l1", "random"])
def test_document_004_is_reproduced_exactly(criterion):
    net = models.resnet18()
    dense = count(net)
    assert prune_layers(net, DOCUMENT_004, criterion) is net
    pruned = count(net)
    assert (dense.parameters, pruned.parameters) == (11_173_962, 4_493_525)
    assert (dense.macs, pruned.macs) == (555_422_720, 304_570_904)
    assert pruned.bytes < dense.bytes * 0.41
    assert net.conv1.out_channels == 53 and net.head.in_features == 252
    widths = [(block.conv1.out_channels, block.conv2.out_channels) for stage in net.stages for block in stage]
    assert widths == [(58, 53)] * 2 + [(103, 83)] * 2 + [(205, 164)] * 2 + [(359, 252)] * 2
    by_stage = [sum(p.numel() for p in stage.parameters()) for stage in net.stages]
    assert by_stage == [111_108, 285_263, 1_076_291, 3_016_796]
    Budget(parameters="5M").require(pruned, "resnet18")


def test_the_high_level_pruner_misses_the_budget():
    """It prunes tied layers once, as a group, and document 004's ratios then leave 5.99M parameters."""
    net = models.resnet18()
    ratios = {net.get_submodule(name): share for name, share in DOCUMENT_004.items()}
    pruner = tp.pruner.BasePruner(
        net, torch.zeros(1, 3, 32, 32), importance=tp.importance.MagnitudeImportance(p=1), pruning_ratio=0.0,
        pruning_ratio_dict=ratios, ignored_layers=[net.head], num_heads={}, in_channel_groups={}, out_channel_groups={},
    )  # fmt: skip
    pruner.step()
    counts = count(net)
    assert counts.parameters == 5_990_811
    with pytest.raises(BudgetExceeded, match="5,990,811 > limit 5,000,000"):
        Budget(parameters="5M").require(counts, "resnet18")


# -- which and how many channels ---------------------------------------------------------------------------------------


def chain(weights: list[float]) -> nn.Sequential:
    """A 1x1 convolution of one input channel with these filters, and a head that sums its channels."""
    net = nn.Sequential(nn.Conv2d(1, len(weights), 1, bias=False), nn.Flatten(), nn.Linear(len(weights), 1, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor(weights).view(-1, 1, 1, 1))
        net[2].weight.fill_(1.0)
    return net


def test_the_smallest_filters_go_by_size_and_not_by_sign():
    net = chain([0.0, -9.0, 8.0, -1.0, 7.0, 2.0, 6.0, -3.0, 5.0, 4.0])
    prune_layers(net, {"0": 0.4}, image_size=1, in_channels=1)
    assert net[0].weight.flatten().tolist() == [-9.0, 8.0, 7.0, 6.0, 5.0, 4.0]
    assert net(torch.ones(1, 1, 1, 1)).item() == 21.0


def test_among_equal_filters_the_first_go_and_the_count_is_exact():
    net = chain([1.0, 1.0, 1.0, -1.0, 1.0])
    net[2].weight.data = torch.arange(5.0)[None]
    prune_layers(net, {"0": 0.5}, image_size=1, in_channels=1)
    assert net[2].weight.tolist() == [[2.0, 3.0, 4.0]]


@pytest.mark.parametrize(("ratio", "width", "left"), [(0.29, 100, 71), (0.3, 10, 7), (0.0, 10, 10), (0.999, 10, 1)])
def test_the_count_is_the_floor_of_the_decimal_that_was_written(ratio, width, left):
    net = chain([float(i + 1) for i in range(width)])
    prune_layers(net, {"0": ratio}, image_size=1, in_channels=1)
    assert net[0].out_channels == left == net[2].in_features


def test_each_layer_loses_a_share_of_what_it_has_then():
    net = models.ResNet(blocks=[2], channels=[10])
    prune_layers(net, {"stages.0.0.conv2": 0.5, "stages.0.1.conv2": 0.5}, image_size=8)
    assert net.conv1.out_channels == 3  # 10 -> 5 -> 3


def test_random_channels_are_a_function_of_the_seed_alone():
    def left(seed: int) -> list[float]:
        net = chain([float(i) for i in range(20)])
        state = torch.get_rng_state()
        prune_layers(net, {"0": 0.5}, "random", image_size=1, in_channels=1, seed=seed)
        assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"
        return net[0].weight.flatten().tolist()

    first = left(1)
    torch.manual_seed(5)
    assert left(1) == first and left(2) != first and len(first) == 10


def test_patterns_take_their_layers_in_order_and_a_share_below_one_channel_is_said():
    net = models.ResNet(blocks=[2, 1], channels=[8, 12])
    with pytest.warns(NoEffectWarning, match=r"stages\.0\.0\.conv2: 0.1 of 8 channels"):
        prune_layers(net, {"stages.*.conv1": 0.5, "stages.0.0.conv2": 0.1}, image_size=8)
    assert [b.conv1.out_channels for s in net.stages for b in s] == [4, 4, 6]
    assert [b.conv2.out_channels for s in net.stages for b in s] == [8, 8, 12]


# -- the law of channels -----------------------------------------------------------------------------------------------


@family
def test_all_that_is_counted_falls(name):
    build, size, channels, ratios = FAMILIES[name]
    net = build()
    before = count(net, size, channels)
    after = count(prune_layers(net, ratios, "l1", size, channels), size, channels)
    assert after.parameters < before.parameters and after.macs < before.macs and after.bytes < before.bytes
    assert after.bytes == sum(v.numel() * v.element_size() for v in net.state_dict().values())
    assert net(torch.rand(2, channels, size, size)).shape == (2, 10)


def zero_channels(net: nn.Module, ratios: dict[str, float], size: int, channels: int) -> nn.Module:
    """The network with the channels that `prune_layers` will remove set to zero, found without it.

    Every parameter is a constant of its position before pruning, so that what is left over tells what was removed.
    """
    marked = copy.deepcopy(net)
    with torch.no_grad():
        for p in marked.parameters():
            if p.dim() > 1:
                p.copy_(torch.arange(1.0, len(p) + 1).view(-1, *[1] * (p.dim() - 1)).expand_as(p))
            else:
                p.copy_(torch.arange(1.0, len(p) + 1))
    full = {k: v.clone() for k, v in marked.named_parameters()}
    prune_layers(marked, ratios, "l1", size, channels)
    for key, left in marked.named_parameters():
        kept = set(left.flatten(1)[:, 0].tolist() if left.dim() > 1 else left.tolist())
        assert len(kept) == len(left)
        gone = [i for i, value in enumerate(range(1, len(full[key]) + 1)) if float(value) not in kept]
        with torch.no_grad():
            net.get_parameter(key)[gone] = 0.0
    return net


@family
def test_a_network_whose_removed_channels_were_zero_gives_the_same_logits(name):
    build, size, channels, ratios = FAMILIES[name]
    net = zero_channels(shaken(build()).double(), ratios, size, channels).eval()
    images = torch.rand(4, channels, size, size, dtype=torch.float64)
    before = net(images)
    assert before.std() > 0
    prune_layers(net, ratios, "l1", size, channels)
    torch.testing.assert_close(net(images), before, rtol=1e-9, atol=1e-9)


@family
def test_kept_filters_keep_their_values(name):
    """The pruned layer's rows are rows of the dense one, in its order."""
    build, size, channels, ratios = FAMILIES[name]
    net = shaken(build())
    first = next(iter(n for n, m in net.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))))
    dense = net.get_submodule(first).weight.detach().clone()
    prune_layers(net, ratios, "l1", size, channels)
    left = net.get_submodule(first).weight
    rows = [next(i for i, row in enumerate(dense) if torch.equal(row, each)) for each in left]
    assert rows == sorted(set(rows))


# -- what stays as it was ----------------------------------------------------------------------------------------------


def test_modes_flags_hooks_and_memory_format_stay():
    net = models.ResNet(blocks=[1, 1], channels=[8, 12]).to(memory_format=torch.channels_last)
    net.train()
    net.stages[0].eval()
    net.conv1.weight.requires_grad_(False)
    net.stages[1][0].bn1.bias.requires_grad_(False)
    seen = []
    net.head.register_forward_hook(lambda *_: seen.append(1))
    modes = {n: m.training for n, m in net.named_modules()}
    flags = {n: p.requires_grad for n, p in net.named_parameters()}
    prune_layers(net, {"stages.*.conv?": 0.3}, image_size=8)
    assert {n: m.training for n, m in net.named_modules()} == modes
    assert {n: p.requires_grad for n, p in net.named_parameters()} == flags
    assert net.conv1.weight.shape[0] == 6  # narrowed through its ties, although frozen
    hooks = {n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in net.named_modules()}
    assert {n for n, h in hooks.items() if h != (0, 0)} == {"head"} and not seen
    assert net.stages[0][0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert all(p.grad is None for p in net.parameters())


def test_it_works_where_gradients_are_off_and_on_frozen_networks():
    net = models.LeNet(hidden_widths=[10], image_size=4).requires_grad_(False)
    with torch.no_grad():
        prune_layers(net, {"head.0": 0.5}, image_size=4, in_channels=1)
    assert net.head[0].out_features == 5 and not any(p.requires_grad for p in net.parameters())


def test_calls_share_nothing():
    """The same network gives the same result whatever was pruned before it in the process."""
    torch.manual_seed(0)
    first = models.PreActResNet(blocks=[1, 1], channels=[8, 12])
    again, other = copy.deepcopy(first), models.VGG(blocks=[1], channels=[8], image_size=8, head_widths=[4])
    prune_layers(first, {"stages.*.conv?": 0.3}, image_size=8)
    prune_layers(other, {"head.1": 0.5}, image_size=8)
    prune_layers(again, {"stages.*.conv?": 0.3}, image_size=8)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))


def test_a_pruned_network_trains_and_can_be_pruned_again():
    net = models.ResNet(blocks=[1, 1], channels=[8, 12])
    for _ in range(2):
        prune_layers(net, {"stages.*.conv?": 0.3}, image_size=8)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        net(torch.rand(4, 3, 8, 8)).square().sum().backward()
        assert all(p.grad is not None and p.grad.shape == p.shape for p in net.parameters())
        optimizer.step()
    assert net.stages[0][0].conv2.out_channels == 5  # 8 -> 6 -> 5


# -- what is refused ---------------------------------------------------------------------------------------------------


class WithoutGradients(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.conv(x).mean((2, 3))


class TwoOutputs(nn.Module):
    """Not one tensor of logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.conv(x), x


class FixedSplit(nn.Module):
    """A forward that insists on a number of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x).mean((2, 3))
        return self.head(x.view(-1, 2, 4).flatten(1))


def grouped() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, groups=2), nn.Flatten(), nn.Linear(8 * 64, 10))


def small(**more) -> models.ResNet:
    return models.ResNet(blocks=[1, 1], channels=[8, 12], **more)


@pytest.mark.parametrize(
    ("build", "ratios", "options", "message"),
    [
        (small, {"conv1": 1.0}, {}, r"ratio of 'conv1' must be .* below 1, got 1.0"),
        (small, {"conv1": -0.1}, {}, "got -0.1"),
        (small, {"conv1": True}, {}, "got True"),
        (small, {"conv1": float("nan")}, {}, "got nan"),
        (small, {"stages.9.*": 0.3}, {}, r"'stages.9.\*' matches none of the 7 .* ResNet \(conv1, "),
        (small, {"bn1": 0.3}, {}, "'bn1' matches none"),
        (small, {"conv1": 0.3, "conv*": 0.3}, {}, r"conv1 is named twice: by 'conv1' and by 'conv\*'"),
        (small, {"conv1": 0.3}, {"criterion": "bn"}, "criterion must be one of l1, l2, random, fpgm, got 'bn'"),
        (small, {"head": 0.3}, {}, "head cannot lose channels: they are the network's output"),
        (lambda: nn.Conv2d(3, 4, 1), {"": 0.5}, {}, "they are the network's output"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten()), {"0": 0.5}, {}, "they are the network's output"),
        (lambda: small(shortcut="A"), {"conv1": 0.3}, {}, r"conv1 cannot lose .* 8 are added to the 12 .* 'A'"),
        (lambda: small(shortcut="A"), {"stages.1.0.conv2": 0.3}, {}, "stages.1.0.conv2 cannot lose .* 'A'"),
        (grouped, {"0": 0.5}, {}, "0 cannot lose channels: 1 is a convolution of 2 groups"),
        (WithoutGradients, {"conv": 0.5}, {}, "WithoutGradients computes its output without gradients"),
        (TwoOutputs, {"conv": 0.5}, {}, "TwoOutputs's channels cannot be followed"),
        (FixedSplit, {"conv": 0.5}, {}, "FixedSplit's channels cannot be followed"),
        (small, {"conv1": 0.3}, {"in_channels": 1}, r"cannot be followed .* images of shape \[1, 1, 8, 8\]"),
        (lambda: small().to("meta"), {"conv1": 0.3}, {}, "ResNet is on the meta device"),
        (
            lambda: models.VGG(blocks=[1], channels=[8], image_size=16), {"head.1": 0.3}, {},
            "VGG was built for images of 3 x 16 x 16, got 3 x 8 x 8",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_named_and_leave_the_network_alone(build, ratios, options, message):
    net = build()
    before, state = shapes(net), {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(UserError, match=message):
        prune_layers(net, ratios, **{"image_size": 8, **options})
    assert shapes(net) == before and net.training
    assert all(v.is_meta or torch.equal(v, state[k]) for k, v in net.state_dict().items())


class Gated(nn.Module):
    """The second layer sees only the first two channels of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 4, 1), nn.Linear(2, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.first(x).mean((2, 3))[:, :2])


def test_a_layer_is_never_emptied():
    net = Gated()
    with torch.no_grad():
        net.first.weight[:2] = 0.0  # the two that the head sees go first
    with pytest.raises(UserError, match=r"first: removing 2 of 4 channels would leave nothing of head"):
        prune_layers(net, {"first": 0.5}, image_size=8)
    assert net.first.out_channels == 4 and net.head.in_features == 2


def test_a_later_layer_that_fails_leaves_the_earlier_ones_unpruned():
    net = small()
    before = shapes(net)
    with pytest.raises(UserError, match="network's output"):
        prune_layers(net, {"stages.*.conv?": 0.3, "head": 0.3}, image_size=8)
    assert shapes(net) == before
