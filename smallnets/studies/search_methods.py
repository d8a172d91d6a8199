"""The sampler and the pruner that a search's file asks for, checked against its space and its objectives."""

import math
from typing import TYPE_CHECKING, Any

from smallnets.errors import UserError

if TYPE_CHECKING:
    from smallnets.studies.search_space import Dimension

SAMPLERS, PRUNERS = ("tpe", "random", "nsga2", "grid"), ("median", "hyperband")
_POPULATION = "population_size"


def read_sampler(given: Any, space: "list[Dimension]", objectives: int) -> tuple[str, dict[str, Any]]:
    """The sampler's name and its arguments.

    Args:
        given: what the file says: a name, or `{nsga2: {population_size: N}}`.
        space: the search's dimensions.
        objectives: how many there are.

    Raises:
        UserError: there is no such sampler, or it is not one for this search.
    """
    named = {given: {}} if isinstance(given, str) else given
    if not isinstance(named, dict) or len(named) != 1 or next(iter(named)) not in SAMPLERS:
        raise UserError(f"sampler: one of {', '.join(SAMPLERS)}, got {given!r}")
    ((name, arguments),) = named.items()
    arguments = arguments or {}
    if not isinstance(arguments, dict) or (arguments and (name != "nsga2" or set(arguments) != {_POPULATION})):
        raise UserError(f"sampler: {name}: arguments are taken by nsga2 alone, {_POPULATION}; got {arguments!r}")
    if name == "nsga2" and objectives < 2:
        raise UserError("sampler: nsga2 is for several objectives; of one: tpe, random or grid")
    if type(size := arguments.get(_POPULATION, 2)) is not int or size < 2:
        raise UserError(f"sampler: nsga2: {_POPULATION}: a whole number of at least 2 is expected, got {size!r}")
    if name == "grid":
        grid_size(space)
    return name, arguments


def read_pruner(given: Any, objectives: int) -> dict[str, dict[str, Any]]:
    """{name: arguments} of the pruner; empty for none.

    Raises:
        UserError: there is no such pruner, or there are several objectives.
    """
    named = {given: {}} if isinstance(given, str) else given or {}
    if not isinstance(named, dict) or len(named) > 1 or any(name not in PRUNERS for name in named):
        raise UserError(f"pruner: one of {', '.join(PRUNERS)}, null, or one with its arguments, got {given!r}")
    if named and objectives > 1:
        raise UserError("pruner: trials of several objectives are not pruned")
    return {str(name): dict(arguments or {}) for name, arguments in named.items()}


def grid_size(space: "list[Dimension]") -> int:
    """How many combinations a space has. UserError for a dimension that has no end of values, or only sometimes one."""
    return math.prod(len(_values(dimension)) for dimension in space)


def grid_point(space: "list[Dimension]", number: int, name: str) -> Any:
    """The value of a dimension in combination `number` (0, 1, ...), in which the last dimension changes first.

    >>> from smallnets.studies.search_methods import grid_point
    >>> from smallnets.studies.search_space import Dimension
    >>> space = [Dimension("net", {"a": {}, "b": {}}), Dimension("lr", {}, 0.1, 0.3, step=0.1)]
    >>> [(grid_point(space, n, "net"), round(grid_point(space, n, "lr"), 1)) for n in (0, 1, 3)]
    [('a', 0.1), ('a', 0.2), ('b', 0.1)]
    """
    for dimension in reversed(space):
        values = _values(dimension)
        number, index = divmod(number, len(values))
        if dimension.name == name:
            return values[index]
    raise KeyError(name)


def _values(dimension: "Dimension") -> list[Any]:
    if dimension.when:
        raise UserError(f"sampler: grid: {dimension.name}: a grid has no dimensions with when")
    if dimension.choices:
        return list(dimension.choices)
    if dimension.whole:
        return list(range(int(dimension.low), int(dimension.high) + 1, int(dimension.step or 1)))
    if dimension.step is None:
        raise UserError(f"sampler: grid: {dimension.name}: choices, a step or whole numbers are expected")
    steps = math.floor((dimension.high - dimension.low) / dimension.step + 1e-8)
    return [dimension.low + n * dimension.step for n in range(steps + 1)]
