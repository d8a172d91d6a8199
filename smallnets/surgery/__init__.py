"""Changing the structure of a network that exists."""

from smallnets.surgery.widths import fit_widths

__all__ = ["fit_widths"]
