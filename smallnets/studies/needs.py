"""What a cell of a study needs: another cell's run of the same seed, made first, whose folder its options may name."""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any, TypeVar

from smallnets.errors import UserError

T = TypeVar("T")
# What stands for a run's folder in a value: a name in braces. JSON has quotes behind its braces.
_PLACE = re.compile(r"\{([\w.+=,-]+)\}")


def check_needs(needs: Mapping[str, Mapping[str, str]], left_out: str = "") -> None:
    """UserError unless every cell that is needed is there and none needs itself, however far around.

    Args:
        needs: cell's name -> name in braces -> the cell that it needs.
        left_out: why a cell may not be there.
    """
    for cell, wanted in needs.items():
        for name in wanted.values():
            if name not in needs:
                near = difflib.get_close_matches(name, needs, n=1, cutoff=0.4) or list(needs)[:5]
                why = left_out or f"no cell is called so; nearest: {', '.join(near)}"
                raise UserError(f"cell {cell}: it needs {name!r}: {why}")
    try:
        TopologicalSorter({cell: wanted.values() for cell, wanted in needs.items()}).prepare()
    except CycleError as error:
        # The circle's first cell is its last too; each stands behind one that it needs.
        raise UserError(f"cells need each other in a circle: {' needs '.join(reversed(error.args[1]))}") from error


def check_places(cell: str, options: Mapping[str, Any], needs: Iterable[str], cells: Iterable[str]) -> None:
    """UserError for a name in braces that is a cell's, or nearly a needed one's, and not among the needed ones."""
    needs, known = list(needs), set(cells)
    for option, value in options.items():
        for name in _PLACE.findall(str(value)):
            if name not in needs and (name in known or difflib.get_close_matches(name, needs, n=1)):
                has = f"needs: {', '.join(needs)}" if needs else "it has no `needs`"
                raise UserError(f"cell {cell}: {option}: {{{name}}} is no run that it needs; {has}")


def in_order(items: Sequence[T], name: Callable[[T], str], needs: Callable[[T], Iterable[str]]) -> list[T]:
    """The items as they stand, but each behind those that it needs; what is not among the items is passed over."""
    by_name, found = {name(item): item for item in items}, dict[str, T]()

    def put(key: str) -> None:
        if key in by_name and key not in found:
            for each in needs(by_name[key]):
                put(each)
            found[key] = by_name[key]

    for key in by_name:
        put(key)
    return list(found.values())


def filled(text: str, places: Mapping[str, str]) -> str:
    """A text with `{name}` replaced for the names in `places`; other braces stay."""
    return _PLACE.sub(lambda match: places.get(match[1], match[0]), text)


def has_place(text: str, names: Iterable[str]) -> bool:
    """Whether a text has one of the names in braces."""
    return not set(_PLACE.findall(text)).isdisjoint(names)
