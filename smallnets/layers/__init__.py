"""The parts that networks are built from: residual blocks, initialisation and checks of constructor arguments."""

from smallnets.layers.blocks import BasicBlock, Bottleneck, PadShortcut, PreActBlock
from smallnets.layers.init import init_convs

__all__ = ["BasicBlock", "Bottleneck", "PadShortcut", "PreActBlock", "init_convs"]
