"""What a command needs from where it runs, asked before it begins: recent packages, a free port."""

import os
import socket
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version

from smallnets.errors import RunError, UserError


@cache
def require_packages() -> None:
    """Raises a UserError for the first package that is missing or of a version that `pyproject.toml` excludes.

    The limits are those of the installed metadata; without any (a folder that was never installed) nothing is asked.
    Nothing but metadata is read: no package is imported.
    """
    from packaging.requirements import Requirement

    try:
        lines = requires("smallnets") or []
    except PackageNotFoundError:
        return
    for wanted in map(Requirement, lines):
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(wanted.name)
        except PackageNotFoundError:
            found = None
        if found is None or not wanted.specifier.contains(found, prereleases=True):
            came = f"is {found} here" if found else "is not installed"
            raise UserError(
                f"smallnets needs {wanted.name}{wanted.specifier}, which {came}: pip install"
                f" '{wanted.name}{wanted.specifier}'"
            )


def require_free_port() -> None:
    """Raises a RunError if the port that MASTER_PORT names, for several processes of one machine, is in use.

    The first process would fail for it after the others were started, and these would wait for it. Nothing is asked
    where the variable is not set: then a free port is chosen.
    """
    port = os.environ.get("MASTER_PORT", "")
    if not port.isdigit() or os.environ.get("MASTER_ADDR", "localhost") not in ("localhost", "127.0.0.1"):
        return
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("", int(port)))
        except OSError as error:
            raise RunError(
                f"port {port} is in use: unset MASTER_PORT, and a free one is chosen, or set another"
            ) from error
