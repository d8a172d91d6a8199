"""AutoAugment, RandAugment and TrivialAugment on whole batches, each image with its own operations and magnitudes.

Which operation an image gets decides how many images each kernel works on, so it is drawn on the host (see `draws`),
together with magnitudes and signs, and nothing waits for the device: for each step of a policy a batch is sorted by
operation, each operation is done at once for all images that drew it, and the batch is put back in order. The numbers
(tables, probabilities, magnitudes) are torchvision's, nearest pixels and black outside its defaults, and the images
those that torchvision makes of single tensors with the same draws.
"""

import torch
from torch import Generator, Tensor

from smallnets.data.batched import Transform, check_choice, check_count
from smallnets.data.colour import BLENDS, TABLES, look_up
from smallnets.data.draws import host_generator, to_device
from smallnets.data.geometry import MATRICES, affine
from smallnets.data.policy_tables import (
    AUTO,
    AUTOAUGMENT,
    IDENTITY,
    OPERATIONS,
    RAND,
    WIDE,
    Policy,
    autoaugment_policy,
    signs,
)
from smallnets.errors import UserError

# What RandAugment and TrivialAugment choose among: all but inverting.
_CHOICES = torch.tensor([i for i, name in enumerate(OPERATIONS) if name != "Invert"])


def autoaugment(policy: str = "cifar10") -> Transform:
    """AutoAugment (Cubuk et al. 2019) with the policy found on `cifar10`, `imagenet` or `svhn`."""
    check_choice("autoaugment.policy", policy, tuple(AUTOAUGMENT))
    numbers = autoaugment_policy(policy)

    def apply(images: Tensor, generator: Generator) -> Tensor:
        return _steps(images, *draw_autoaugment(numbers, *_sizes(images), host_generator(generator)))

    return apply


def randaugment(num_ops: int = 2, magnitude: int = 9) -> Transform:
    """RandAugment (Cubuk et al. 2020): `num_ops` operations at `magnitude`, in 0 .. 30."""
    check_count("randaugment.num_ops", num_ops, least=1)
    check_count("randaugment.magnitude", magnitude, least=0)
    if magnitude > 30:
        raise UserError(f"randaugment.magnitude is in 0 .. 30, not {magnitude}")

    def apply(images: Tensor, generator: Generator) -> Tensor:
        return _steps(images, *draw_randaugment(num_ops, magnitude, *_sizes(images), host_generator(generator)))

    return apply


def trivialaugment() -> Transform:
    """TrivialAugment, wide (Mueller & Hutter 2021): one operation at a random magnitude."""

    def apply(images: Tensor, generator: Generator) -> Tensor:
        return _steps(images, *draw_trivialaugment(*_sizes(images), host_generator(generator)))

    return apply


Draws = tuple[Tensor, Tensor]
"""Operations, as indices into OPERATIONS, int64, and their magnitudes, float32, both (steps, images) on the CPU."""


def draw_autoaugment(policy: Policy, count: int, height: int, width: int, generator: Generator) -> Draws:
    """For each image a sub-policy, uniform; each of its two steps is done with its own probability."""
    chosen = torch.randint(len(policy.operations), (count,), generator=generator)
    chance, sign = torch.rand(2, 2, count, generator=generator)
    operations, chances, bins = (table[chosen].T for table in policy)
    operations = torch.where(chance < chances, operations, IDENTITY)
    return operations, AUTO.at(height, width)[operations, bins] * signs(operations, sign)


def draw_randaugment(num_ops: int, magnitude: int, count: int, height: int, width: int, generator: Generator) -> Draws:
    """For each image `num_ops` operations, uniform and independent, all in the bin `magnitude`."""
    operations = _CHOICES[torch.randint(len(_CHOICES), (num_ops, count), generator=generator)]
    sign = torch.rand(num_ops, count, generator=generator)
    return operations, RAND.at(height, width)[operations, magnitude] * signs(operations, sign)


def draw_trivialaugment(count: int, height: int, width: int, generator: Generator) -> Draws:
    """For each image one operation and one bin, uniform and independent."""
    operations = _CHOICES[torch.randint(len(_CHOICES), (1, count), generator=generator)]
    bins = torch.randint(WIDE.bins, (1, count), generator=generator)
    sign = torch.rand(1, count, generator=generator)
    return operations, WIDE.at(height, width)[operations, bins] * signs(operations, sign)


def operate(images: Tensor, operations: Tensor, amounts: Tensor) -> Tensor:
    """Images (B, C, H, W) with one operation done to each.

    Args:
        images: uint8, of 1 or 3 channels, on any device.
        operations: indices into OPERATIONS, int64 (B,) on the CPU.
        amounts: their magnitudes, float32 (B,) on the CPU, as `Space.at` has them.
    """
    _, channels, height, width = images.shape
    order = operations.argsort(stable=True)
    ends = operations.bincount(minlength=len(OPERATIONS)).cumsum(0).tolist()
    spans = {n: slice(a, b) for n, a, b in zip(OPERATIONS, [0, *ends], ends, strict=False) if a < b}
    if set(spans) <= {"Identity"}:
        return images
    amounts = amounts[order]
    on_device, places = to_device(amounts, images.device), to_device(order, images.device)
    done = images.index_select(0, places)

    moved = {name: spans[name] for name in MATRICES if name in spans}
    if moved:
        whole = _whole(moved)
        matrices = torch.cat([MATRICES[name](amounts[span].double(), height, width) for name, span in moved.items()])
        done[whole] = affine(done[whole], matrices)
    looked_up = {name: spans[name] for name in TABLES if name in spans}
    if looked_up:
        whole = _whole(looked_up)
        tables = [TABLES[name](done[span], on_device[span]) for name, span in looked_up.items()]
        done[whole] = look_up(done[whole], torch.cat([table.expand(-1, channels, -1) for table in tables]))
    for name, blend in BLENDS.items():
        if name in spans:
            done[spans[name]] = blend(done[spans[name]], on_device[spans[name]])
    # Where each image went: the inverse of the order. Selecting copies whole images; writing them by index is slower.
    return done.index_select(0, to_device(order.argsort(), images.device))


def _whole(spans: dict[str, slice]) -> slice:
    """The images of operations that follow one another."""
    slices = list(spans.values())
    return slice(slices[0].start, slices[-1].stop)


def _sizes(images: Tensor) -> tuple[int, int, int]:
    """(B, H, W), where the operations on values know what to do with the channels."""
    count, channels, height, width = images.shape
    if channels not in (1, 3):
        raise UserError(f"autoaugment, randaugment and trivialaugment take images of 1 or 3 channels, not {channels}")
    return count, height, width


def _steps(images: Tensor, operations: Tensor, amounts: Tensor) -> Tensor:
    for chosen, magnitudes in zip(operations, amounts, strict=True):
        images = operate(images, chosen, magnitudes)
    return images
