"""From the errors and warnings of the libraries underneath to one or two lines in the user's spelling."""

import difflib
import errno
import inspect
import logging
import os
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from jsonargparse import ArgumentError
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from smallnets.errors import RunError, UserError

# Notes of the libraries that say nothing to the user of a command line (message, a regular expression).
_NOISE = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning 2.6 with torch 2.15
    r"The number of training batches .* is smaller than the logging interval",  # nothing is logged by the step
    r"Checkpoint directory .* exists and is not empty",  # a resumed run goes on in its own folder
    # --checkpoint_every need not be repeated on a resume; any other callback that is missing is warned about.
    r"Be aware that when using `ckpt_path`, callbacks .* callbacks: \[.ModelCheckpoint\{[^}]*\}.\]",
    r"The dirpath has changed from",  # a checkpoint taken over by a new run
)

# The disk, a quota or a file's largest size.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
RESUME = "; what was written before is whole: make room, then go on with --ckpt_path=last"


@contextmanager
def as_user_errors(options: Callable[[], Iterable[str]] = list, on_full: str = "") -> Iterator[None]:
    """Turns parser errors, misconfigurations and files that cannot be written, in a `with` block, into UserErrors.

    `options` gives the names of all options, for the nearest to a misspelt one; it is called after an error only.
    `on_full` is what to do when the disk is full.
    """
    try:
        yield
    except (ArgumentError, ValueError, TypeError) as error:
        # The parser wraps what a constructor raised; a message of ours is the better one.
        if (ours := _user_error_in(error)) is not None:
            raise ours from error
        if not isinstance(error, ArgumentError):
            # A class that the parser may build but that cannot be had, such as a logger whose package is missing.
            if found := re.search(
                r"Problem with given class_path '([^']+)': (.*?)(?: - Expected|$)", one_line(str(error))
            ):
                raise UserError(f"{found[1]}: {found[2]}") from error
            raise
        raise UserError(parser_message(str(error), options())) from error
    except MisconfigurationException as error:
        raise UserError(one_line(str(error))) from error
    except RuntimeError as error:
        if not str(error).startswith("Early stopping conditioned on"):
            raise
        raise RunError(one_line(str(error))) from error
    except OSError as error:
        if error.filename is None and error.errno not in _FULL:
            raise
        where = f"{os.fsdecode(error.filename)}: " if error.filename is not None else ""
        raise RunError(f"{where}{error.strerror}{on_full if error.errno in _FULL else ''}") from error


@contextmanager
def full_disk_in_threads() -> Iterator[None]:
    """A thread that finds the disk full, as TensorBoard's writer may, prints no traceback in a `with` block.

    Raises:
        OSError: the thread's, at the block's end, unless the block itself has raised: it is told once, and never lost.
    """
    before, found = threading.excepthook, list[OSError]()

    def hook(arguments: threading.ExceptHookArgs, /) -> None:
        if isinstance(arguments.exc_value, OSError) and arguments.exc_value.errno in _FULL:
            found.append(arguments.exc_value)
        else:
            before(arguments)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before
    if found:
        raise found[0]


def _user_error_in(error: BaseException) -> UserError | None:
    """The UserError that an error was raised from, however far back."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return None


@contextmanager
def short_warnings() -> Iterator[None]:
    """Warnings as one line each, without the library's notes on devices, tips and itself."""
    levels = {name: logging.getLogger(name).level for name in ("lightning.pytorch", "lightning.fabric")}

    def show(message: Any, category: type[Warning], *rest: Any, **more: Any) -> None:
        print(f"smallnets: warning: {one_line(str(message))}", file=sys.stderr, flush=True)

    with warnings.catch_warnings():
        for name in levels:
            logging.getLogger(name).setLevel(logging.WARNING)
        for pattern in _NOISE:
            warnings.filterwarnings("ignore", message=pattern)
        # pytest and notebooks show warnings in their own way; only a plain interpreter's way is replaced.
        if warnings.showwarning.__module__ == "warnings":
            warnings.showwarning = show
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def parser_message(message: str, options: Iterable[str] = ()) -> str:
    """A parser's error in one line: the option as the user writes it, what is allowed, what came.

    `options` are all option names, among which the nearest to a misspelt one is looked for.
    """
    keys = re.findall(r'Parser key "([^"]+)"', message)
    option = "--" + ".".join(keys) if keys else ""
    text = one_line(re.sub(r'Parser key "[^"]+": ?', "", message))
    if found := re.match(r"unrecognized arguments: (.*)", text):
        first = found[1].split()[0].partition("=")[0]
        known = [f"--{each}" for each in options]
        # --lr for --model.optimizer.lr
        inner = [each for each in known if each.rpartition(".")[2] == first.lstrip("-")]
        return f"no option {first}" + (f"; there is {', '.join(inner)}" if inner else _nearest(first, known))
    if found := re.match(r"the following arguments are required: (.*)", text):
        names = [name.partition(".")[2] for name in found[1].split(", ")]
        return f"required, on the command line or in a --config: {', '.join('--' + n for n in names)}"
    path = re.search(r"Problem with given class_path '([^']+)': (.*)", text) or re.search(
        r"Namespace\(class_path='([^']+)'()", text
    )
    literal = re.search(r"Expected a typing.Literal\[(.*?)\].*?(?:Got|Given) value: (.*?)(?: - |$)", text)
    if not literal and (found := re.search(r"Option '([^']+)' is not accepted", text)):
        owner = path[1] if path else ""
        return (
            f"{option}.{found[1]}: {owner or 'the class'} takes no {found[1]!r}{_nearest(found[1], _arguments(owner))}"
        )
    if literal:
        return f"{option}: one of {literal[1]}, got {literal[2]}"
    if path and path[2]:
        near = _nearest(path[1], _siblings(path[1])) if "attribute" in path[2] else ""
        return f"{option}={path[1]}: {path[2]}{near}"
    wanted = re.findall(r"Expected an? <class '([^']+)'>", text)
    came = re.findall(r"(?:Given|Got) value: (.*)", text)
    if wanted and came:
        return f"{option}: {' or '.join('null' if w == 'NoneType' else w for w in wanted)} expected, got {came[-1]}"
    return f"{option}: {text}" if option else text


def trainer_message(message: str, accelerator: Any) -> str:
    """Why the trainer cannot be built, in one line; a device that is not here by its option."""
    text = one_line(message)
    if any(each in text for each in ("gpu backend", "accelerator is not available", "torch_xla")):
        return (
            f"--trainer.accelerator={accelerator}: torch finds no such device here; allowed: auto, cpu"
            " (a GPU needs its driver and a build of torch for it)"
        )
    return f"the trainer refuses its options: {text}"


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=2)
    return f"; nearest: {', '.join(near)}" if near else ""


def _arguments(class_path: str) -> list[str]:
    """Names of a class's constructor arguments; none for a path that does not lead to a class."""
    module, _, name = class_path.rpartition(".")
    try:
        return list(inspect.signature(getattr(import_module(module), name)).parameters)
    except (ImportError, AttributeError, TypeError, ValueError):
        return []


def _siblings(class_path: str) -> list[str]:
    """Public names of the module that a class path names; none if there is no such module."""
    module = class_path.rpartition(".")[0]
    try:
        return [f"{module}.{name}" for name in vars(import_module(module)) if not name.startswith("_")]
    except (ImportError, ValueError):
        return []


def one_line(text: str) -> str:
    """White space folded to single blanks."""
    return re.sub(r"\s+", " ", text).strip()
