"""`smallnets models`: every named network with its exact counts."""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import torch

from smallnets.errors import UserError
from smallnets.measure import count
from smallnets.models import NETWORKS, network
from smallnets.models.spec import class_path
from smallnets.surgery.names import make, split_name


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def _parser() -> _Parser:
    parser = _Parser(
        prog="smallnets models",
        description="Every named network with its exact counts. MACs are those of one image; FLOPs = 2 MACs.",
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="networks to show (default: all); quaternion_NAME is NAME's quaternion form, gray_NAME NAME on images and"
        " their gray",
    )
    parser.add_argument("--num_classes", type=int, metavar="N", help="classes (default: both 10 and 100)")
    parser.add_argument("--json", action="store_true", help="a list of objects, one for each network and class count")
    return parser


def rows(names: Sequence[str], class_counts: Sequence[int]) -> list[dict[str, Any]]:
    """One object for each network and number of classes, counted on the meta device. UserError for an unknown name."""
    found = []
    for name in names:
        conversion, real = split_name(name)
        entry = network(real)
        for num_classes in class_counts:
            with torch.device("meta"):
                net = make(name, num_classes)
            counts = count(net, image_size=entry.image_size, in_channels=entry.in_channels)
            found.append(
                {
                    "name": name,
                    "num_classes": num_classes,
                    "parameters": counts.parameters,
                    "macs": counts.macs,
                    "class_path": class_path(conversion or entry.cls),
                    "image_size": entry.image_size,
                    "in_channels": entry.in_channels,
                }
            )
    return found


def _table(found: list[dict[str, Any]], class_counts: Sequence[int]) -> list[list[str]]:
    """A header and a line for each network: input, and parameters and MACs for each number of classes."""
    header = ["name", "input"]
    for number in class_counts:
        header += [f"parameters ({number})", f"MACs ({number})"]
    lines: dict[str, list[str]] = {}
    for row in found:
        size = row["image_size"]
        line = lines.setdefault(row["name"], [row["name"], f"{row['in_channels']}x{size}x{size}"])
        line += [f"{row['parameters']:,}", f"{row['macs']:,}"]
    return [header, *lines.values()]


def _show(table: list[list[str]]) -> None:
    """Print a table: by rich on a terminal, elsewhere as aligned plain lines."""
    header, *lines = table
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        shown = Table(caption="(classes); MACs of one image, FLOPs = 2 MACs")
        for index, title in enumerate(header):
            shown.add_column(title, justify="left" if index < 2 else "right")
        for line in lines:
            shown.add_row(*line)
        Console().print(shown)
        return
    widths = [max(len(line[index]) for line in table) for index in range(len(header))]
    for line in table:
        left = [cell.ljust(width) for cell, width in zip(line[:2], widths, strict=False)]
        right = [cell.rjust(width) for cell, width in zip(line[2:], widths[2:], strict=True)]
        print("  ".join(left + right))
    print("(classes); MACs of one image, FLOPs = 2 MACs")


def run(argv: Sequence[str]) -> int:
    """`smallnets models [--json] [--num_classes N] [NAME ...]`: print the counts; 0, or 2 for a wrong command line."""
    try:
        options = _parser().parse_args(argv)
        class_counts = (10, 100) if options.num_classes is None else (options.num_classes,)
        found = rows(list(dict.fromkeys(options.names)) or list(NETWORKS), class_counts)
    except UserError as error:
        print(f"smallnets models: {error}", file=sys.stderr)
        return error.exit_code
    except SystemExit:  # --help has been printed
        return 0
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        _show(_table(found, class_counts))
    return 0
