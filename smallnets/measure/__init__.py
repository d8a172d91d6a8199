"""Measures of a network: exact counts, stored bytes, budgets."""

from smallnets.measure.budget import Budget, BudgetExceeded
from smallnets.measure.count import Counts, LayerCount, count
from smallnets.measure.size import stored_bytes

__all__ = ["Budget", "BudgetExceeded", "Counts", "LayerCount", "count", "stored_bytes"]
