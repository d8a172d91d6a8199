"""Error barriers between networks whose line is known, and overlaps whose chance is known."""

import copy

import pytest
import torch
from torch import nn

from smallnets.errors import UserError
from smallnets.pruning import Masks
from smallnets.pruning.connectivity import error_barrier, instability, overlap


def line(value, mean=0.0):
    net = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    with torch.no_grad():
        net[0].weight.fill_(value)
        net[1].running_mean.fill_(mean)
    return net


def test_the_barrier_of_a_hill_is_its_height_over_the_mean_of_the_ends():
    # error = 1 - w^2 from w = -1 (0) to w = 0.5 (0.75): highest at 0 (1.0), which is the fifth of seven points.
    found = error_barrier(line(-1.0), line(0.5), lambda net: 1 - net[0].weight.item() ** 2, points=7)
    assert found.alphas == tuple(i / 6 for i in range(7))
    assert found.errors[0] == 0 and found.errors[-1] == 0.75 and found.errors[4] == pytest.approx(1)
    assert found.height == pytest.approx(1 - 0.375)


def test_a_line_without_a_hill_has_no_barrier():
    assert error_barrier(line(1.0), line(3.0), lambda net: net[0].weight.item()).height == pytest.approx(1)
    assert error_barrier(line(1.0), line(1.0), lambda net: net[0].weight.item()).height == 0


def test_the_ends_are_the_networks_and_both_stay_as_they_are():
    torch.manual_seed(0)
    a, b = (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)) for _ in range(2))
    a(torch.randn(8, 3))
    before = [copy.deepcopy(net.state_dict()) for net in (a, b)]
    seen = []
    error_barrier(a, b, lambda net: seen.append(copy.deepcopy(net.state_dict())) or 0.0, points=3)
    for state, net, old in zip((seen[0], seen[-1]), (a, b), before, strict=True):
        for name, value in net.state_dict().items():
            assert torch.equal(value, old[name]), name
            if value.is_floating_point():
                assert torch.equal(value, state[name]), name
    middle = (a[0].weight + b[0].weight) / 2
    assert torch.allclose(seen[1]["0.weight"], middle)


def test_running_statistics_are_interpolated_or_measured_anew():
    evaluate = lambda net: net[1].running_mean.item()  # noqa: E731
    a, b = line(1.0, mean=0.0), line(1.0, mean=10.0)
    with torch.no_grad():
        a[0].bias.zero_()
        b[0].bias.zero_()
    assert error_barrier(a, b, evaluate, points=3).errors == (0.0, 5.0, 10.0)
    images = torch.tensor([[2.0], [4.0]])  # mean 3, whatever the stored one was
    assert error_barrier(a, b, evaluate, points=3, recalibrate=[images]).errors == pytest.approx((3, 3, 3))


def test_instability_is_the_barrier_of_two_children():
    def train(net, seed):
        with torch.no_grad():
            net[0].weight.add_({1: -1.0, 2: 1.0}[seed])

    parent = line(0.0)
    found = instability(parent, train, lambda net: 1 - net[0].weight.item() ** 2, points=3)
    assert found.errors == (0.0, 1.0, 0.0) and found.height == 1
    assert parent[0].weight.item() == 0


def test_mistakes():
    with pytest.raises(UserError, match="3 or more, got 2"):
        error_barrier(line(1.0), line(2.0), lambda net: 0.0, points=2)
    with pytest.raises(UserError, match="belong to another network"):
        error_barrier(line(1.0), nn.Linear(1, 1), lambda net: 0.0)


def masks(**kept):
    """A layer of ten for each name, True at these places."""
    made = {name: torch.zeros(10, 1, dtype=torch.bool) for name in kept}
    for name, places in kept.items():
        made[name][list(places)] = True
    return Masks(made)


def test_overlap_and_chance_in_the_head():
    found = overlap(masks(a=range(5)), masks(a=range(3, 8)))
    assert found.jaccard == 2 / 8
    assert found.chance == 2.5 / 7.5  # 5 * 5 / 10 common of 10 - 2.5
    two = overlap(masks(a=range(5), b=range(10)), masks(a=range(5), b=range(10)))
    assert two.jaccard == 1
    assert two.chance == 12.5 / 17.5  # a dense layer is common for sure
    assert overlap(masks(a=[]), masks(a=[])).chance == 1


def test_chance_is_what_random_masks_have():
    generator = torch.Generator().manual_seed(0)

    def drawn(share):
        layers = {"a": (2000, share), "b": (500, share / 3)}
        return Masks(
            {
                n: (torch.randperm(size, generator=generator) < int(size * s)).view(-1, 1)
                for n, (size, s) in layers.items()
            }
        )

    found = [overlap(drawn(0.3), drawn(0.6)) for _ in range(100)]
    mean = sum(each.jaccard for each in found) / len(found)
    assert len({each.chance for each in found}) == 1
    assert mean == pytest.approx(found[0].chance, rel=0.01)
