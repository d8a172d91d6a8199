"""What can be seen from outside of a run that has gone wrong: pure functions over a network and its figures."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from smallnets.errors import RunError

# In units of the data's own deviation, which is what the network sees. Rounding published statistics to two decimals
# moves them by up to 0.02 of it; CIFAR-10's on CIFAR-100 are off by 0.08, the often copied deviations by 0.2.
STATISTICS_TOLERANCE = 0.03
_CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
_PUBLISHED: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "CIFAR-10's": (_CIFAR10_MEAN, (0.2470, 0.2435, 0.2616)),
    "CIFAR-10's mean with the often copied std (0.2023, 0.1994, 0.2010)": (_CIFAR10_MEAN, (0.2023, 0.1994, 0.2010)),
    "CIFAR-100's": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "ImageNet's": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "MNIST's": ((0.1307,), (0.3081,)),
}


@dataclass(frozen=True)
class Probe:
    """What one forward of one zero image shows.

    Attributes:
        logits: number of logits.
        unused: names of modules with parameters of their own, or Dropout, that the forward does not use.
        head: name of the last layer called whose weights have one row a logit; empty when there is none.
        row_parameters: parameters of one such row, bias included.
    """

    logits: int
    unused: list[str] = field(default_factory=list)
    head: str = ""
    row_parameters: int = 0


def probe(net: nn.Module, in_channels: int, image_size: int) -> Probe:
    """Run a deep copy of `net`, in eval mode, on one zero image (1, in_channels, image_size, image_size).

    `net` itself, its hooks, its modes, its gradients and the random generators stay as they are. A module whose
    `forward` is not called counts as used when one of its parameters takes part in the logits (attention reads its
    projections that way).

    Raises:
        RunError: the network does not take such an image, or its output is not (1, logits).
    """
    net = copy.deepcopy(getattr(net, "_orig_mod", net)).eval()
    parameters = {id(p): p.requires_grad_(True) for p in net.parameters() if p.is_floating_point()}
    like = next(iter(parameters.values()), torch.zeros(()))
    called: dict[str, nn.Module] = {}
    for name, module in net.named_modules():
        module.register_forward_pre_hook(_noting(called, name))
    image = torch.zeros(1, in_channels, image_size, image_size, dtype=like.dtype, device=like.device)
    devices = [like.device] if like.device.type == "cuda" else []
    shape = f"{in_channels}x{image_size}x{image_size}"
    with torch.random.fork_rng(devices), torch.enable_grad():
        try:
            logits = net(image)
        except (RuntimeError, ValueError, AssertionError) as error:
            first = str(error).strip().split("\n")[0]
            raise RunError(f"{type(net).__name__} does not take images of {shape}: {first}") from error
        if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[0] != 1:
            came = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise RunError(f"{type(net).__name__} must give logits (1, classes) for one image of {shape}, got {came}")
        taking_part: set[int] = set()
        if logits.requires_grad:
            gradients = torch.autograd.grad(logits.sum(), list(parameters.values()), allow_unused=True)
            taking_part = {i for i, gradient in zip(parameters, gradients, strict=True) if gradient is not None}
    unused = []
    for name, module in net.named_modules():
        own = [id(p) for p in module.parameters(recurse=False)]
        if (own or isinstance(module, _DropoutNd)) and name not in called and not taking_part.intersection(own):
            unused.append(name)
    width = logits.shape[1]
    for name, module in reversed(called.items()):
        rows = [p for p in module.parameters(recurse=False) if p.dim() and p.shape[0] == width]
        if any(p.dim() > 1 for p in rows):
            return Probe(width, unused, name, sum(p.numel() for p in rows) // width)
    return Probe(width, unused)


def _noting(called: dict[str, nn.Module], name: str) -> Callable[[nn.Module, Any], None]:
    def hook(module: nn.Module, _: Any) -> None:
        called.pop(name, None)  # the order is that of the last calls
        called[name] = module

    return hook


def superfluous_head(found: Probe, num_classes: int) -> str | None:
    """A sentence when there are more logits than classes; None when they agree.

    Raises:
        RunError: fewer logits than classes.
    """
    if found.logits < num_classes:
        raise RunError(f"the network gives {found.logits} logits for {num_classes} classes: the head is too narrow")
    if found.logits == num_classes:
        return None
    extra = (found.logits - num_classes) * found.row_parameters
    where = f" of {found.head!r}" if found.head else ""
    return f"the network gives {found.logits} logits for {num_classes} classes: {extra:,} parameters{where} do nothing"


def strange_statistics(
    mean: Sequence[float], std: Sequence[float], true_mean: Sequence[float], true_std: Sequence[float]
) -> str | None:
    """A sentence when images are normalised with figures that are not their own; else None.

    With m, s in use and the training split's own M, S (per channel, pixels in 0..1), the normalised images have mean
    (M - m) / s and deviation S / s; they should be 0 and 1, and more than 0.03 away is reported. Well-known figures
    of another data set are named.
    """
    if len(mean) != len(true_mean) or len(std) != len(true_std):
        return f"images of {len(true_mean)} channels are normalised with figures for {len(mean)} channels"
    offsets = [(t - m) / s if s else math.inf for m, s, t in zip(mean, std, true_mean, strict=True)]
    scales = [t / s if s else math.inf for s, t in zip(std, true_std, strict=True)]
    worst = max([*map(abs, offsets), *(abs(scale - 1) for scale in scales)])
    if worst <= STATISTICS_TOLERANCE:
        return None
    named = ""
    for name, (known_mean, known_std) in _PUBLISHED.items():
        if _same(mean, known_mean) and _same(std, known_std):
            named = f" ({name})"
    return (
        f"images are normalised with mean {_rounded(mean)}, std {_rounded(std)}{named}; the training split has mean"
        f" {_rounded(true_mean)}, std {_rounded(true_std)}: normalised, mean {_rounded(offsets)}"
        f" and std {_rounded(scales)} instead of 0 and 1"
    )


def _same(a: Sequence[float], b: Sequence[float]) -> bool:
    return len(a) == len(b) and all(abs(x - y) < 1e-3 for x, y in zip(a, b, strict=True))


def _rounded(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{v:.4f}" for v in values) + ")"


def chance_limit(num_classes: int, images: int) -> float:
    """p + 5 sqrt(p (1 - p) / images) with p = 1/C: the accuracy of guessing and 5 binomial standard deviations."""
    p = 1 / num_classes
    return p + 5 * math.sqrt(p * (1 - p) / max(images, 1))


def chance_findings(
    num_classes: int, train_loss: float | None, accuracy: float | None, predicted: Sequence[int] | None, images: int
) -> list[tuple[str, str]]:
    """Signs that a network has learned nothing, as (kind, sentence) pairs.

    Args:
        num_classes: C.
        train_loss: mean cross-entropy of the last epoch, in nats; reported from ln C on (`loss_at_chance`).
        accuracy: share of the validation images that are right; reported up to `chance_limit` (`accuracy_at_chance`).
        predicted: how often each class was predicted in the last validation; reported when it is one class alone
            (`one_class_predicted`).
        images: how many images the validation has.

    With one class nothing can be said. What is None is not judged.
    """
    found: list[tuple[str, str]] = []
    if num_classes < 2:
        return found
    limit = chance_limit(num_classes, images) if images else 1.0
    # A handful of images cannot tell chance from skill: a limit of 1 or more would condemn every network.
    if accuracy is not None and accuracy <= limit < 1:
        found.append(
            (
                "accuracy_at_chance",
                f"validation accuracy {accuracy:.4f} is at chance: up to {limit:.4f} is within 5 standard deviations"
                f" of 1/{num_classes} on {images} images",
            )
        )
    if predicted is not None and sum(1 for n in predicted if n) == 1:
        only = next(i for i, n in enumerate(predicted) if n)
        found.append(("one_class_predicted", f"every validation image is predicted to be class {only}"))
    if train_loss is not None and train_loss >= math.log(num_classes):
        found.append(
            (
                "loss_at_chance",
                f"training loss {train_loss:.4f} is not below ln {num_classes} = {math.log(num_classes):.4f}, chance",
            )
        )
    return found


def dead_layers(net: nn.Module) -> list[str]:
    """Names of the layers all of whose weights (own parameters of two or more dimensions) are exactly 0.0."""
    layers = {
        name: [p for p in module.parameters(recurse=False) if p.dim() >= 2 and p.numel()]
        for name, module in net.named_modules()
    }
    layers = {name: weights for name, weights in layers.items() if weights}
    if not layers:
        return []
    # One transfer for the whole network.
    alive = torch.stack([torch.stack([w.detach().any() for w in own]).any() for own in layers.values()]).tolist()
    return [name for name, lives in zip(layers, alive, strict=True) if not lives]


def first_non_finite(net: nn.Module) -> str | None:
    """Name of the first parameter, or else buffer, that holds a NaN or an infinity; None when all are finite."""
    tensors = {n: t for n, t in [*net.named_parameters(), *net.named_buffers()] if t.is_floating_point()}
    if not tensors:
        return None
    finite = torch.stack([t.detach().isfinite().all() for t in tensors.values()]).tolist()
    return next((name for name, ok in zip(tensors, finite, strict=True) if not ok), None)
