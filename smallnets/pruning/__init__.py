"""Pruning as functions over plain networks, for anybody's training loop."""

from smallnets.pruning.structured import prune_layers

__all__ = ["prune_layers"]
