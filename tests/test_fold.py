"""`fold`: ordinary layers that give the logits of the network."""

import pytest
import torch
from torch import Tensor, nn

from smallnets import models
from smallnets.errors import UserError
from smallnets.layers import QuaternionBatchNorm2d, QuaternionConv2d, QuaternionLinear
from smallnets.measure import count
from smallnets.surgery import fold, to_quaternion

# Small ones of each family: network, image side, channels, BatchNorms that stay when folded.
FAMILIES = {
    "ResNet": (lambda: models.resnet20(), 16, 3, 0),
    "ResNet A": (lambda: models.resnet20(shortcut="A"), 16, 3, 0),
    "ResNet pooled": (lambda: models.ResNet(blocks=[1, 1], channels=[8, 12], pool=2, image_size=16), 16, 3, 0),
    "bottleneck": (lambda: models.ResNet(100, blocks=[1, 1], channels=[8, 12], block="bottleneck"), 16, 3, 0),
    "ImageNet": (lambda: models.ResNet(blocks=[1, 1], channels=[8, 12], stem="imagenet"), 32, 3, 0),
    # The first norm of a block reads what its shortcut reads too, a sum, or what is joined.
    "PreActResNet": (lambda: models.PreActResNet(blocks=[1, 1], channels=[8, 12]), 16, 3, 2),
    "VGG": (lambda: models.VGG(blocks=[1, 1], channels=[8, 16], image_size=16), 16, 3, 0),
    "VGG BN": (lambda: models.VGG(100, blocks=[1, 1], channels=[8, 16], batch_norm=True, image_size=16), 16, 3, 0),
    "DenseNet": (lambda: models.DenseNet(blocks=[2, 2], growth_rate=8, stem_channels=8), 16, 3, 6),
    "ViT": (lambda: models.ViT(dim=32, depth=2, heads=4, mlp_dim=16, head_widths=[16], image_size=16), 16, 3, 0),
    "LeNet": (lambda: models.lenet_300_100(), 28, 1, 0),
    "ConvNet": (lambda: models.conv2(), 32, 3, 0),
}
QUATERNION = (QuaternionConv2d, QuaternionLinear)
NORMS = (nn.BatchNorm2d, QuaternionBatchNorm2d)


def trained(net: nn.Module, size: int, channels: int) -> nn.Module:
    """`net` with running statistics, scales and shifts of its own."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
        elif isinstance(module, QuaternionBatchNorm2d):
            with torch.no_grad():
                module.weight += 0.2 * torch.randn_like(module.weight)
            nn.init.normal_(module.bias)
    with torch.no_grad():
        for _ in range(3):
            net(2 * torch.randn(16, channels, size, size) + 0.5)
    return net


def agree(found: Tensor, expected: Tensor) -> None:
    assert float((found - expected).abs().max()) <= 1e-4 * float(expected.abs().max())


@pytest.mark.parametrize("form", ["real", "quaternion", "whitening"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_folded_network_has_ordinary_layers_and_the_same_logits(family, form):
    make, size, channels, left = FAMILIES[family]
    torch.manual_seed(0)
    net = make() if form == "real" else to_quaternion(make(), norm="whitening" if form == "whitening" else "real")
    trained(net, size, channels)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    folded = fold(net)
    assert net.training and all(torch.equal(net.state_dict()[key], value) for key, value in before.items())
    assert not folded.training and not any(m.training for m in folded.modules())
    assert not any(p.requires_grad for p in folded.parameters())
    assert not any(isinstance(m, QUATERNION) for m in folded.modules())
    norms = [m for m in net.modules() if isinstance(m, NORMS)]
    stay = [m for m in folded.modules() if isinstance(m, NORMS)]
    assert len(stay) == left and len(stay) < max(1, len(norms))
    images = torch.randn(4, channels, size, size)
    net.eval()
    with torch.no_grad():
        agree(folded(images), net(images))
    assert count(folded, size, channels).macs == count(net, size, channels).macs


def test_one_convolution_and_norm_in_numbers():
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    with torch.no_grad():
        net[0].weight.fill_(3.0)
        net[0].bias.fill_(1.0)
        net[1].weight.fill_(2.0)
        net[1].bias.fill_(5.0)
        net[1].running_mean.fill_(4.0)
        net[1].running_var.fill_(4.0 - net[1].eps)
    folded = fold(net)
    # 2 (3 x + 1 - 4) / 2 + 5 = 3 x + 2
    assert (float(folded[0].weight), float(folded[0].bias)) == (3.0, 2.0)
    assert type(folded[1]) is nn.Identity


class Twice(nn.Module):
    """Norms that cannot go: of an output that is read twice, of a convolution that is run twice."""

    def __init__(self) -> None:
        super().__init__()
        self.read_twice, self.norm1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.run_twice, self.norm2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.last, self.norm3 = nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8, affine=False)
        self.norm4 = nn.BatchNorm2d(8, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.read_twice(x)
        y = self.norm1(y) + y
        y = self.norm2(self.run_twice(y)) + self.run_twice(y)
        return self.norm3(self.last(y)).mean((2, 3))


def test_a_norm_stays_where_it_is_not_alone():
    torch.manual_seed(0)
    net = trained(Twice(), 8, 3).eval()
    folded = fold(net)
    kinds = [type(getattr(folded, f"norm{i}")) for i in (1, 2, 3)]
    assert kinds == [nn.BatchNorm2d, nn.BatchNorm2d, nn.Identity]
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        agree(folded(images), net(images))


@pytest.mark.parametrize("last", [False, True])
def test_a_folded_kernel_keeps_type_and_memory_format(last):
    layout = torch.channels_last if last else torch.contiguous_format
    for norm in ("real", "whitening"):
        net = to_quaternion(models.resnet20(), norm=norm).to(torch.bfloat16).to(memory_format=layout)
        weight = fold(net).net.stages[0][0].conv1.weight
        assert weight.dtype == torch.bfloat16 and weight.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("name", ["ResNet", "ViT", "DenseNet"])
def test_export_takes_it(name):
    make, size, channels, _ = FAMILIES[name]
    torch.manual_seed(0)
    net = trained(to_quaternion(make()), size, channels).eval()
    images = torch.randn(2, channels, size, size)
    program = torch.export.export(fold(net), (images,))
    with torch.no_grad():
        agree(program.module()(images), net(images))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if x.sum() > 0 else x


def test_what_cannot_be_folded():
    with pytest.raises(UserError, match="Branching cannot be folded, its forward cannot be followed:\n"):
        fold(Branching())
    with pytest.raises(UserError, match="0: a quaternion convolution of 2 groups"):
        fold(nn.Sequential(QuaternionConv2d(8, 8, 3, groups=2)))
