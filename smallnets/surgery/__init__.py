"""Changing the structure of a network that exists."""

from smallnets.surgery.fake_quantize import FakeQuantized
from smallnets.surgery.fold import fold
from smallnets.surgery.gray import WithGray
from smallnets.surgery.quaternion import Quaternion, to_quaternion
from smallnets.surgery.removal import remove_stage
from smallnets.surgery.widths import fit_widths

__all__ = ["FakeQuantized", "Quaternion", "WithGray", "fit_widths", "fold", "remove_stage", "to_quaternion"]
