"""Optimizers, their parameter groups, schedules, and what can be said of a learning rate before a run."""

from smallnets.optim.adabound import AdaBound
from smallnets.optim.foreach import in_foreach_form
from smallnets.optim.param_groups import param_groups
from smallnets.optim.plan import Length, plan_findings
from smallnets.optim.reference import rate_far_from_reference
from smallnets.optim.schedules import LinearWarmup, planned_rates, with_warmup

__all__ = [
    "AdaBound",
    "Length",
    "LinearWarmup",
    "in_foreach_form",
    "param_groups",
    "plan_findings",
    "planned_rates",
    "rate_far_from_reference",
    "with_warmup",
]
