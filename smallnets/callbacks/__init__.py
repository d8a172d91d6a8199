"""Lightning callbacks: thin hooks onto functions that work in any training loop."""

from smallnets.callbacks.budget import ParameterBudget
from smallnets.callbacks.ema import EMA
from smallnets.callbacks.health import Health, HealthWarning
from smallnets.callbacks.look import TensorBoardLook
from smallnets.callbacks.look_test import TensorBoardTest
from smallnets.callbacks.lottery import LotteryTicket
from smallnets.callbacks.lottery_control import LotteryControl
from smallnets.callbacks.masks import PruningSchedule
from smallnets.callbacks.pruning import ChannelPruning
from smallnets.callbacks.qat import QuantAwareTraining

__all__ = [
    "EMA",
    "ChannelPruning",
    "Health",
    "HealthWarning",
    "LotteryControl",
    "LotteryTicket",
    "ParameterBudget",
    "PruningSchedule",
    "QuantAwareTraining",
    "TensorBoardLook",
    "TensorBoardTest",
]
