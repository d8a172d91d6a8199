"""`smallnets curves`: accuracy against the share pruned, of one trained network (document 000's spotlight)."""

import csv
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from shutil import rmtree
from typing import Any

from torch import nn

from smallnets.errors import RunError, UserError
from smallnets.measure import count
from smallnets.pruning.curves import METHODS, accuracies, pruned_copy
from smallnets.pruning.masks import Masks
from smallnets.results.entry import ABOUT
from smallnets.results.load import CHECKPOINT_KEY, network_of, read_checkpoint, require_float
from smallnets.results.row import read_row, write_text
from smallnets.results.run import RunFolder
from smallnets.results.save import save
from smallnets.results.test_ledger import file_digest
from smallnets.verbs import trainer
from smallnets.verbs.arguments import Parser, add_device, chosen_device
from smallnets.verbs.run_data import data_of, owner_of, require_same_split, validation_batches

FRACTIONS = tuple(round(n / 20, 2) for n in range(21))
SIZES = ("parameters", "nonzero_parameters", "macs", "bytes")
COLUMNS = ("method", "fraction", "accuracy", "fine_tuned", *SIZES)


def _parser() -> Parser:
    parser = Parser(
        prog="smallnets curves",
        description="Prunes a trained network once at each of many fractions, without training it further, and gives "
        "the validation accuracy of each; all networks of a method share one pass over the images. Methods: layer and "
        "global (weights, the same share of each layer or over all), inputs (input channels, by masks, as document 000 "
        "does), channels (output channels, physically). What follows -- is given to `smallnets fit` when fine-tuning: "
        "-- --model.optimizer.lr=0.01",
    )
    parser.add_argument("checkpoint", metavar="CKPT", help="a checkpoint of a run")
    parser.add_argument("--methods", default="layer,global,inputs,channels", metavar="NAME[,NAME]")
    parser.add_argument("--fractions", default=",".join(f"{f:g}" for f in FRACTIONS), metavar="F[,F]")
    parser.add_argument("--root", metavar="DIR", help="where the data set lies (default: as in the run)")
    parser.add_argument(
        "--fine_tune", type=int, default=0, metavar="EPOCHS",
        help="also train each pruned network so long, as a run of its own with the run's settings; those that have "
        "ended are not run again",
    )  # fmt: skip
    parser.add_argument("--out", metavar="FILE.csv", help="write the points there (default: curves.csv of the run)")
    add_device(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    """Prints a line a point and writes them as CSV; 1 if a fine-tuning run failed.

    Raises:
        UserError: a wrong command line, or a checkpoint that lies in no run's folder.
    """
    argv = list(argv)
    place = argv.index("--") if "--" in argv else len(argv)
    options = _parser().parse(argv[:place])
    if options is None:
        return 0
    methods, fractions = _chosen_methods(options.methods), _chosen_fractions(options.fractions)
    checkpoint = read_checkpoint(options.checkpoint)
    require_float(checkpoint, options.checkpoint, "smallnets curves")
    owner = owner_of(options.checkpoint)
    if options.fine_tune < 0:
        raise UserError(f"smallnets curves: --fine_tune is 0 or more epochs, not {options.fine_tune}")
    out = Path(options.out) if options.out else owner.path / "curves.csv"
    data = data_of(owner, options.root)
    require_same_split(checkpoint, data)
    device = chosen_device("smallnets curves", options.device)
    net = network_of(checkpoint, options.checkpoint).to(device)
    image = {"image_size": int(data.image_size), "in_channels": int(data.in_channels)}
    images = [(batch[0].to(device), batch[1].to(device)) for batch in validation_batches(data)]
    tuning = FineTuning(owner, Path(options.checkpoint), checkpoint, options.fine_tune, options.root, argv[place + 1 :])
    points: list[dict[str, Any]] = []
    for method in methods:
        pruned = [pruned_copy(net, fraction, method, **image) for fraction in fractions]
        copies = [copied for copied, _ in pruned]
        for fraction, (copied, masks), accuracy in zip(fractions, pruned, accuracies(copies, images), strict=True):
            counts = count(copied, **image)
            point = {"method": method, "fraction": fraction, "accuracy": round(accuracy, 6), "fine_tuned": None}
            points.append(point | {name: getattr(counts, name) for name in SIZES})
            if options.fine_tune:
                points[-1]["fine_tuned"] = tuning.accuracy(f"{method}-{fraction:g}", copied.cpu(), masks)
            print(_line(points[-1]), flush=True)
            _write(out, points)
    for path in _drawn(points, out):
        print(f"curves: {path}", file=sys.stderr)
    print(f"curves: {len(points)} points of {data.split_sizes['val']:,} validation images in {out}", file=sys.stderr)
    return 0 if not options.fine_tune or all(p["fine_tuned"] is not None for p in points) else 1


@dataclass(frozen=True)
class FineTuning:
    """Runs of `smallnets fit` that go on from pruned networks, in `lightning_logs/NAME-curves/`.

    Attributes:
        owner: the run that trained the dense network, whose settings these runs have, but for several devices.
        source: the dense network's file.
        checkpoint: its content, for what is known of the data.
        epochs: of each run.
        root: of the data, None for that of the run.
        more: further arguments of `fit`.
    """

    owner: RunFolder
    source: Path
    checkpoint: dict[str, Any]
    epochs: int
    root: str | None
    more: list[str]

    def accuracy(self, name: str, net: nn.Module, masks: Masks | None) -> float | None:
        """The best validation accuracy of a run, which is begun, gone on with, or has ended; None if it failed."""
        made_of = f"{file_digest(self.source)} {self.root} {self.more}"
        name = f"{self.owner.run}-{name}-{self.epochs}ep-{sha256(made_of.encode()).hexdigest()[:8]}"
        group = f"{self.owner.name}-curves"
        folder = RunFolder(self.owner.path.parent.parent / group / name)
        row = read_row(folder.path)
        if row is None or row["status"] not in ("finished", "failed"):
            pruned = folder.path.parent / f"{name}.ckpt"
            save(net, pruned, masks=masks, about={k: self.checkpoint[CHECKPOINT_KEY][k] for k in ABOUT})
            given = [f"--model.init_from={pruned}", f"--trainer.max_epochs={self.epochs}"]
            # One process's: Lightning would start this very command again for a second device.
            given += [f"--name={group}", f"--run={name}", "--trainer.devices=1", "--trainer.strategy=auto"]
            given += [f"--data.root={self.root}"] if self.root else []
            if folder.last.is_file():
                given.append("--ckpt_path=last")
            elif folder.path.is_dir():
                rmtree(folder.path)  # it was cut off before its first checkpoint
            try:
                trainer.run("fit", ["--config", str(self.owner.config), *given, *self.more])
            except RunError as error:
                print(f"curves: {name} failed: {error}", file=sys.stderr)
            row = read_row(folder.path)
        return row["val_accuracy"] if row and row["status"] == "finished" else None


def _line(point: dict[str, Any]) -> str:
    tuned = "" if point["fine_tuned"] is None else f"  fine-tuned {point['fine_tuned']:.4f}"
    what = f"{point['method']:<9} {point['fraction']:5.2f}  accuracy {point['accuracy']:.4f}{tuned}"
    return f"{what}  {point['nonzero_parameters']:,} of {point['parameters']:,} parameters not 0"


def _drawn(points: list[dict[str, Any]], out: Path) -> list[Path]:
    """The figure beside the CSV, with document 000's points; nothing without the extra `report`."""
    try:
        from smallnets.report.figures import save as save_figure
        from smallnets.report.one_shot import OneShotFigure
    except ModuleNotFoundError:
        print("curves: no figure: pip install 'smallnets[report]'", file=sys.stderr)
        return []
    return save_figure(OneShotFigure(points), out.with_name(f"{out.stem}-figure"))


def _chosen_methods(text: str) -> list[Any]:
    methods = text.split(",")
    for method in methods:
        if method not in METHODS:
            raise UserError(f"smallnets curves: --methods are of {', '.join(METHODS)}, not {method!r}")
    return methods


def _chosen_fractions(text: str) -> list[float]:
    try:
        fractions = [float(each) for each in text.split(",")]
    except ValueError:
        fractions = [-1.0]
    if not all(0 <= each <= 1 for each in fractions):
        raise UserError(f"smallnets curves: --fractions are shares to remove in 0..1, got {text!r}")
    return fractions


def _write(path: Path, points: list[dict[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(points)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text.getvalue())
