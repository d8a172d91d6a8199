"""Criteria for channels: numbers that one can check in the head."""

import copy

import pytest
import torch
from torch import nn

from smallnets import models
from smallnets.errors import UserError
from smallnets.pruning import prune_channels, prune_layers
from smallnets.pruning.channel_scores import channel_scores
from smallnets.pruning.structured import channel_groups


class Two(nn.Module):
    """Two layers whose outputs are added: one group of three channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 3), nn.Linear(2, 3)
        self.head = nn.Linear(3, 2)
        with torch.no_grad():
            self.a.weight.copy_(torch.tensor([[3.0, -4.0], [0.0, 1.0], [6.0, 8.0]]))
            self.b.weight.copy_(torch.tensor([[0.0, 0.0], [5.0, 12.0], [0.0, 2.0]]))
            self.a.bias.fill_(100.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)[:, :2]
        return self.head(self.a(x) + self.b(x))


def scores(net: nn.Module, criterion: str, size: int = 4, channels: int = 3, **options) -> list[list[float]]:
    groups = channel_groups(net, size, channels)
    return [each.tolist() for each in channel_scores(net, groups, criterion, **options)]


def test_norms_are_of_the_filters_and_averaged_over_coupled_layers():
    assert scores(Two(), "l1") == [[3.5, 9.0, 8.0]]  # (7, 1, 14) and (0, 17, 2)
    assert scores(Two(), "l2") == [[2.5, 7.0, 6.0]]  # (5, 1, 10) and (0, 13, 2)


def test_fpgm_is_the_sum_of_the_distances_to_the_other_filters():
    net = nn.Sequential(nn.Conv2d(1, 4, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([10.0, 11.0, 12.0, 20.0]).view(4, 1, 1, 1))
    assert scores(net, "fpgm", 1, 1) == [[13.0, 11.0, 11.0, 27.0]]
    # It is not the smallest that goes but, of the two in the middle, the first.
    prune_channels(net, 0.25, criterion="fpgm", image_size=1, in_channels=1)
    assert net[0].weight.flatten().tolist() == [10.0, 12.0, 20.0]


def test_equal_filters_are_at_distance_zero():
    net = nn.Sequential(nn.Conv2d(3, 40, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(40, 2))
    with torch.no_grad():
        net[0].weight[:] = net[0].weight[0].clone()
    assert scores(net, "fpgm", 3) == [[0.0] * 40]


def test_batch_norm_scale():
    net = models.ResNet(blocks=[1], channels=[4])
    with torch.no_grad():
        net.bn1.weight.copy_(torch.tensor([1.0, -2.0, 3.0, 4.0]))
        net.stages[0][0].bn2.weight.copy_(torch.tensor([3.0, 4.0, -5.0, 0.0]))
        net.stages[0][0].bn1.weight.copy_(torch.tensor([-0.5, 0.25, 0.0, 1.0]))
    assert scores(net, "bn_scale", 8) == [[2.0, 3.0, 4.0, 2.0], [0.5, 0.25, 0.0, 1.0]]
    with pytest.raises(UserError, match=r"'bn_scale': head.1 has no batch norm with a scale behind it; exclude it"):
        scores(models.VGG(blocks=[1], channels=[4], batch_norm=True, head_widths=[8], image_size=4), "bn_scale")


def test_taylor_is_the_sum_over_the_filter_of_weight_times_gradient():
    torch.manual_seed(0)
    net = models.ResNet(blocks=[1], channels=[4]).eval()
    batches = [(torch.randn(6, 3, 8, 8), torch.arange(6)), (torch.randn(2, 3, 8, 8), torch.arange(2))]
    loss = nn.CrossEntropyLoss()
    before = copy.deepcopy(net.state_dict())
    found = scores(net, "taylor", 8, batches=batches, loss=loss)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())

    loss(net(torch.cat([b[0] for b in batches])), torch.cat([b[1] for b in batches])).backward()
    block = net.stages[0][0]

    def each(conv: nn.Conv2d) -> torch.Tensor:
        return (conv.weight * conv.weight.grad).abs().sum((1, 2, 3)).double()

    expected = [(each(net.conv1) + each(block.conv2)) / 2, each(block.conv1)]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.tensor(ours, dtype=torch.float64), theirs, rtol=1e-4, atol=1e-9)


def test_random_is_a_function_of_the_seed_and_the_widths():
    state = torch.get_rng_state()
    first = scores(models.LeNet(hidden_widths=[9, 7], image_size=4, in_channels=3), "random", seed=4)
    again = scores(models.LeNet(hidden_widths=[9, 7], image_size=4, in_channels=3), "random", seed=4)
    other = scores(models.LeNet(hidden_widths=[9, 7], image_size=4, in_channels=3), "random", seed=5)
    assert first == again != other and [len(each) for each in first] == [9, 7]
    torch.set_rng_state(state)


def test_an_attention_head_is_scored_by_its_rows_of_q_k_and_v():
    net = models.ViT(dim=4, depth=1, heads=2, mlp_dim=4, head_widths=[], image_size=4)
    with torch.no_grad():
        net.encoder[0].attention.qkv.weight.copy_(torch.arange(12.0)[:, None].expand(12, 4))
    # Rows 0 1 | 4 5 | 8 9 and 2 3 | 6 7 | 10 11, four columns each: 27 and 39.
    assert scores(net, "l1")[0] == [108.0, 156.0]


@pytest.mark.parametrize("criterion", ["l1", "l2", "fpgm", "random"])
def test_layers_can_be_pruned_by_the_filter_criteria(criterion):
    net = nn.Sequential(nn.Conv2d(1, 4, 1, bias=False), nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([10.0, 11.0, 12.0, 20.0]).view(4, 1, 1, 1))
    prune_layers(net, {"0": 0.5}, criterion, image_size=1, in_channels=1)
    left = net[0].weight.flatten().tolist()
    assert (
        left == {"l1": [12.0, 20.0], "l2": [12.0, 20.0], "fpgm": [10.0, 20.0]}.get(criterion, left) and len(left) == 2
    )


def test_scores_that_are_no_numbers_are_refused():
    net = Two()
    with torch.no_grad():
        net.a.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match="'l1': the scores of a are not finite"):
        scores(net, "l1")
    with pytest.raises(UserError, match="at least one batch"):
        scores(Two(), "taylor", batches=[], loss=nn.CrossEntropyLoss())
