"""narrow and fresh_like: the controls for a pruned network."""

import copy
from fractions import Fraction

import pytest
import torch
from families import FAMILIES, frozen_state, saved
from torch import nn

import smallnets
from smallnets import models
from smallnets.errors import UserError
from smallnets.measure import Budget, count
from smallnets.pruning import fresh_like, narrow, prune_channels
from smallnets.surgery import to_quaternion

family = pytest.mark.parametrize("name", FAMILIES)


def image_of(name: str) -> dict[str, int]:
    return {"image_size": FAMILIES[name][1], "in_channels": FAMILIES[name][2]}


def equal(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[key]) for key, value in ours.items())


# -- narrow ------------------------------------------------------------------------------------------------------------


@family
def test_half_the_parameters_fit_and_train(name, tmp_path):
    net = FAMILIES[name][0]()
    image, same = image_of(name), frozen_state(net)
    limit = count(net, **image).parameters // 2
    small = narrow(net, Budget(parameters=limit), **image)
    assert same() and type(small) is type(net)
    found = count(small, **image)
    assert limit // 2 < found.parameters <= limit
    images = torch.randn(4, image["in_channels"], image["image_size"], image["image_size"])
    small(images).square().sum().backward()
    assert all(p.grad is not None for p in small.parameters())
    loaded = smallnets.load(saved(small, tmp_path / "best.ckpt"))
    assert torch.equal(loaded(images), small.eval()(images))


def test_the_widest_that_fits_against_a_search_of_all():
    net = models.lenet_300_100()

    def parameters(first: int, second: int) -> int:
        return 785 * first + (first + 1) * second + (second + 1) * 10

    for limit in (100_000, 12_345, 200_000, 266_610):
        # Every factor at which one of the widths changes.
        factors = {Fraction(k, 300) for k in range(1, 301)} | {Fraction(k, 100) for k in range(1, 101)}
        widths = [(max(1, int(300 * f)), max(1, int(100 * f))) for f in sorted(factors)]
        best = [each for each in widths if parameters(*each) <= limit][-1]
        small = narrow(net, Budget(parameters=limit), image_size=28, in_channels=1)
        assert tuple(small.hidden_widths) == best


@pytest.mark.parametrize(
    ("factor", "multiple", "channels"),
    [(0.5, 1, [8, 16, 32]), (0.29, 1, [4, 9, 18]), (0.3, 8, [8, 8, 16]), (0.01, 1, [1, 1, 1]), (1, 1, [16, 32, 64]),
     (0.7, 32, [16, 32, 32])],
)  # fmt: skip
def test_widths_by_a_factor(factor, multiple, channels):
    assert narrow(models.resnet20(), factor=factor, multiple=multiple).channels == channels


def test_tokens_are_multiples_of_the_heads():
    small = narrow(models.vit_h4_s(), Budget(parameters="200k"))
    assert small.heads == 8 and small.dim % 8 == 0 and small.mlp_dim < 192 and count(small).parameters <= 200_000
    assert narrow(models.vit_h4_s(), factor=0.5, multiple=12).dim == 48  # 64, down to a multiple of 24


def test_seeds_and_what_follows_the_network():
    net = models.resnet20().double().eval().requires_grad_(False)
    state = torch.get_rng_state()
    first, again, other = (narrow(net, factor=0.5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert equal(first, again) and not equal(first, other)
    assert first.conv1.weight.dtype == torch.float64 and not first.training and not first.conv1.weight.requires_grad
    torch.manual_seed(1)
    assert equal(first, models.resnet20(channels=[8, 16, 32]).double())


def test_a_converted_network_is_narrowed_by_what_it_was_made_of():
    small = narrow(to_quaternion(models.resnet20(in_channels=4)), factor=0.6, multiple=4)
    expected = to_quaternion(models.resnet20(in_channels=4, channels=[8, 16, 36]))
    assert type(small) is type(expected) and small(torch.rand(2, 4, 8, 8)).shape == (2, 10)
    assert [p.shape for p in small.parameters()] == [p.shape for p in expected.parameters()]


class Own(nn.Module):
    def __init__(self, num_classes: int = 10, filters: int = 8) -> None:
        super().__init__()
        self.num_classes, self.filters = num_classes, filters
        self.body = nn.Sequential(nn.Conv2d(3, filters, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(filters, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def test_arguments_of_ones_own():
    assert narrow(Own(), factor=0.5, widths=["filters"]).filters == 4
    with pytest.raises(UserError, match=r"Own has none of the arguments channels, .*: name its own with widths"):
        narrow(Own(), factor=0.5)
    with pytest.raises(UserError, match=r"widths: Own has no numbers called 'depth' \(it has num_classes, filters\)"):
        narrow(Own(), factor=0.5, widths=["depth"])


def pruned() -> nn.Module:
    return prune_channels(models.ResNet(blocks=[1], channels=[8]), 0.5, image_size=8)


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (models.resnet20, {}, "either a budget or a factor, got budget=None and factor=None"),
        (models.resnet20, {"factor": 0.5, "budget": Budget(macs=9)}, "either a budget or a factor"),
        (models.resnet20, {"factor": 0.0}, "factor must be a number above 0 and at most 1, got 0.0"),
        (models.resnet20, {"factor": 1.5}, "got 1.5"),
        (models.resnet20, {"factor": 0.5, "multiple": 0}, "multiple must be a whole number of at least 1"),
        (models.resnet20, {"budget": Budget(parameters=9)}, r"narrowest network .*: parameters \d+ > limit 9"),
        (pruned, {"factor": 0.5}, "ResNet has other widths than its numbers say: narrow the unpruned network"),
        (lambda: nn.Sequential(nn.Linear(2, 2)), {"factor": 0.5}, "Sequential cannot be built anew"),
    ],
)  # fmt: skip
def test_mistakes_are_named(build, options, message):
    with pytest.raises(UserError, match=message):
        narrow(build(), **options)


# -- fresh_like --------------------------------------------------------------------------------------------------------


@family
def test_unpruned_it_is_the_network_that_its_class_builds(name):
    net = FAMILIES[name][0]()
    fresh = fresh_like(net, seed=5)
    torch.manual_seed(5)
    assert equal(fresh, FAMILIES[name][0]()) and not equal(fresh, net)


@family
def test_pruned_it_has_the_shape_and_no_value_of_the_network(name):
    image = image_of(name)
    net = FAMILIES[name][0]()
    prune_channels(net, 0.5, scope="layer", **image)
    same, state = frozen_state(net), torch.get_rng_state()
    fresh, again, other = fresh_like(net, 1), fresh_like(net, 1), fresh_like(net, 2)
    assert same() and torch.equal(torch.get_rng_state(), state)
    assert {k: v.shape for k, v in fresh.state_dict().items()} == {k: v.shape for k, v in net.state_dict().items()}
    assert equal(fresh, again) and not equal(fresh, other)
    assert all(
        value.isfinite().all() and (value.dim() < 2 or not torch.equal(value, net.state_dict()[key]))
        for key, value in fresh.state_dict().items()
    )
    images = torch.randn(2, image["in_channels"], image["image_size"], image["image_size"])
    assert fresh(images).shape == (2, 10)


def test_layers_start_as_their_class_starts_them():
    """Convolutions by fan-out of the widths that are left, linear layers uniform, BatchNorm at 1 and 0."""
    net = models.VGG(blocks=[1, 1], channels=[64, 96], batch_norm=True, head_widths=[400], image_size=8)
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(7.0)
    prune_channels(net, 0.5, scope="layer", criterion="random", image_size=8)
    fresh = fresh_like(net)
    conv, norm, linear = fresh.stages[1][0], fresh.stages[1][1], fresh.head[1]
    assert tuple(conv.weight.shape) == (48, 32, 3, 3)
    assert abs(conv.weight.std().item() / (2 / (9 * 48)) ** 0.5 - 1) < 0.03 and not conv.bias.any()
    assert norm.weight.eq(1).all() and not norm.bias.any() and norm.running_var.eq(1).all()
    bound = linear.in_features**-0.5
    assert 0.99 * bound < linear.weight.abs().max() <= bound


def test_heads_modes_and_flags_follow():
    net = models.ViT(dim=16, depth=1, heads=4, mlp_dim=8, head_widths=[], image_size=8)
    prune_channels(net, 0.5, scope="layer", image_size=8)
    net.eval()
    net.encoder[0].train()
    net.positions.requires_grad_(False)
    fresh = fresh_like(net)
    assert fresh.encoder[0].attention.heads == 2
    assert [m.training for m in fresh.modules()] == [m.training for m in net.modules()]
    assert [n for n, p in fresh.named_parameters() if not p.requires_grad] == ["positions"]


def test_an_init_of_ones_own():
    net = prune_channels(Own(), 0.5, image_size=2)

    def zero(module: nn.Module) -> None:
        nn.init.zeros_(module.weight)

    fresh = fresh_like(net, init=zero)
    assert not fresh.body[0].weight.any() and not fresh.head.weight.any() and fresh.head.bias.any()
    whole = Own()
    assert equal(fresh_like(copy.deepcopy(whole), 3, init=zero), fresh_like(whole, 3))  # nothing changed, nothing to do


def test_what_cannot_be_built_anew():
    with pytest.raises(UserError, match="Sequential cannot be built anew"):
        fresh_like(nn.Sequential(nn.Linear(2, 2)))
