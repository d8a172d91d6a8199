"""`smallnets export`: a checkpoint as a file for a device, proved to agree with the network, with a card beside it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, Namespace

from smallnets.bench.machine import describe_machine
from smallnets.compress.card import Facts, card
from smallnets.compress.export import DTYPES, prepared, require_trained, to_file
from smallnets.compress.on_test import require_countable
from smallnets.compress.runtime import FORMATS, Exported, open_exported, require
from smallnets.compress.subject import Subject, read_subject
from smallnets.config import expand_arguments
from smallnets.data import ImageData
from smallnets.errors import UserError
from smallnets.measure import count
from smallnets.measure.latency import Latency, all_threads, latencies, latency_of, torch_threads
from smallnets.measure.memory import memory
from smallnets.measure.micronet import micronet_score
from smallnets.results.row import write_text
from smallnets.results.run import RunFolder
from smallnets.surgery import FakeQuantized
from smallnets.verbs.messages import as_user_errors, parser_message, short_warnings
from smallnets.verbs.score import course_scores
from smallnets.verbs.verified import COMPARED, Images, Verified, verify

_BITS = {"fp32": 32, "fp16": 16, "bf16": 16, "int8": 8}
_VERIFY = ("logits", "full", "test")
_BATCHES = (1, 32)


def run(argv: Sequence[str]) -> int:
    """Writes the file and FILE.md; leaves neither if the file, in its own runtime, gives other logits (exit 1)."""
    parser = _parser()
    if any(a in ("-h", "--help") for a in argv):
        parser.print_help()
        return 0
    with short_warnings(), as_user_errors():
        options = _options(parser, list(argv))
        out = _checked(options)
        subject = read_subject(options.checkpoint)
        images = Images(parser, options, subject)
        trained = isinstance(subject.net, FakeQuantized)
        if trained:
            require_trained(options.format, options.dtype, options.checkpoint)
        calibrates = options.dtype == "int8" and not trained
        calibration = images.of("train", options.calibration)[0] if calibrates else None
        notes = {"net": subject.name, "mean": str(list(subject.mean)), "std": str(list(subject.std))}
        notes["classes"] = ", ".join(subject.logit_names)
        page = out.with_name(out.name + ".md")
        with _beside(out) as part:
            to_file(subject.net, part, subject.shape, options.format, options.dtype, calibration, notes)
            verified = verify(subject, part, options, images, out.name)
            facts = _facts(subject, part, options, verified)
            write_text(page, card(subject.with_row_of_now(), facts, out))
            part.replace(out)
        _say(out, page, facts)
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="smallnets export", exit_on_error=False, description=run.__doc__)
    parser.add_argument("checkpoint", type=str, metavar="CKPT", help="a checkpoint that a run wrote")
    parser.add_argument("--format", type=str, default="onnx", help=f"one of {', '.join(FORMATS)} (default: onnx)")
    parser.add_argument(
        "--output", type=str, default="", metavar="FILE",
        help=f"ends in {', '.join(FORMATS.values())} (default: NAME-RUN.SUFFIX here, by the checkpoint's run; without"
        " one, by the checkpoint)",
    )  # fmt: skip
    allowed = "; ".join(f"{name}: {', '.join(of)}" for name, of in DTYPES.items())
    parser.add_argument("--dtype", type=str, default="fp32", help=f"of weights and arithmetic ({allowed})")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    parser.add_argument(
        "--verify", type=str, default="logits", metavar="|".join(_VERIFY),
        help=f"logits: of {COMPARED} images; full: of all validation images, and the accuracy of file and network; on"
        " the test images too where `smallnets test` has read them for this checkpoint; test: like full, and reads the"
        " test set if nobody has, for network and file at once, which the run's row counts",
    )  # fmt: skip
    parser.add_argument(
        "--calibration",
        type=int,
        default=512,
        metavar="N",
        help="training images for int8; a network that was trained so has its ranges",
    )
    parser.add_argument("--calls", type=int, default=50, metavar="N", help="timed calls for each latency; 0: none")
    parser.add_argument("--licence", type=str | None, default=None, help="of the weights, for the card")
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="a config of `fit`; only its data are read")
    parser.add_subclass_arguments(ImageData, "data", required=False, help="by default those of the checkpoint's run")
    return parser


def _options(parser: ArgumentParser, argv: list[str]) -> Namespace:
    """The command line, over the configuration of the run that the checkpoint belongs to."""

    def data_alone(config: dict[str, Any]) -> dict[str, Any]:
        return {"data": config["data"]} if config.get("data") else {}

    try:
        given = [a for a in argv if a.endswith(".ckpt") and not a.startswith("-")]
        owner = RunFolder.owning(Path(given[0])) if given else None
        config = ["--config", str(owner.config)] if owner else []
        return parser.parse_args(expand_arguments([*config, *argv], keep=data_alone))
    except ArgumentError as error:
        raise UserError(parser_message(str(error))) from error


def _checked(options: Namespace) -> Path:
    """The output's path; UserError for anything that can be known to fail before the work begins."""
    if options.format not in FORMATS:
        raise UserError(f"--format is one of {', '.join(FORMATS)}, got {options.format!r}")
    if options.dtype not in DTYPES[options.format]:
        raise UserError(
            f"--dtype of {options.format} is one of {', '.join(DTYPES[options.format])}, got {options.dtype!r}"
        )
    if options.verify not in _VERIFY:
        raise UserError(f"--verify is {', '.join(_VERIFY[:-1])} or {_VERIFY[-1]}, got {options.verify!r}")
    if options.dtype == "int8" and options.calibration < 1:
        raise UserError(f"--calibration: int8 needs at least one training image, got {options.calibration}")
    suffix = FORMATS[options.format]
    # A shell leaves the ~ of --output=~/net.onnx as it is.
    out = Path(options.output).expanduser() if options.output else Path(_default_stem(options.checkpoint) + suffix)
    if out.suffix != suffix:
        raise UserError(f"--output: a file of {options.format} ends in {suffix}, got {options.output}")
    if options.verify == "test":
        require_countable(Path(options.checkpoint))
    if not out.parent.is_dir():
        raise UserError(f"--output {out}: there is no folder {out.parent}")
    for path in (out, out.with_name(out.name + ".md")):
        if path.exists() and not options.overwrite:
            raise UserError(f"{path} is there already; --overwrite replaces it")
    require(options.format)
    return out


def _default_stem(checkpoint: str) -> str:
    """The run's name and number, or the name of a checkpoint that lies in no run."""
    owner = RunFolder.owning(Path(checkpoint).expanduser())
    return f"{owner.name}-{owner.run}" if owner else Path(checkpoint).stem


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A name beside `out` with its suffix; whatever lies there at the end is gone."""
    part = out.with_name(f".{out.stem}.unverified{out.suffix}")
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)


def _facts(subject: Subject, part: Path, options: Namespace, verified: Verified) -> Facts:
    size, channels, bits = subject.image_size, subject.in_channels, _BITS[options.dtype]
    stored = subject.stored
    counts, folded = count(stored, size, channels), prepared(stored)
    machine = describe_machine(torch.device("cpu"))
    return Facts(
        format=options.format,
        dtype=options.dtype,
        size=part.stat().st_size,
        counts=counts,
        memory=memory(folded, size, channels),
        course=course_scores(stored, counts, bits, bits),
        micronet=micronet_score(folded, size, channels, bits, bits),
        most=open_exported(part).most,
        agreement=verified.agreement,
        compared_on=verified.words,
        accuracies=verified.accuracies,
        no_test=verified.no_test,
        latencies=_latencies(subject, part, options.calls) if options.calls > 0 else (),
        machine=f"{machine['cpu']}, {machine['cores']} cores, load {machine['load']}, torch {torch.__version__}",
        licence=options.licence,
    )


def _latencies(subject: Subject, part: Path, calls: int) -> list[tuple[int, str, Latency]]:
    """Each batch size on one thread and on all, or as the runtime likes where it cannot be told."""
    found = []
    for threads in dict.fromkeys((1, all_threads())):
        file: Exported = open_exported(part, threads)
        own = file.format == "executorch"
        with torch_threads(threads):
            for batch in _BATCHES:
                images = subject.made_up_images(batch)
                seconds = latencies({"file": partial(file, images)}, calls)["file"]
                found.append((batch, "the runtime's own" if own else str(threads), latency_of(seconds)))
        if own:
            break
    return found


def _say(out: Path, page: Path, facts: Facts) -> None:
    agreement = facts.agreement
    print(
        f"{out}: {facts.format} {facts.dtype}, {facts.size:,} bytes; relative error of logits {agreement.relative:.2g}"
        f" on {agreement.images} {facts.compared_on}"
    )
    for part, values in facts.accuracies.items():
        for name, value in values.items():
            print(f"{part} accuracy of the {name}: {value:.4f}")
    if facts.no_test:
        print(f"test images not compared: {facts.no_test}")
    for batch, threads, latency in facts.latencies:
        print(f"batch {batch}, threads {threads}: {1e3 * latency.median:.3g} ms (95 %: {1e3 * latency.p95:.3g} ms)")
    print(f"card: {page}", flush=True)
