"""Changing the structure of a network that exists."""

from smallnets.surgery.removal import remove_stage
from smallnets.surgery.widths import fit_widths

__all__ = ["fit_widths", "remove_stage"]
