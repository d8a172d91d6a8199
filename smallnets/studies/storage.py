"""The database behind a study's ledger or a search's trials: opened, locked, its errors told in one line."""

import fcntl
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from smallnets.errors import RunError, UserError

# A worker that has not been heard of for so long is taken for dead, and its runs and trials are anybody's.
BEAT_SECONDS, GRACE_SECONDS = 30, 120

_SQLITE, _POSTGRES = "sqlite:///", ("postgresql:", "postgresql+", "postgres:")
# Any number that other users of a database will hardly take: "smallnet" in ASCII.
_LOCK_NUMBER = int.from_bytes(b"smallnet")


class LedgerError(RunError):
    """A database cannot be reached or read."""


def open_storage(url: str, **options: Any) -> Any:
    """Optuna's storage in a database: `sqlite:///FILE`, `postgresql://...`, or another that SQLAlchemy knows.

    Args:
        url: of the database. PostgreSQL is spoken to by psycopg, unless the URL names another driver.
        options: of `optuna.storages.RDBStorage`.
    """
    import optuna

    arguments = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    return optuna.storages.RDBStorage(_with_driver(url), engine_kwargs=arguments, **options)


def trial_storage(where: str) -> Any:
    """Optuna's storage at a URL (`open_storage`), whose workers can be heard of; or in a journal's file."""
    if "://" in where:
        return open_storage(where, heartbeat_interval=BEAT_SECONDS, grace_period=GRACE_SECONDS)
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(where))


@contextmanager
def database_errors(what: str) -> Iterator[None]:
    """The database's errors in one line; without Optuna's notes on what it does and what it calls experimental.

    Raises:
        UserError: the storage's URL is none, or its driver is not installed.
        LedgerError: `what` does not answer.
    """
    import optuna
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    except ImportError as error:
        hint = ": pip install 'smallnets[postgres]'" if error.name == "psycopg" else ""
        raise UserError(f"--storage: {str(error).splitlines()[0]}{hint}") from error
    except ArgumentError as error:
        raise UserError(f"--storage: {str(error).splitlines()[0]}") from error
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise LedgerError(f"{what} does not answer: {reason}") from error


@contextmanager
def one_at_a_time(url: str) -> Iterator[None]:
    """Keeps others from making tables or trials in a database at the same time; the lock ends with its holder.

    A SQLite file and a journal's are locked by a file beside them, a PostgreSQL by an advisory lock. In another
    database, such as MySQL, nothing is locked: what is to be done may be put down twice by workers that begin at the
    same moment.
    """
    if url.startswith(_SQLITE) or "://" not in url:
        path = Path(url.removeprefix(_SQLITE))
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
    elif url.startswith(_POSTGRES):
        from sqlalchemy import create_engine, text
        from sqlalchemy.pool import NullPool

        with create_engine(_with_driver(url), poolclass=NullPool).connect() as connection:
            connection.execute(text("SELECT pg_advisory_lock(:number)"), {"number": _LOCK_NUMBER})
            yield
    else:
        yield


def _with_driver(url: str) -> str:
    """`postgresql://...` alone would mean psycopg2."""
    for plain in ("postgresql://", "postgres://"):
        if url.startswith(plain):
            return f"postgresql+psycopg://{url.removeprefix(plain)}"
    return url
