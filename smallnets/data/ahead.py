"""Batches that a thread reads while the step before them is computed."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

DEPTH = 2


def read_ahead(read: Callable[[int], T], numbers: Sequence[int], depth: int = DEPTH) -> Iterator[T]:
    """`read(n)` for each of `numbers` in their order; one thread has read up to `depth` of them in advance.

    What `read` raises is raised when its turn comes. An iterator that is given up waits for the one read under way.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="smallnets-read-ahead") as pool:
        try:
            waiting: deque[Future[T]] = deque(pool.submit(read, number) for number in numbers[:depth])
            for place in range(len(numbers)):
                done = waiting.popleft().result()
                if place + depth < len(numbers):
                    waiting.append(pool.submit(read, numbers[place + depth]))
                yield done
        finally:
            pool.shutdown(cancel_futures=True)


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """In memory that a GPU copies from by itself, if `device` is one."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """On `device`, without waiting for a copy out of pinned memory."""
    return tensor.to(device, non_blocking=True)
