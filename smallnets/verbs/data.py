"""`smallnets data fetch|verify|show NAME`: get a data set, check its files, look at it."""

import argparse
import json
from collections.abc import Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from smallnets.data import MODULES
from smallnets.errors import RunError, UserError
from smallnets.verbs.arguments import Parser

if TYPE_CHECKING:
    from smallnets.data.files import FileState
    from smallnets.data.modules import ImageData


def _parser() -> Parser:
    parser = Parser(prog="smallnets data", description="Get a data set, check its files, look at it.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="{fetch,verify,show}")
    common = Parser(add_help=False)
    common.add_argument("name", metavar="NAME", help=f"one of {', '.join(MODULES)}")
    common.add_argument("--root", default="data", help="the folder that holds the set (default: data)")
    common.add_argument("--split_seed", type=int, default=0, help="chooses the validation images (default: 0)")
    common.add_argument("--image_size", type=int, help="pixels a side, for Digits and ImageFolder")
    common.add_argument("--cache", help="where ImageNet64 is converted to (default: the root)")
    actions.add_parser("fetch", parents=[common], help="download what is missing")
    actions.add_parser("verify", parents=[common], help="check every file, and count images and classes")
    show = actions.add_parser("show", parents=[common], help="split sizes, images a class, mean and deviation")
    show.add_argument("--out", metavar="FILE.png", help="write a grid of augmented training images")
    show.add_argument(
        "--augment",
        default="",
        metavar="LIST",
        help='as in a config: crop,flip or \'["crop", {"cutout": {"size": 8}}]\'',
    )
    show.add_argument("--images", type=int, default=64, help="how many images in the grid (default: 64)")
    show.add_argument("--seed", type=int, default=0, help="of the images' order and augmentation (default: 0)")
    return parser


def run(argv: Sequence[str]) -> int:
    """Runs the verb and returns the exit code.

    Raises:
        UserError: a wrong command line.
        RunError: files that are missing or damaged, or cannot be fetched.
    """
    options = _parser().parse(argv)
    if options is None:
        return 0
    return {"fetch": _fetch, "verify": _verify, "show": _show}[options.action](options)


def _module(options: argparse.Namespace, **more: Any) -> "ImageData":
    if options.name not in MODULES:
        near = get_close_matches(options.name, MODULES, n=2, cutoff=0.4)
        meant = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UserError(f"smallnets data: there is no set {options.name!r}{meant}\nallowed: {', '.join(MODULES)}")
    from smallnets.data import sets  # imports torch and Lightning, which takes seconds

    more |= {"root": options.root, "split_seed": options.split_seed}
    for option, owners in (("image_size", ("Digits", "ImageFolder")), ("cache", ("ImageNet64",))):
        value = getattr(options, option)
        if value is not None and options.name not in owners:
            raise UserError(f"--{option} is for {' and '.join(owners)}, not for {options.name}")
        if value is not None:
            more[option] = value
    return getattr(sets, options.name)(**more)


def _fetch(options: argparse.Namespace) -> int:
    data = _module(options)
    if all(s.state == "ok" for s in data.source.verify()):
        print(f"{data.name}: complete, nothing to fetch")
        return 0
    data.source.fetch()
    data.source.prepare()
    _require_whole(data, data.source.verify(), options)
    print(f"{data.name}: fetched into {options.root}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    data = _module(options)
    states = data.source.verify()
    for path, state, why in states:
        if len(states) <= 20 or state != "ok":  # a folder of images has a line only for what is wrong
            print(f"{state:8} {path}{': ' + why if why else ''}")
    _require_whole(data, states, options)
    data.setup("fit")
    data.setup("test")
    sizes = data.split_sizes
    print(
        f"{data.name}: {len(states)} files in order; {sizes['train'] + sizes['val']} training and {sizes['test']} test"
        f" images, {data.num_classes} classes, {data.in_channels} x {data.image_size} x {data.image_size}"
    )
    return 0


def _require_whole(data: "ImageData", states: "list[FileState]", options: argparse.Namespace) -> None:
    wrong = [s for s in states if s.state != "ok"]
    if wrong:
        files = "1 file is" if len(wrong) == 1 else f"{len(wrong)} files are"
        remedy = f"; delete what is damaged and run `smallnets data fetch {data.name} --root {options.root}`"
        raise RunError(
            f"{data.name}: {files} missing or damaged in {options.root}, first {wrong[0].path}"
            + (remedy if data.source.fetchable else "")
        )


def _show(options: argparse.Namespace) -> int:
    data = _module(options, augment=_augment(options.augment), order_seed=options.seed, augment_seed=options.seed)
    if options.out and not options.out.lower().endswith((".png", ".jpg", ".jpeg")):
        raise UserError(f"--out is a .png or .jpg file, not {options.out}")
    data.setup("fit")
    data.setup("test")  # its labels are counted; no figure is made from its images
    sizes = data.split_sizes
    print(
        f"{data.name}: train {sizes['train']}, val {sizes['val']}, test {sizes['test']}; split_seed {data.split_seed}"
    )
    print(
        "mean " + " ".join(f"{v:.6f}" for v in data.true_mean) + "   std " + " ".join(f"{v:.6f}" for v in data.true_std)
    )
    counts = [data.labels(split).bincount(minlength=data.num_classes).tolist() for split in ("train", "val", "test")]
    width = max(len(c) for c in ["class", *data.classes])
    print(f"{'class':{width}} {'train':>7} {'val':>7} {'test':>7}")
    for name, *row in zip(data.classes, *counts, strict=True):
        print(f"{name:{width}} " + " ".join(f"{n:7}" for n in row))
    if options.out:
        _write_grid(data, options)
        shown = min(options.images, sizes["train"])
        print(f"{options.out}: {shown} training images, augmented by {data.augment or 'nothing'}")
    return 0


def _augment(text: str) -> list[Any]:
    """A comma-separated list of names, or a JSON list as in a config."""
    if not text.strip().startswith("["):
        return [name.strip() for name in text.split(",") if name.strip()]
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"--augment: {error} in {text}; write crop,flip or a JSON list") from error


def _write_grid(data: "ImageData", options: argparse.Namespace) -> None:
    from torchvision.utils import save_image

    if options.images < 1:
        raise UserError(f"--images is 1 or more, not {options.images}")
    shown = min(options.images, data.split_sizes["train"])
    try:
        save_image(data.augmented(shown)[0], options.out, nrow=max(1, round(shown**0.5)))
    except OSError as error:
        raise UserError(f"--out {options.out} cannot be written: {error.strerror or error}") from error
