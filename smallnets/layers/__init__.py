"""The parts that networks are built from: residual blocks, initialisation and checks of constructor arguments."""

from smallnets.layers.blocks import BasicBlock, Bottleneck, PadShortcut, PreActBlock
from smallnets.layers.init import init_convs
from smallnets.layers.quaternion import QuaternionConv2d, QuaternionLinear
from smallnets.layers.quaternion_blocks import AppendGray
from smallnets.layers.quaternion_norm import QuaternionBatchNorm2d

__all__ = [
    "AppendGray",
    "BasicBlock",
    "Bottleneck",
    "PadShortcut",
    "PreActBlock",
    "QuaternionBatchNorm2d",
    "QuaternionConv2d",
    "QuaternionLinear",
    "init_convs",
]
