"""`latency.json`: how long a run's network takes, measured once and kept beside the row with the machine's name."""

import json
from pathlib import Path
from typing import Any

from smallnets.errors import RunError
from smallnets.results.row import write_text

LATENCY = "latency.json"
FIELDS = ("latency_ms", "latency_machine")


def write_latency(run: Path, seconds: float, machine: str, about: dict[str, Any]) -> Path:
    """Writes the median seconds of one image's inference, where it was measured, and `about`, plain data; by rename."""
    path = run / LATENCY
    figures = {"latency_ms": 1e3 * seconds, "latency_machine": machine}
    write_text(path, json.dumps({**figures, **about}, indent=1, sort_keys=True) + "\n")
    return path


def read_latency(run: Path) -> dict[str, Any]:
    """`latency_ms` and `latency_machine` of a run's folder; {} where nobody measured. RunError for a damaged file."""
    path = run / LATENCY
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text())
        milliseconds, machine = float(found["latency_ms"]), str(found["latency_machine"])
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged; `smallnets bench --ckpt ... --save` writes it again") from error
    return dict(zip(FIELDS, (milliseconds, machine), strict=True))
