"""A search's trials as tables show them, and what a search must know of `fit` to make them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from smallnets.studies.cells import short_names

if TYPE_CHECKING:
    from smallnets.measure import Counts

Report = Callable[[int, float], bool]


class Fit(Protocol):
    """What a search must know of `fit`."""

    def settings(self, arguments: list[str]) -> dict[str, Any]:
        """The settings of these arguments. Raises UserError for a wrong one."""

    def counts(self, arguments: list[str]) -> "Counts":
        """Of the network of these arguments."""

    def train(self, arguments: list[str], report: Report) -> None:
        """Runs `fit`; tells `report` (epoch, validation accuracy) after each epoch, and stops if it answers True."""


@dataclass(frozen=True)
class Ended:
    """A trial as tables show it: `state` is done, pruned, over budget, diverged, failed or running.

    `options` are all options that were set, `chosen` what was drawn of each dimension.
    """

    number: int
    state: str
    values: dict[str, float] | None
    options: dict[str, Any]
    chosen: dict[str, Any]
    error: str | None
    folder: Path


def line_of(trial: Ended) -> str:
    """A trial in one line: number, state, figures, what was chosen, error."""
    figures = "  ".join(f"{name} {value:.6g}" for name, value in (trial.values or {}).items())
    short = short_names(list(trial.chosen))
    chosen = " ".join(
        f"{short[k]}={v:.4g}" if isinstance(v, float) else f"{short[k]}={v}" for k, v in trial.chosen.items()
    )
    return "  ".join(part for part in (f"trial {trial.number}", trial.state, figures, chosen, trial.error) if part)
