"""Augmentations that torchvision applies to one image at a time: AutoAugment and its kin, and perspective.

Each is a builder of the same form as those of `batched`, so that one that works on batches can take its place.
"""

import torch
from torch import Generator, Tensor, nn
from torchvision.transforms import v2

from smallnets.data.batched import Transform, check_choice, check_count, check_share
from smallnets.errors import UserError

_POLICIES = {
    "cifar10": v2.AutoAugmentPolicy.CIFAR10,
    "imagenet": v2.AutoAugmentPolicy.IMAGENET,
    "svhn": v2.AutoAugmentPolicy.SVHN,
}


def autoaugment(policy: str = "cifar10") -> Transform:
    """AutoAugment (Cubuk et al. 2019) with the policy found on `cifar10`, `imagenet` or `svhn`."""
    check_choice("autoaugment.policy", policy, tuple(_POLICIES))
    return _each(v2.AutoAugment(_POLICIES[policy]))


def randaugment(num_ops: int = 2, magnitude: int = 9) -> Transform:
    """RandAugment (Cubuk et al. 2020): `num_ops` operations at `magnitude`, in 0 .. 30."""
    check_count("randaugment.num_ops", num_ops, least=1)
    check_count("randaugment.magnitude", magnitude, least=0)
    if magnitude > 30:
        raise UserError(f"randaugment.magnitude is in 0 .. 30, not {magnitude}")
    return _each(v2.RandAugment(num_ops, magnitude))


def trivialaugment() -> Transform:
    """TrivialAugment, wide (Mueller & Hutter 2021): one operation at a random magnitude."""
    return _each(v2.TrivialAugmentWide())


def perspective(distortion: float = 0.5, p: float = 0.5) -> Transform:
    """With probability `p`, moves the corners inwards by up to `distortion` of half the image; black outside.

    Document 002 uses distortion 0.6 with p 0.5, after AutoAugment, crop and flip.
    """
    check_share("perspective.distortion", distortion)
    check_share("perspective.p", p)
    return _each(v2.RandomPerspective(distortion, p))


def _each(transform: nn.Module) -> Transform:
    """Applies `transform` to each image by itself, with the generator as its only source of randomness."""

    def apply(images: Tensor, generator: Generator) -> Tensor:
        seed = int(torch.randint(2**62, (1,), device=images.device, generator=generator))
        # torchvision draws on the CPU's global generator, and gets it back as it was. Only that one is seeded:
        # torch.manual_seed would seed the devices' generators as well, and with them what dropout draws.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return torch.stack([transform(image) for image in images])

    return apply
