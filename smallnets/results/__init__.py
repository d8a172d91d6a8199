"""One folder and one row a run: writing rows, reading rows. Rows are read without torch.

Networks are loaded by `smallnets.load`.
"""

from smallnets.results.row import SCHEMA, read_row, update_row, write_row
from smallnets.results.run import RunFolder
from smallnets.results.store import frame, rows

__all__ = ["SCHEMA", "RunFolder", "frame", "read_row", "rows", "update_row", "write_row"]
