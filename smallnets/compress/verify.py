"""Whether a file computes what its network computes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from smallnets.compress.runtime import Exported
from smallnets.errors import RunError

# The relative error of logits that an export in a precision may have. Rounding alone gives some 1e-6 in fp32, 1e-3 in
# fp16, 1e-2 in bf16 and 1e-2 to 1e-1 in int8. A wrong padding of one layer or two swapped channels may give no more
# than 0.04: in fp32 and fp16 that shows, in int8 it does not. So the graph that int8 rounds is held against the network
# before (`export.to_file`), and what is left to the bounds of int8 is rounding that destroys.
TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2, "int8": 0.15}
# The least share of images whose class is the network's; the others' error leaves no room for another.
SAME_CLASS = {"fp32": 0.0, "fp16": 0.0, "bf16": 0.0, "int8": 0.85}


@dataclass(frozen=True)
class Agreement:
    """Logits of a file beside those of its network, over some images.

    Attributes:
        relative: ||file - net|| / ||net||, Euclidean, over all logits of all images.
        largest: the largest absolute difference of one logit.
        same_class: share of the images that both give the same class.
        images: how many.
    """

    relative: float
    largest: float
    same_class: float
    images: int

    def require(self, dtype: str, name: str) -> None:
        """RunError unless error and classes are within what `dtype` is allowed; NaN never is."""
        if not (self.relative <= TOLERANCE[dtype] and self.same_class >= SAME_CLASS[dtype]):
            least = f" (at least {SAME_CLASS[dtype]:.0%})" if SAME_CLASS[dtype] else ""
            raise RunError(
                f"{name} does not compute what the network computes: relative error of the logits {self.relative:.2g}"
                f" (allowed for {dtype}: {TOLERANCE[dtype]:g}), largest difference {self.largest:.2g}, same class for"
                f" {self.same_class:.1%} of {self.images} images{least}"
            )


@torch.no_grad()
def compare_logits(net: nn.Module, file: Callable[[Tensor], Tensor], images: Tensor) -> Agreement:
    """Logits of `net` (in eval mode, fp32) and of `file` for the same images (N, channels, rows, columns).

    The file is run on one image, on two and on the rest: a batch that was frozen into it shows. RunError when it
    fails at one of these.
    """
    expected = _logits(net, images)
    sizes = [1, 2, len(images) - 3] if len(images) > 3 else [1] * len(images)
    try:
        found = torch.cat([file(part) for part in images.split(sizes)])
    except Exception as error:  # each runtime has its own
        reason = (str(error).splitlines() or [""])[0]
        raise RunError(f"the exported file does not run on batches of {sizes}: {reason[:300]}") from error
    if found.shape != expected.shape:
        raise RunError(f"the exported file gives logits of {tuple(found.shape)}, the network {tuple(expected.shape)}")
    difference = (found - expected).double()
    return Agreement(
        relative=float(difference.norm() / expected.double().norm()),
        largest=float(difference.abs().max()),
        same_class=float((found.argmax(1) == expected.argmax(1)).double().mean()),
        images=len(images),
    )


@torch.no_grad()
def accuracy(net: nn.Module | Exported, images: Tensor, labels: Tensor, batch_size: int = 500) -> float:
    """Share of normalised images (N, channels, rows, columns) that `net`, or an exported file, gives its label."""
    run = (lambda part: _logits(net, part)) if isinstance(net, nn.Module) else net
    right = sum(
        int((run(part).argmax(1) == known).sum())
        for part, known in zip(images.split(batch_size), labels.split(batch_size), strict=True)
    )
    return right / len(images)


def _logits(net: nn.Module, images: Tensor) -> Tensor:
    was = net.training
    device = next((each.device for each in net.parameters()), images.device)
    try:
        return net.eval()(images.to(device)).float().cpu()
    finally:
        net.train(was)
