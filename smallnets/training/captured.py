"""Forward and backward of a training step as one CUDA graph."""

from typing import Any

import torch
from torch import Tensor

_WARM_UP = 3


class CapturedStep:
    """Replays `loss_of` and its backward pass for batches of one shape, with one launch instead of some hundred.

    The gradients are the graph's own tensors, written anew by every replay; the optimizer reads them from `.grad` as
    ever. Weights may change in place between replays (steps, masks, rewinding). The warm-up passes leave running
    statistics, sums and gradients as they were.

    Args:
        module: gives `net`, `train_sums` and `loss_of(images, labels, targets)`, which adds to the sums.
        optimizer: its gradients are dropped before the capture.
        images, labels, targets: a batch, which is not trained on here.
    """

    def __init__(self, module: Any, optimizer: Any, images: Tensor, labels: Tensor, targets: Tensor) -> None:
        self._net = module.net
        self._inputs = [each.clone() for each in (images, labels, targets)]
        self._sums = module.train_sums
        kept = [each.clone() for each in (*self._net.buffers(), *self._sums.tensors())]
        optimizer.zero_grad(set_to_none=True)
        # Under mixed precision Lightning keeps no casts of weights, so these are made anew in every replay.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                module.loss_of(*self._inputs).backward()
        torch.cuda.current_stream().wait_stream(side)
        # Gradients that are None when the capture begins are allocated in it, and replays overwrite them.
        optimizer.zero_grad(set_to_none=True)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            module.loss_of(*self._inputs).backward()
        # What was drawn meanwhile is drawn anew: the caller seeds the generator again.
        for each, value in zip((*self._net.buffers(), *self._sums.tensors()), kept, strict=True):
            each.copy_(value)
        self._tensors = self._living()
        self._grads = [parameter.grad for parameter in self._net.parameters()]

    def fits(self, images: Tensor, targets: Tensor) -> bool:
        """Whether a batch has the shapes of the capture."""
        return images.shape == self._inputs[0].shape and targets.shape == self._inputs[2].shape

    def valid(self) -> bool:
        """Whether the network's tensors are those that the graph reads and writes."""
        return self._living() == self._tensors

    def replay(self, images: Tensor, labels: Tensor, targets: Tensor) -> None:
        """Forward and backward of one batch."""
        for mine, given in zip(self._inputs, (images, labels, targets), strict=True):
            mine.copy_(given, non_blocking=True)
        for parameter, grad in zip(self._net.parameters(), self._grads, strict=True):
            parameter.grad = grad  # a batch of another shape, or zero_grad, has left others there
        self._graph.replay()

    def _living(self) -> list[int]:
        return [each.data_ptr() for each in (*self._net.parameters(), *self._net.buffers(), *self._sums.tensors())]
