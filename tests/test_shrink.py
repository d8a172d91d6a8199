"""shrink: dead channels go, the logits stay."""

import copy

import pytest
import torch
from families import FAMILIES, frozen_state, saved, shaken
from torch import nn

import smallnets
from smallnets import models
from smallnets.errors import UserError
from smallnets.measure import count
from smallnets.pruning import Masks, shrink
from smallnets.pruning.groups import silence
from smallnets.pruning.structured import channel_groups

family = pytest.mark.parametrize("name", FAMILIES)


def image_of(name: str) -> dict[str, int]:
    return {"image_size": FAMILIES[name][1], "in_channels": FAMILIES[name][2]}


def images_of(name: str) -> torch.Tensor:
    _, size, channels = FAMILIES[name]
    return torch.randn(4, channels, size, size, dtype=torch.float64)


@family
def test_silent_channels_go_and_the_logits_stay(name, tmp_path):
    """A third of every group's channels is made 0, as pruning whole filters with masks and biases at 0 would."""
    image = image_of(name)
    torch.manual_seed(0)
    net = shaken(FAMILIES[name][0]()).double()
    groups = channel_groups(net, **image)
    silenced = {number: list(range(0, group.width, 3)) for number, group in enumerate(groups)}
    silence(net, groups, silenced)
    images = images_of(name)
    before, dense = net.eval()(images), count(net, **image)
    assert before.std() > 0
    assert shrink(net, **image) is net
    torch.testing.assert_close(net(images), before, rtol=1e-10, atol=1e-12)
    after = count(net, **image)
    assert after.parameters < dense.parameters and after.macs < dense.macs
    for number, group in enumerate(groups):
        left = len(net.get_submodule(group.name).weight) // (3 * group.size if group.name.endswith("qkv") else 1)
        assert left == group.width - len(silenced[number])
    assert torch.equal(smallnets.load(saved(net, tmp_path / "best.ckpt"))(images), net(images))
    shapes = [p.shape for p in net.parameters()]
    assert [p.shape for p in shrink(net, **image).parameters()] == shapes  # nothing left to go


@family
def test_channels_that_nobody_reads_go(name):
    """Only the input weights that read them are 0; filters, BatchNorm and biases are not."""
    image = image_of(name)
    net = shaken(FAMILIES[name][0]()).double().eval()
    groups = channel_groups(net, **image)
    group = groups[-1]
    with torch.no_grad():
        for part in group.parts:
            if part.role == "input":
                net.state_dict()[part.key].index_fill_(part.dim, part.index[part.units == 1], 0.0)
    images = images_of(name)
    before = net(images)
    shrink(net, **image)
    torch.testing.assert_close(net(images), before, rtol=1e-10, atol=1e-12)
    left = len(net.get_submodule(group.name).weight) // (3 * group.size if group.name.endswith("qkv") else 1)
    assert left == group.width - 1


@family
def test_a_dense_network_keeps_everything(name):
    net = FAMILIES[name][0]().double()
    net.train()
    same = frozen_state(net)
    shrink(net, **image_of(name))
    assert same()


def small() -> nn.Sequential:
    """One pixel: a convolution of four channels, BatchNorm, ReLU, and a head."""
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2)).double().eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]).view(4, 1, 1, 1))
        net[0].bias.zero_()
        net[4].weight.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]))
    return net


PIXEL = {"image_size": 1, "in_channels": 1}


@pytest.mark.parametrize(
    ("beta", "mean", "goes"),
    [(0.0, 0.0, True), (-1.0, 0.0, True), (0.0, 1.0, True), (0.5, 0.0, False), (0.0, -1.0, False), (0.5, 2.0, True)],
)
def test_a_zero_filter_goes_only_if_batch_norm_and_relu_leave_zero_of_it(beta, mean, goes):
    net = small()
    with torch.no_grad():
        net[0].weight[2] = 0.0
        net[1].bias[2], net[1].running_mean[2] = beta, mean
    images = torch.randn(8, 1, 1, 1, dtype=torch.float64)
    before = net(images)
    shrink(net, **PIXEL)
    assert net[0].out_channels == (3 if goes else 4)
    assert torch.equal(net(images), before) or torch.allclose(net(images), before, rtol=1e-12, atol=0)
    if goes:
        assert net[4].weight.tolist() == [[1.0, 2.0, 4.0], [5.0, 6.0, 8.0]]


def test_masks_end_in_the_weights_and_what_they_kill_goes():
    net = small()
    masks = {"0.weight": torch.ones(4, 1, 1, 1, dtype=torch.bool), "4.weight": torch.ones(2, 4, dtype=torch.bool)}
    masks["0.weight"][1] = False  # a filter
    masks["4.weight"][:, 3] = False  # all that reads a channel
    masks["4.weight"][0, 0] = False  # one weight only
    expected = copy.deepcopy(net)
    Masks(masks).apply_(expected)
    images = torch.randn(8, 1, 1, 1, dtype=torch.float64)
    shrink(net, Masks(masks), **PIXEL)
    assert net[0].weight.flatten().tolist() == [1.0, 3.0] and net[4].weight.tolist() == [[0.0, 3.0], [5.0, 7.0]]
    torch.testing.assert_close(net(images), expected(images), rtol=1e-12, atol=0)


def test_what_loses_its_only_reader_goes_too():
    net = nn.Sequential(nn.Flatten(), nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1))
    with torch.no_grad():
        net[1].bias.fill_(1.0)
        net[3].weight.copy_(torch.tensor([[1.0, 0.0, 0.0], [1.0, 2.0, 0.0], [1.0, 1.0, 4.0]]))
        net[5].weight.copy_(torch.tensor([[1.0, 1.0, 0.0]]))  # nobody reads the third, the only one that reads ...
    images = torch.randn(8, 1, 1, 1)
    before = net(images)
    shrink(net, **PIXEL)
    assert (net[1].out_features, net[3].out_features) == (2, 2)
    torch.testing.assert_close(net(images), before)


def test_a_group_keeps_at_least_one_channel():
    net = small()
    with torch.no_grad():
        net[0].weight.zero_()
    before = net(torch.ones(1, 1, 1, 1, dtype=torch.float64))
    shrink(net, **PIXEL)
    assert net[0].out_channels == 1
    torch.testing.assert_close(net(torch.ones(1, 1, 1, 1, dtype=torch.float64)), before)


class Summed(nn.Module):
    """The channels are read by a sum as well, which neither weights nor gradients show."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 4, 1), nn.Linear(4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x)).mean((2, 3))
        return self.head(x) + x.detach().sum(1, keepdim=True)


def test_a_reader_without_weights_is_found_out():
    net = Summed()
    with torch.no_grad():
        net.first.bias.fill_(1.0)
        net.head.weight[:, 1] = 0.0
    same = frozen_state(net)
    with pytest.raises(UserError, match=r"Summed does not give the same logits without its dead channels \(of first\)"):
        shrink(net, image_size=4)
    assert same()


def test_modes_flags_and_hooks_stay_and_hooks_do_not_run():
    net = models.ResNet(blocks=[1], channels=[4])
    with torch.no_grad():
        net.stages[0][0].conv2.weight[:, 1] = 0.0
    net.train()
    net.bn1.eval()
    net.head.bias.requires_grad_(False)
    seen = []
    net.conv1.register_forward_hook(lambda *_: seen.append(1))
    shrink(net, image_size=8)
    assert net.stages[0][0].conv1.out_channels == 3 and net.training and not net.bn1.training and not seen
    assert not net.head.bias.requires_grad and net.stages[0][0].conv1.weight.requires_grad


@pytest.mark.parametrize(
    ("masks", "options", "message"),
    [
        ({"0.weight": torch.ones(5, 1, 1, 1, dtype=torch.bool)}, {}, "0.weight: the mask is of 5x1x1x1, the weight"),
        ({"9.weight": torch.ones(4, dtype=torch.bool)}, {}, "there is a mask for 9.weight, but Sequential has no such"),
        (None, {"exclude": ["nine"]}, "exclude: 'nine' matches none"),
        (None, {"in_channels": 3}, "cannot be followed"),
    ],
)  # fmt: skip
def test_mistakes_are_named_and_leave_the_network_alone(masks, options, message):
    net = small()
    same = frozen_state(net)
    with pytest.raises(UserError, match=message):
        shrink(net, Masks(masks) if masks else None, **{**PIXEL, **options})
    assert same()
