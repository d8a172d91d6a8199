"""Peak memory by lifetimes, on networks whose peak one can see."""

import pytest
import torch
from torch import Tensor, nn

from smallnets.errors import UserError
from smallnets.measure import Budget, count
from smallnets.measure.count import record
from smallnets.measure.memory import memory
from smallnets.models import resnet20
from smallnets.surgery import fold


def conv(a: int, b: int) -> nn.Conv2d:
    return nn.Conv2d(a, b, 1, bias=False)


def test_a_chain_holds_two_neighbours() -> None:
    # On 4 x 4: 2, 4, 8, 2 channels; the most is 4 + 8 channels of 16 values.
    net = nn.Sequential(conv(2, 4), nn.ReLU(), conv(4, 8), nn.ReLU(), conv(8, 2))
    found = memory(net, image_size=4, in_channels=2)
    assert (found.activations_int8, found.activations_fp32) == (12 * 16, 4 * 12 * 16)
    assert found.peak.name == "2"
    assert [layer.elements for layer in found.layers] == [6 * 16, 4 * 16, 12 * 16, 8 * 16, 10 * 16]
    assert (found.weights_fp32, found.weights_int8) == (4 * (8 + 32 + 16), 56 + 4 * (4 + 8 + 2))


class Residual(nn.Module):
    """x + b(relu(a(x))): x waits while both convolutions run."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(2, 8), conv(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(torch.relu(self.a(x)))


def test_what_a_later_layer_reads_stays() -> None:
    found = memory(Residual(), image_size=4, in_channels=2)
    held = {layer.name: layer.elements for layer in found.layers}
    assert held == {"a": 10 * 16, "b": 12 * 16, "": 10 * 16}  # the ReLU is the network's own, and so is the sum
    # Without the shortcut x is gone when b runs.
    assert memory(nn.Sequential(conv(2, 8), nn.ReLU(), conv(8, 2)), 4, 2).activations_int8 == 10 * 16


def test_an_activation_function_works_in_place_only_on_what_nobody_reads_again() -> None:
    class Both(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(x)  # x is read again: 2 places
            return torch.cat([torch.relu(y), x], 1)  # in place; then 2 + 4 channels

    found = [sum(record(Both(), 4, 2).elements[n] for n in now) for now in record(Both(), 4, 2).held()]
    assert found == [4 * 16, 4 * 16, 8 * 16]


def test_a_view_holds_what_it_looks_at() -> None:
    class Slice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = conv(2, 8), conv(1, 1), conv(1, 2)

        def forward(self, x: Tensor) -> Tensor:
            first = self.a(x)[:, :1]  # one channel, in the memory of eight
            return self.c(self.b(first))

    held = {layer.name: layer.elements for layer in memory(Slice(), 4, 2).layers}
    assert held == {"a": 10 * 16, "b": 9 * 16, "c": 3 * 16}


def test_resnet20_holds_three_maps_of_its_first_stage() -> None:
    net = resnet20()
    found = memory(fold(net))
    assert found.activations_int8 == 3 * 16 * 32 * 32 == memory(net).activations_int8
    assert found.peak.name == "stages.0.0.conv2"
    assert count(net).activation_bytes == 4 * 3 * 16 * 32 * 32
    assert count(net.half()).activation_bytes == 2 * 3 * 16 * 32 * 32


def test_a_budget_may_name_it() -> None:
    net = resnet20()
    counts = count(net)
    assert Budget(activation_bytes=196_608).check(counts) == []
    assert Budget(activation_bytes="196k").check(counts) == ["activation_bytes 196,608 > limit 196,000"]
    with pytest.raises(UserError, match="largest layers by parameters"):
        Budget(activation_bytes=1).require(counts, "resnet20")


def test_the_network_is_left_as_it_was() -> None:
    net = resnet20().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    memory(net)
    assert net.training and not net._forward_hooks
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
