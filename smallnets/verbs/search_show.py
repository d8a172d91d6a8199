"""`smallnets search show FILE`: what a search has found, in words, as an object or as figures."""

import json
import shlex
from pathlib import Path

from smallnets.errors import UserError
from smallnets.studies.cells import short_names
from smallnets.studies.search import Trials
from smallnets.studies.search_space import Search
from smallnets.studies.trial import Ended, line_of


def show(search: Search, trials: Trials, as_json: bool, out: Path | None) -> int:
    """Prints what a search has found, as text or as one object, and draws it into `out`, if it is given.

    Raises:
        UserError: there is nothing to draw, the extra `report` is not installed, or `out` cannot be written.
    """
    ended, best, shares = trials.ended(), trials.best(), trials.importances()
    files = _drawn(search, ended, shares, out) if out is not None else []
    if as_json:
        plain = [{**vars(each), "folder": str(each.folder)} for each in ended]
        numbers = [each.number for each in best]
        about = {"name": search.name, "asks": search.asks, "objectives": search.objectives}
        print(json.dumps({**about, "best": numbers, "importances": shares, "trials": plain}, indent=1))
        return 0
    print(f"{search.name}: {search.asks}")
    states = [each.state for each in ended]
    print(f"{len(ended)} trials: {', '.join(f'{states.count(s)} {s}' for s in dict.fromkeys(states))}")
    for each in best:
        print(f"best: {line_of(each)}")
        print(
            f"  {shlex.join(['smallnets', 'fit', *search.arguments(each.options), f'--seed_everything={search.seed}'])}"
        )
    if shares:
        first = next(iter(search.objectives))
        print(f"importance for {first} (fANOVA, share of its variance):")
        for name, share in shares.items():
            print(f"  {share:6.3f}  {name}")
    for each in _sorted(ended, search):
        print(line_of(each))
    if files:
        print(f"{len(files)} files in {out}; open {files[-1]}")
    return 0


def _drawn(search: Search, ended: list[Ended], shares: dict[str, float], out: Path) -> list[Path]:
    try:
        from smallnets.report.search_figures import Axis, Found, write_search
    except ModuleNotFoundError as error:
        raise UserError(f"smallnets search show --out needs {error.name}: pip install 'smallnets[report]'") from error
    short = short_names([d.name for d in search.space])
    axes = [Axis(short[d.name], list(d.choices), d.low, d.high, d.log) for d in search.space]
    done = [
        {"number": t.number, "values": t.values, "chosen": {short[k]: v for k, v in t.chosen.items()}}
        for t in ended
        if t.state == "done"
    ]
    importances = {short[name]: share for name, share in shares.items()}
    found = Found(search.name, search.asks, search.objectives, axes, done, importances)
    try:
        return write_search(found, out)
    except OSError as error:
        raise UserError(f"smallnets search: cannot write {error.filename}: {error.strerror}") from error


def _sorted(ended: list[Ended], search: Search) -> list[Ended]:
    """The best by the first objective first, those without a figure last."""
    name, direction = next(iter(search.objectives.items()))
    sign = -1 if direction == "max" else 1
    return sorted(
        ended, key=lambda t: (t.state != "done", sign * t.values[name] if t.values and name in t.values else 0.0)
    )
