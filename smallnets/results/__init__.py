"""One folder and one row a run: writing rows, reading rows, loading networks."""

from smallnets.results.load import load, read_checkpoint
from smallnets.results.row import SCHEMA, read_row, update_row, write_row
from smallnets.results.run import RunFolder

__all__ = ["SCHEMA", "RunFolder", "load", "read_checkpoint", "read_row", "update_row", "write_row"]
