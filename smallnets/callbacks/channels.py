"""What `ChannelPruning` is asked for, when, and what it did, as values."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from smallnets.callbacks.board import draw_layers
from smallnets.errors import UserError
from smallnets.layers.arguments import whole
from smallnets.measure import Budget, count
from smallnets.pruning.channel_plan import ChannelPlan
from smallnets.pruning.schedules import Time

_LIMITS = ("parameters", "nonzero_parameters", "macs", "bytes", "activation_bytes")
_COUNTS = ("parameters", "nonzero_parameters", "macs", "bytes")


def request_of(settings: dict[str, Any]) -> ChannelPlan | None:
    """The plan of a `ChannelPruning`; None for a control of the network as it comes."""
    limits = {name: settings[name] for name in _LIMITS if settings[name] is not None}
    asked = {name: settings[name] for name in ("ratios", "ratio") if settings[name] not in (None, {})}
    control = settings["control"]
    if control not in (None, "scratch", "narrow"):
        raise UserError(f"control must be scratch or narrow, got {control!r}")
    if isinstance(settings["exclude"], str):
        raise UserError(f"exclude takes a list of patterns, got the string {settings['exclude']!r}")
    whole("batches", settings["batches"])
    if not limits and not asked:
        if control is not None and settings["ratios"] is None:
            return None
        raise UserError(
            "ChannelPruning needs ratios (names or patterns of layers, each with a share to remove), a ratio, or a"
            f" budget ({', '.join(_LIMITS)})"
        )
    options = {name: settings[name] for name in ("criterion", "scope", "multiple", "floor", "rounds", "curve")}
    budget = Budget(**limits) if limits else None
    plan = ChannelPlan(**asked, budget=budget, exclude=tuple(settings["exclude"]), **options)
    if control is not None and plan.needs_data:
        raise UserError(
            "a control starts before there are training images for 'taylor': give the pruned network by"
            " --model.init_from, and no ratio or budget"
        )
    return plan


def round_times(at: str | None, rounds: int, start: str | None, every: str | None) -> list[Time]:
    """When the rounds happen, in the unit that was written."""
    whole("rounds", rounds)
    if rounds == 1:
        if start is not None or every is not None:
            raise UserError("start and every are for two rounds or more; a single one has `at`")
        return [Time.parse(at or "0ep")]
    if at is not None:
        raise UserError(f"`at` is for a single round; {rounds} rounds have start and every")
    if every is None:
        raise UserError(f"{rounds} rounds need `every`, such as 2ep")
    step = Time.parse(every)
    first = Time.parse(start) if start is not None else step
    if step.count == 0:
        raise UserError(f"every must be at least 1ep, got {every}")
    if first.unit != step.unit and first.count:
        raise UserError(f"start and every need one unit, got {start} and {every}")
    return [Time(first.count + number * step.count, step.unit) for number in range(rounds)]


def image_of(trainer: Any) -> dict[str, int]:
    """The form of an image; UserError without a data module that tells it."""
    data: Any = getattr(trainer, "datamodule", None)
    if not hasattr(data, "image_size") or not hasattr(data, "in_channels"):
        raise UserError("ChannelPruning needs a data module with image_size and in_channels to trace the network")
    return {"image_size": int(data.image_size), "in_channels": int(data.in_channels)}


@dataclass(frozen=True)
class Size:
    """`counts` of a network by name, and its `widths`: layer -> output channels (of convolutions, linear layers)."""

    counts: dict[str, int]
    widths: dict[str, int]


def size_of(net: nn.Module, image: dict[str, int]) -> Size:
    found = count(net, **image)
    layers = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    widths = {name or "net": len(each.weight) for name, each in net.named_modules() if isinstance(each, layers)}
    return Size({name: getattr(found, name) for name in _COUNTS}, widths)


class ChannelRecord:
    """Counts before and after every round, and the widths before the first and after each."""

    def __init__(self, plain: dict[str, Any] | None = None) -> None:
        self.rounds: list[dict[str, Any]] = [dict(each) for each in (plain or {}).get("rounds", [])]
        self.widths_before: dict[str, int] = dict((plain or {}).get("widths_before", {}))

    def add(self, step: int, before: Size, after: Size) -> dict[str, Any]:
        """The entry of the round that has just narrowed a network."""
        kept = sum(after.widths.values())
        entry = {
            "step": step, "before": before.counts, "after": after.counts, "widths": after.widths,
            "kept_channels": kept, "removed_channels": sum(before.widths.values()) - kept,
        }  # fmt: skip
        if not self.rounds:
            self.widths_before = before.widths
        self.rounds.append(entry)
        return entry

    def log(self, trainer: Any, step: int) -> None:
        last = self.rounds[-1]
        figures = {f"channels/{name}": value for name, value in last["after"].items()}
        figures |= {"channels/kept": last["kept_channels"], "channels/removed": last["removed_channels"]}
        figures |= {f"channels/{name}": width for name, width in last["widths"].items()}
        for logger in trainer.loggers:
            logger.log_metrics({**figures, "epoch": trainer.current_epoch}, step=step)
        whole = self.widths_before
        draw_layers(trainer, "channels", {k: (n, whole.get(k, n)) for k, n in last["widths"].items()}, step)

    def plain(self, settings: dict[str, Any]) -> dict[str, Any]:
        if not self.rounds:
            return {}
        first, last = self.rounds[0], self.rounds[-1]
        ends = {"before": first["before"], "after": last["after"]}
        widths = {"widths_before": self.widths_before, "widths": last["widths"]}
        return {**settings, **ends, "rounds": self.rounds, **widths}
