"""Random choices that the host has to know, drawn without waiting for the device.

Augmentation draws from a generator on the images' device. Numbers that only enter arithmetic (is this image mirrored?)
are drawn there and never leave it. A choice that decides *which kernels run on how many images* has to be known on the
host, and reading it back would stop the host until the device has caught up, in every step. So such choices are drawn
from a generator on the host that is a function of the state of the one on the device, which the host knows anyway.
"""

import hashlib

import torch
from torch import Generator, Tensor


def host_generator(generator: Generator) -> Generator:
    """A generator on the CPU whose draws are a function of the state of `generator`, which moves on.

    A generator on the CPU is its own: it is returned, and moves on with each draw. That of a device is a seed and the
    number of draws so far, both kept by the host: a digest of the two seeds a new generator on the CPU, and one number
    is drawn on the device, so that whoever asks next, in the same chain of augmentations or in another call, finds
    another state and gets other draws. Nothing waits for the device.
    """
    if generator.device.type == "cpu":
        return generator
    digest = hashlib.blake2b(generator.get_state().numpy().tobytes(), digest_size=8).digest()
    torch.rand(1, device=generator.device, generator=generator)
    return Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """`values`, from the CPU, on `device`; to a GPU by way of pinned memory, whose copies nobody waits for."""
    if device.type == "cuda":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)
