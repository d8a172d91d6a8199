"""Bytes in each form and MACs without zeros, by hand counts."""

import torch
from torch import nn

from smallnets.measure import stored_bytes
from smallnets.measure.sparse import Forms, stored_forms
from smallnets.models import ViT, resnet20


def lines() -> nn.Sequential:
    """4 -> 8 -> 2 values with bias, all ones: 32 and 16 weights."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.Linear(8, 2))
    for parameter in net.parameters():
        nn.init.ones_(parameter)
    return net


def test_every_form_by_hand() -> None:
    net = lines()
    with torch.no_grad():
        net[1].weight[:, :3] = 0  # 8 of 32 are left
    found = stored_forms(net, image_size=2, in_channels=1)
    first = Forms(
        entries=32,
        nonzero=8,
        fp32=32 * 4 + 8 * 4,
        fp32_sparse=8 * 4 + 4 + 8 * 4,  # values, 32 bits of mask, bias
        fp16=32 * 2 + 8 * 2,
        int8=32 + 8 * 4 + 8 * 4,  # values, a scale for each of 8 channels, bias
        int8_sparse=8 + 4 + 8 * 4 + 8 * 4,
        macs=32,
        effective_macs=8,
    )
    # No zeros: the mask would only add, so the tensor stays dense.
    second = Forms(16, 16, 64 + 8, 64 + 8, 32 + 4, 16 + 8 + 8, 16 + 8 + 8, 16, 16)
    assert found.layers == {"1": first, "2": second}
    assert found.total == first + second


def test_dense_fp32_is_what_the_network_stores_but_for_the_counters() -> None:
    net = resnet20()
    found = stored_forms(net)
    assert found.total.fp32 == stored_bytes(net) - 8 * 21 == 1_096_168
    assert found.total.entries == 270_896
    assert found.total.fp16 * 2 == found.total.fp32
    assert found.total.macs == found.total.effective_macs == 40_813_184


def test_effective_macs_of_a_convolution_with_zeros() -> None:
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(4 * 36, 2, bias=False))
    with torch.no_grad():
        net[0].weight[:, 0] = 0
        net[0].weight[0, 1, 0, 0] = 0
    layers = stored_forms(net, image_size=6, in_channels=2).layers
    assert layers["0"].macs == 72 * 36
    assert layers["0"].effective_macs == 35 * 36
    assert layers["2"].effective_macs == 288


def test_products_without_a_weight_are_all_counted() -> None:
    net = ViT(patch_size=2, dim=8, depth=1, heads=2, mlp_dim=8, head_widths=[], image_size=4)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Linear):
                module.weight.zero_()
    total = stored_forms(net, image_size=4).total
    assert total.effective_macs == 2 * 5 * 5 * 8  # q k^T and the mix of v, over 5 tokens
    # Class token and positions are no weights of a layer that multiplies: 4 bytes a value in every form.
    assert stored_forms(net, image_size=4).layers[""].int8 == 4 * (8 + 5 * 8)


def test_a_shared_tensor_counts_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.twin = lines(), nn.Linear(8, 2)
            self.twin.weight = self.net[2].weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = self.net[1](x.flatten(1))
            return self.net[2](hidden) + self.twin(hidden)

    found = stored_forms(Twice(), image_size=2, in_channels=1)
    assert found.total.entries == 48
    assert found.total.fp32 == 48 * 4 + (8 + 2 + 2) * 4
