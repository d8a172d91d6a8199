"""Timing by turns."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from smallnets.bench.rows import Row
from smallnets.measure.latency import alternate as alternate


@dataclass(frozen=True)
class Settings:
    """How a part is measured.

    Attributes:
        device: where networks and batches are.
        threads: of torch on the CPU, in this process and in those that are started.
        repeats: rounds; None for each part's own number.
        quick: small sizes and few rounds: it runs, and its figures mean little.
    """

    device: torch.device
    threads: int = 1
    repeats: int | None = None
    quick: bool = False

    def rounds(self, usual: int) -> int:
        """How often each side is timed, where `usual` is the part's own number."""
        return self.repeats or (2 if self.quick else usual)


def clock(device: torch.device) -> float:
    """Seconds, once the device has done all that it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def timed(work: Callable[[], Any], device: torch.device, times: int = 1) -> Callable[[], float]:
    """A function that calls `work` `times` times and returns the seconds that one call took."""

    def measure() -> float:
        start = clock(device)
        for _ in range(times):
            work()
        return (clock(device) - start) / times

    return measure


def compare(name: str, seconds: Mapping[str, Sequence[float]], a: str, b: str, note: str) -> Row:
    """The row of two sides of `alternate`'s."""
    ratios = np.divide(seconds[a], seconds[b])
    low, middle, high = (float(q) for q in np.quantile(ratios, [0.25, 0.5, 0.75]))
    medians = [float(np.median(seconds[side])) for side in (a, b)]
    return Row(name, a, b, medians[0], medians[1], middle, low, high, len(ratios), note)
