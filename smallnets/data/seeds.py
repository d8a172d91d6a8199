"""Random numbers as pure functions of integers: the same on every machine and under every library version.

The mixing function is the output function of SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number
generators"), a bijection of the 64-bit integers.
"""

import os

import numpy as np
from numpy.typing import NDArray

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB

# Constants of the streams of this package: the order and the augmentation of one place share a seed, and no draw.
STREAM_ORDER = 3
STREAM_AUGMENT = 4


def _splitmix(state: int) -> int:
    """The output of SplitMix64 in `state`, an integer modulo 2**64."""
    value = (state + _GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * _FIRST) & _MASK
    value = ((value ^ (value >> 27)) * _SECOND) & _MASK
    return value ^ (value >> 31)


def mix(seed: int, *values: int) -> int:
    """A seed of 63 bits, in [0, 2**63), that depends on `seed` and on every value and its position.

    Negative integers count modulo 2**64.
    """
    state = _splitmix(seed & _MASK)
    for value in values:
        state = _splitmix(state ^ (value & _MASK))
    return state >> 1


def hashes(seed: int, count: int) -> NDArray[np.uint64]:
    """`count` distinct pseudo-random 64-bit integers; the i-th is a function of `seed` and i alone."""
    start = np.uint64(_splitmix(seed & _MASK))
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is meant
        value = start + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(_FIRST)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(_SECOND)
        return value ^ (value >> np.uint64(31))


def permutation(seed: int, count: int) -> NDArray[np.int64]:
    """A permutation of 0 .. count - 1 that is a function of its two arguments alone."""
    return np.argsort(hashes(seed, count), kind="stable")


def global_seed() -> int:
    """The seed of the run, as Lightning's `seed_everything` left it in the environment; 0 where none was set."""
    return int(os.environ.get("PL_GLOBAL_SEED") or 0)
