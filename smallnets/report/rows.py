"""`write_rows`: one line a run, as `rows.csv` and, where pyarrow is installed, `rows.parquet`."""

import io
from importlib.util import find_spec
from pathlib import Path

import pandas as pd

from smallnets.report.collect import Results
from smallnets.report.figures import write_bytes
from smallnets.results.row import write_text
from smallnets.results.store import frame


def can_parquet() -> bool:
    """Whether pyarrow is there, the extra `parquet`."""
    return find_spec("pyarrow") is not None


def write_rows(results: Results, out: Path) -> list[Path]:
    """The files, written by rename, of `smallnets.results.frame` of all folders: also of runs that failed.

    A column of several folders is missing where a folder does not have it. Parquet has one type a column: values of
    several types become texts there.
    """
    if not results.folders:
        return []
    # What is damaged was said when the results were collected.
    parts = [frame(folder, on_problem=lambda problem: None) for folder in results.folders]
    rows = pd.concat(parts, ignore_index=True) if len(parts) > 1 else parts[0]
    written = [out / "rows.csv"]
    write_text(written[0], rows.to_csv(index=False))
    if can_parquet():
        file = io.BytesIO()
        _of_one_type(rows).to_parquet(file, index=False, engine="pyarrow")
        written.append(out / "rows.parquet")
        write_bytes(written[1], file.getvalue())
    return written


def _of_one_type(rows: pd.DataFrame) -> pd.DataFrame:
    """Columns whose values are of several types (an axis of numbers and names) as texts."""
    rows = rows.copy()
    for name in rows.columns:
        known = rows[name].dropna()
        if rows[name].dtype == object and len({type(value) for value in known}) > 1:
            rows[name] = rows[name].map(lambda value: value if pd.isna(value) else str(value))
    return rows
