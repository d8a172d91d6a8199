"""`quaternion`: a quaternion convolution's training step, and inference, against those of the real network.

The multiplications are the same on both sides: what is over 1 is the assembly of the kernel.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.optim import SGD

from smallnets.bench.loops import fresh
from smallnets.bench.rows import Row
from smallnets.bench.timing import Settings, alternate, compare, timed
from smallnets.layers import QuaternionConv2d
from smallnets.models import make
from smallnets.surgery import fold, to_quaternion

# Images in a batch -> how many times the real layer's step the quaternion one's may take.
STEP_LIMITS = {128: 1.03, 32: 1.10}
# Folded, both networks are the same layers: what is over 1 is the noise of the clock.
FOLDED_LIMIT = 1.02
# Channels and side of the maps: those of ResNet-18's first and third stage.
LAYERS = ((64, 32), (256, 8))
# Of its last stage: the most weights for the fewest pixels, where the assembly shows most. It has no bar.
DEEPEST = (512, 4)


def measure(settings: Settings) -> list[Row]:
    """Seconds of a layer's step, and of a network's logits."""
    rows = []
    for channels, side in LAYERS:
        for batch, limit in STEP_LIMITS.items():
            rows.append(_layer(settings, channels, side, batch).with_bar("<=", limit))
    rows += [_layer(settings, *DEEPEST, batch) for batch in STEP_LIMITS]
    return rows + _inference(settings)


def _layer(settings: Settings, channels: int, side: int, batch: int) -> Row:
    """Forward, backward (to the input too) and a step of SGD of one 3x3 convolution."""
    shape = (2 if settings.quick else batch, channels, side, side)
    images = torch.randn(shape, device=settings.device, requires_grad=True)
    flow = torch.randn(shape, device=settings.device)
    gpu = settings.device.type == "cuda"
    works = {
        "quaternion": _step(QuaternionConv2d(channels, channels, 3, padding=1, bias=False), images, flow),
        "real": _step(nn.Conv2d(channels, channels, 3, padding=1, bias=False), images, flow),
    }
    for work in works.values():
        work()  # makes the momentum, and lets the library choose its algorithm
    sides = {name: timed(work, settings.device, 50 if gpu else 1) for name, work in works.items()}
    seconds = alternate(sides, settings.rounds(21))
    name = f"{channels} channels at {side} x {side}, batch {batch}"
    return compare(name, seconds, "quaternion", "real", "a training step of a 3x3 convolution")


def _step(layer: nn.Module, images: torch.Tensor, flow: torch.Tensor) -> Callable[[], None]:
    layer = layer.to(images.device)
    optimizer = SGD(layer.parameters(), lr=1e-6, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        images.grad = None
        layer(images).backward(flow)
        optimizer.step()

    return step


def _inference(settings: Settings) -> list[Row]:
    """ResNet-20's logits: assembled in every forward, and folded."""

    def make_real() -> nn.Module:
        return make("resnet20", in_channels=4, blocks=[1, 1, 1] if settings.quick else [3, 3, 3])

    real = fresh(make_real).to(settings.device).eval()
    quaternion = fresh(lambda: to_quaternion(make_real())).to(settings.device).eval()
    nets = {
        "quaternion": quaternion,
        "real": real,
        "quaternion, folded": fold(quaternion),
        "real, folded": fold(real),
    }
    size, times = (2, 1) if settings.quick else (32, 50 if settings.device.type == "cuda" else 2)
    images = torch.randn(size, 4, 32, 32, device=settings.device)
    with torch.no_grad():
        for net in nets.values():
            net(images)
        sides = {name: timed(lambda net=net: net(images), settings.device, times) for name, net in nets.items()}  # type: ignore[misc]
        seconds = alternate(sides, settings.rounds(15))
    note = f"logits of {size} images by ResNet-20"
    return [
        compare("inference", seconds, "quaternion", "real", note),
        compare("inference, folded", seconds, "quaternion, folded", "real, folded", note).with_bar("<=", FOLDED_LIMIT),
    ]
