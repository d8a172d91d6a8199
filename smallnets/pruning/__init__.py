"""Pruning as functions over plain networks, for anybody's training loop."""

from smallnets.pruning.masks import Masks
from smallnets.pruning.select import next_kept, select
from smallnets.pruning.structured import prune_layers

__all__ = ["Masks", "next_kept", "prune_layers", "select"]
