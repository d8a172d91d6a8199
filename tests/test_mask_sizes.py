"""MACs and bytes of masked networks, by numbers worked out by hand."""

import pytest
import torch
from torch import nn

from smallnets.measure import count
from smallnets.pruning.masks import Masks
from smallnets.pruning.sizes import kept_macs, packed_bytes


@pytest.fixture
def net():
    """On 4x4 images of one channel: 2 * 9 weights at 16 places, then 10 * 32 weights once: 288 + 320 = 608 MACs."""
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 10)
    )


def masks(conv: int, head: int) -> Masks:
    """That keep so many weights of the two layers."""
    return Masks(
        {"0.weight": (torch.arange(18) < conv).view(2, 1, 3, 3), "4.weight": (torch.arange(320) < head).view(10, 32)}
    )


def test_the_macs_are_those_of_kept_weights(net):
    counts = count(net, image_size=4, in_channels=1)
    assert counts.macs == 608
    assert kept_macs(counts, masks(18, 320)) == 608
    assert kept_macs(counts, masks(5, 100)) == 5 * 16 + 100
    assert kept_macs(counts, Masks({"0.weight": masks(5, 1)["0.weight"]})) == 5 * 16 + 320


def test_a_packed_network_has_its_kept_weights_and_one_bit_a_weight(net):
    dense = 4 * (18 + 320 + 10) + 4 * 4 * 2 + 8  # weights, bias, BatchNorm and its counter of batches
    assert packed_bytes(net, masks(18, 320)) == dense + 3 + 40
    assert packed_bytes(net, masks(5, 100)) == dense - 4 * (13 + 220) + 3 + 40
    weights = 2 * (18 + 320 + 10) + 2 * 4 * 2 + 8
    assert packed_bytes(net.half(), masks(5, 100)) == weights - 2 * (13 + 220) + 3 + 40


def test_attention_in_one_module_counts_whole():
    class Attend(nn.Module):
        def __init__(self):
            super().__init__()
            self.attend = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, images):
            tokens = images.flatten(2).transpose(1, 2)
            return self.attend(tokens, tokens, tokens, need_weights=False)[0]

    net = Attend()
    counts = count(net, image_size=2, in_channels=8)
    half = torch.zeros(24, 8, dtype=torch.bool)
    assert counts.macs > 0
    assert kept_macs(counts, Masks({"attend.in_proj_weight": half})) == counts.macs
