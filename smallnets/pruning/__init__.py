"""Pruning as functions over plain networks, for anybody's training loop."""

from smallnets.pruning.channels import prune_channels
from smallnets.pruning.masks import Masks
from smallnets.pruning.named import next_masks
from smallnets.pruning.narrow import fresh_like, narrow
from smallnets.pruning.select import next_kept, select
from smallnets.pruning.shrink import shrink
from smallnets.pruning.structured import prune_layers
from smallnets.pruning.to_budget import prune_to
from smallnets.pruning.widest import Narrow

__all__ = [
    "Masks",
    "Narrow",
    "fresh_like",
    "narrow",
    "next_kept",
    "next_masks",
    "prune_channels",
    "prune_layers",
    "prune_to",
    "select",
    "shrink",
]
