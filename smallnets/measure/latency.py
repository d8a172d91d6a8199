"""How long calls take: by turns, with the median and the slow end."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch


@dataclass(frozen=True)
class Latency:
    """Seconds of one call over some rounds: the median, and the 95th percentile (the nearest rank)."""

    median: float
    p95: float
    rounds: int


def latency_of(seconds: Sequence[float]) -> Latency:
    """The figures of measured seconds, one value a call; of 1 .. 100 the median is 50.5 and the 95th percentile 95."""
    ordered = sorted(seconds)
    half = len(ordered) // 2
    median = ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
    return Latency(median, ordered[-(-95 * len(ordered) // 100) - 1], len(ordered))


def alternate(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """The seconds that each side returns, round by round: A B, B A, A B, ..., so that a drift meets both alike."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides) if number % 2 == 0 else reversed(list(sides)):
            seconds[name].append(sides[name]())
    return seconds


def latencies(sides: Mapping[str, Callable[[], Any]], rounds: int = 50, warmup: int = 5) -> dict[str, list[float]]:
    """Seconds of each call of each side on the CPU, measured by turns after `warmup` calls of each."""

    def timed(call: Callable[[], Any]) -> Callable[[], float]:
        def measure() -> float:
            start = perf_counter()
            call()
            return perf_counter() - start

        return measure

    for call in sides.values():
        for _ in range(warmup):
            call()
    return alternate({name: timed(call) for name, call in sides.items()}, rounds)


def all_threads() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """torch on so many threads, and afterwards on as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
