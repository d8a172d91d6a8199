"""Seeds of what a training step draws: functions of its place in the run, so that a resumed run draws the same."""

import torch

from smallnets.data.seeds import mix

# Constants of the streams drawn from one seed: each use of randomness has its own, so that switching one on
# leaves the others as they were.
STREAM_STEP, STREAM_MIX = 1, 2


def seed_step(device: torch.device, seed: int, epoch: int, batch: int, rank: int) -> None:
    """Seeds the global generators that a step on `device` draws from (dropout).

    `torch.manual_seed` would also queue the seed for every kind of device that is not there, with a stack trace for
    each: 0.4 ms, which is most of a small network's step.
    """
    value = mix(seed, STREAM_STEP, epoch, batch, rank)
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        torch.cuda.manual_seed(value)
    elif device.type == "mps":
        torch.mps.manual_seed(value)
