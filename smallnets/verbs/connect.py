"""`smallnets connect`: the error along the line between two networks, and how much of their masks is common."""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from smallnets.data.chunks import first_batches
from smallnets.errors import UserError
from smallnets.pruning.connectivity import error_barrier, overlap
from smallnets.pruning.curves import accuracies
from smallnets.pruning.masks import Masks
from smallnets.results.load import CHECKPOINT_KEY, network_of, read_checkpoint, require_float
from smallnets.verbs.arguments import Parser, add_device, chosen_device
from smallnets.verbs.run_data import data_of, owner_of, require_same_split, validation_batches

CHILDREN = """two children of one network differ in the order of their data alone:
  smallnets fit --config FILE --seed_everything=0 --data.order_seed=1 --name=child-1
  smallnets fit --config FILE --seed_everything=0 --data.order_seed=2 --name=child-2
and then their checkpoints/last.ckpt. Of a network that is trained already, add --model.init_from=CHECKPOINT to both;
of a ticket, train it again by LotteryControl with from_round=ROUND. Augmentation has --data.augment_seed."""


def _parser() -> Parser:
    parser = Parser(
        prog="smallnets connect",
        description="Linear mode connectivity (Frankle et al. 2020): the validation error of (1 - a) A + a B at evenly "
        "spaced a. The barrier is the highest error less the mean of both ends, in points; 0 or less: linearly "
        "connected. Of two masked networks also the Jaccard similarity of the masks, beside that of chance.",
        epilog=CHILDREN,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("a", metavar="CKPT_A", help="a checkpoint of a run, whose data and validation split are used")
    parser.add_argument("b", metavar="CKPT_B", help="a checkpoint of the same network and split")
    parser.add_argument("--points", type=int, default=11, metavar="N", help="places on the line (default: 11)")
    parser.add_argument(
        "--recalibrate", type=int, default=0, metavar="N",
        help="measure BatchNorm's statistics anew at each point on N training batches (default: 0, interpolate them: a "
        "barrier may then be theirs alone)",
    )  # fmt: skip
    parser.add_argument("--root", metavar="DIR", help="where the data set lies (default: as in A's run)")
    add_device(parser)
    parser.add_argument("--json", action="store_true", help="print one object")
    return parser


def run(argv: Sequence[str]) -> int:
    """Prints the errors along the line, the barrier, and the overlap of masks.

    Raises:
        UserError: a wrong command line, networks of other shapes or splits, or a checkpoint in no run's folder.
    """
    options = _parser().parse(argv)
    if options is None:
        return 0
    if options.recalibrate < 0:
        raise UserError(f"smallnets connect: --recalibrate is 0 or more training batches, not {options.recalibrate}")
    found = _found(options)
    print(json.dumps(found, indent=1) if options.json else "\n".join(_lines(found)))
    return 0


def _found(options: argparse.Namespace) -> dict[str, Any]:
    stored = [read_checkpoint(path) for path in (options.a, options.b)]
    data = data_of(owner_of(options.a), options.root)
    for path, each in zip((options.a, options.b), stored, strict=True):
        require_float(each, path, "smallnets connect")
        require_same_split(each, data)
        if each[CHECKPOINT_KEY].get("data") not in (None, data.name):
            raise UserError(f"{path} was trained on {each[CHECKPOINT_KEY]['data']}, and {options.a} on {data.name}")
    device = chosen_device("smallnets connect", options.device)
    a, b = (network_of(each, p).to(device) for each, p in zip(stored, (options.a, options.b), strict=True))
    images = [(batch[0].to(device), batch[1].to(device)) for batch in validation_batches(data)]
    barrier = error_barrier(
        a, b, lambda net: 1 - accuracies([net], images)[0], options.points,
        [batch for batch, _ in first_batches(data, options.recalibrate, device)] if options.recalibrate else None,
    )  # fmt: skip
    masks = [each[CHECKPOINT_KEY].get("masks") for each in stored]
    return {
        "a": options.a,
        "b": options.b,
        "data": data.name,
        "images": data.split_sizes["val"],
        "recalibrated_on": options.recalibrate or None,
        "alphas": list(barrier.alphas),
        "errors": [round(each, 6) for each in barrier.errors],
        "barrier": round(barrier.height, 6),
        "masks": _overlap(*map(Masks.from_state_dict, masks)) if all(masks) else None,
    }


def _overlap(a: Masks, b: Masks) -> dict[str, Any]:
    found = overlap(a, b)
    return {
        "jaccard": round(found.jaccard, 6), "chance": round(found.chance, 6), "kept": [a.kept, b.kept],
        "total": a.total,
    }  # fmt: skip


def _lines(found: dict[str, Any]) -> list[str]:
    errors = found["errors"]
    lines = [f"{alpha:5.2f}  error {100 * error:6.2f} %" for alpha, error in zip(found["alphas"], errors, strict=True)]
    top = max(errors)
    lines.append(
        f"barrier {100 * found['barrier']:+.2f} points: highest {100 * top:.2f} % at"
        f" {found['alphas'][errors.index(top)]:.2f}, ends {100 * errors[0]:.2f} and {100 * errors[-1]:.2f} %;"
        f" {found['images']:,} validation images"
    )
    if (masks := found["masks"]) is not None:
        lines.append(
            f"masks: Jaccard {masks['jaccard']:.4f}, by chance {masks['chance']:.4f}; {masks['kept'][0]:,} and"
            f" {masks['kept'][1]:,} of {masks['total']:,} weights kept"
        )
    return lines
