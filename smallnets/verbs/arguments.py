"""What the command lines of the verbs that are plain functions share."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from smallnets.errors import UserError

if TYPE_CHECKING:
    import torch


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line: UserError."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}")

    def parse(self, argv: Sequence[str]) -> argparse.Namespace | None:
        """The options; None after `--help`, which has been printed."""
        try:
            return self.parse_args(list(argv))
        except SystemExit:
            return None


def add_device(parser: argparse.ArgumentParser) -> None:
    """Adds `--device`."""
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if there is one"
    )


def chosen_device(prog: str, name: str) -> "torch.device":
    """The device that `--device` means. UserError for a GPU that is not there."""
    import torch

    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise UserError(f"{prog}: --device=cuda: torch finds no GPU here; allowed: auto, cpu")
    return torch.device("cuda", 0) if there and name != "cpu" else torch.device("cpu")


def spec_arguments(kind: str, folder: str) -> Parser:
    """A parent parser with what every action on a `study` or `search` takes: its file, `--quick` and `--folder`.

    Args:
        kind: what the file is.
        folder: its place among the configs.
    """
    parser = Parser(add_help=False)
    parser.add_argument("file", metavar="FILE", help=f"the {kind}: a YAML file, as those in configs/{folder}")
    parser.add_argument("--quick", action="store_true", help="the small form that the file's `quick:` describes")
    where = f"where lightning_logs/<{kind}>/ is (default: here)"
    parser.add_argument("--folder", type=Path, default=Path(), metavar="DIR", help=where)
    return parser
