"""The model card: a page beside an exported file that says what it is, what it needs and what it does."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smallnets.compress.subject import Subject
from smallnets.compress.verify import SAME_CLASS, TOLERANCE, Agreement
from smallnets.layers.quaternion_blocks import LUMA
from smallnets.measure import Counts
from smallnets.measure.latency import Latency
from smallnets.measure.memory import Memory
from smallnets.measure.micronet import MicroNet
from smallnets.results.predictions import NONE
from smallnets.surgery import FakeQuantized

UNKNOWN = "not known"
NOT_MEASURED = "not measured"
NOT_TOLD = "the checkpoint does not tell"
_CHANNELS: dict[str | None, str] = {
    "grey": "grey",
    "colour": "red, green, blue",
    "gray": f"red, green, blue, and gray, {LUMA[0]} R + {LUMA[1]} G + {LUMA[2]} B of these after normalisation",
}


@dataclass(frozen=True)
class Facts:
    """What was found out about an exported file.

    Attributes:
        format, dtype: of the file.
        size: bytes on disk.
        counts: of the checkpoint's network.
        memory: of the network as exported, folded.
        course, micronet: its scores.
        most: images at once; None for any number.
        agreement: with the network's logits.
        compared_on: what images those were, in words.
        accuracies: over the "validation" and the "test" images, each of the "network" and the "file"; without a part
            that was not measured.
        no_test: why the test images were not; None where they were, or nobody asked.
        latencies: ((batch, threads, figures), ...), `threads` in words.
        machine: name of the processor and versions, in words.
        licence: of the weights; None where nobody said.
    """

    format: str
    dtype: str
    size: int
    counts: Counts
    memory: Memory
    course: Mapping[str, float]
    micronet: MicroNet
    most: int | None
    agreement: Agreement
    compared_on: str
    accuracies: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    no_test: str | None = None
    latencies: Sequence[tuple[int, str, Latency]] = ()
    machine: str = UNKNOWN
    licence: str | None = None


def card(subject: Subject, facts: Facts, file: Path) -> str:
    """The page, in Markdown, for `file`: a value that nobody measured or stated is said to be so."""
    row = subject.row or {}
    counts, memory = facts.counts, facts.memory
    c, h, w = subject.shape
    channels = _CHANNELS.get(_lines_for(subject), f"{c}, those of your data")
    lines = usage(subject, facts.format, file.name)
    computed = "as trained, with int8 numbers" if isinstance(subject.net, FakeQuantized) else "in fp32"
    least = f" (at least {SAME_CLASS[facts.dtype]:.0%})" if SAME_CLASS[facts.dtype] else ""
    batch = f"N of 1 to {facts.most}" if facts.most else "any N"
    shown = [
        f"# {file.name}",
        "",
        f"{subject.name} for images of {c} x {h} x {w}, trained on {subject.data or 'data that it does not name'},"
        f" exported as {facts.format}, {facts.dtype}.",
        "",
        "## Input and output",
        "",
        f"- input: float32, (N, {c}, {h}, {w}), {batch}; channels {channels}",
        f"- normalisation: (pixel / 255 - mean) / std, mean {_numbers(subject.mean)}, std {_numbers(subject.std)}",
        "- output: float32 logits, (N, classes), not normalised; the largest is the class",
        f"- classes: {', '.join(subject.classes) or UNKNOWN}{_surplus(subject)}",
        "",
        "## Use",
        "",
        *(["```python", lines, "```"] if lines else [f"Not shown: what the {c} channels of an image are, {NOT_TOLD}."]),
        "",
        "## Counts",
        "",
        *_table(
            ("", "value"),
            [
                ("parameters", f"{counts.parameters:,}"),
                ("nonzero parameters", f"{counts.nonzero_parameters:,}"),
                ("MACs of one image (FLOPs = 2 MACs)", f"{counts.macs:,}"),
                ("size on disk", f"{facts.size:,} bytes"),
                ("activations held at once, fp32 / int8", _pair(memory.activations_fp32, memory.activations_int8)),
                ("weights, fp32 / int8", _pair(memory.weights_fp32, memory.weights_int8)),
                *((f"course score, {name} baseline", f"{value:.4f}") for name, value in facts.course.items()),
                ("MicroNet 2019 score", f"{facts.micronet.score:.4f}"),
            ],
        ),
        "",
        "## Accuracy",
        "",
        *_table(
            ("", "value"),
            [
                *(
                    (f"{part} accuracy, {of}", _share(facts.accuracies.get(part, {}).get(key)))
                    for part in ("validation", "test")
                    for key, of in (("file", "this file"), ("network", f"network {computed}"))
                    if part == "validation" or part in facts.accuracies
                ),
                ("validation accuracy, the run's row", _share(row.get("val_accuracy"))),
                (f"test accuracy, the run's row (of the network {computed})", _share(row.get("test_accuracy"))),
            ],
        ),
        "",
        *([f"The test images were not compared: {facts.no_test}.", ""] if facts.no_test else []),
        f"Logits of this file and of the network, on {facts.agreement.images} {facts.compared_on}: relative error"
        f" {facts.agreement.relative:.2g} (allowed: {TOLERANCE[facts.dtype]:g}), largest difference"
        f" {facts.agreement.largest:.2g}, same class for {facts.agreement.same_class:.1%}{least}.",
        "",
        "## Latency",
        "",
        *_latencies(facts),
        "",
        "## Origin",
        "",
        *_origin(subject, row),
        f"- licence of the weights: {facts.licence or 'not stated'}",
        "",
    ]
    return "\n".join(shown)


def usage(subject: Subject, format: str, name: str) -> str | None:
    """Ten lines of Python that print the class of `image.png`, run beside the file.

    A network of 4 channels whose data are not known takes gray as its fourth, made of the normalised image as
    `layers.AppendGray` makes it. None where what the channels are is not known.
    """
    kind = _lines_for(subject)
    if kind is None:
        return None
    mode, size = ("L" if kind == "grey" else "RGB"), subject.image_size
    mean, std = ([round(value, 7) for value in values] for values in (subject.mean, subject.std))
    grey = "[..., None]" if kind == "grey" else ""
    weights = ", ".join(f"[{each}]" for each in LUMA)
    gray = f"image = np.concatenate([image, image @ np.float32([{weights}])], 2)\n" if kind == "gray" else ""
    classes = json.dumps(subject.classes, ensure_ascii=False) if subject.classes else "range(logits.shape[1])"
    if extra := len(subject.logit_names) - len(subject.classes):
        classes += f' + ["{NONE}"] * {extra}'
    opened, call = {
        "onnx": (
            f'import onnxruntime\n\nrun = onnxruntime.InferenceSession("{name}").run',
            'run(None, {"images": images})[0]',
        ),
        "pt2": (
            f'import torch\n\nrun = torch.export.load("{name}").module()',
            "run(torch.from_numpy(images)).detach().numpy()",
        ),
        "executorch": (
            "import torch\nfrom executorch.runtime import Runtime\n\n"
            f'run = Runtime.get().load_program("{name}").load_method("forward").execute',
            "run([torch.from_numpy(images)])[0].numpy()",
        ),
    }[format]
    return f"""import numpy as np
from PIL import Image
{opened}
mean, std = np.float32({mean or [0.0]}), np.float32({std or [1.0]})
pixels = np.float32(Image.open("image.png").convert("{mode}").resize(({size}, {size}))){grey} / 255
image = (pixels - mean) / std
{gray}images = np.ascontiguousarray(image.transpose(2, 0, 1)[None])
logits = {call}
classes = {classes}
print(classes[logits[0].argmax()])"""


def _surplus(subject: Subject) -> str:
    extra = len(subject.logit_names) - len(subject.classes)
    return f"; {extra} further logits stand for {NONE}" if extra else ""


def _lines_for(subject: Subject) -> str | None:
    """What an image of the network is: "grey", "colour", colour with "gray"; None where nobody knows."""
    if subject.in_channels == 4 and len(subject.mean) != 4:
        return "gray"
    return {1: "grey", 3: "colour"}.get(subject.in_channels)


def _latencies(facts: Facts) -> list[str]:
    if not facts.latencies:
        return [NOT_MEASURED]
    lines = [
        (str(batch), threads, f"{1e3 * each.median:.3g} ms", f"{1e3 * each.p95:.3g} ms", str(each.rounds))
        for batch, threads, each in facts.latencies
    ]
    return [*_table(("batch", "threads", "median", "95th percentile", "calls"), lines), "", f"On {facts.machine}."]


def _origin(subject: Subject, row: Mapping[str, Any]) -> list[str]:
    lines = [f"- checkpoint: {subject.checkpoint.name}"]
    if not row:
        return [*lines, "- training: not known (the checkpoint lies in no run that has ended)"]
    config: dict[str, Any] = row.get("config") or {}
    model = config.get("model") or {}
    optimizer, schedule = (_spec(model.get(key)) for key in ("optimizer", "scheduler"))
    revision, torch = (row.get("git") or {}).get("revision"), (row.get("versions") or {}).get("torch")
    lines += [
        f"- run: {row.get('name')}/{row.get('run')} ({row.get('status')}), {row.get('epochs')} epochs,"
        f" {row.get('steps')} steps, batch {row.get('batch_size')}, seed {row.get('seed')}",
        f"- optimizer: {optimizer}; schedule: {schedule}",
        f"- code: {revision or UNKNOWN}; torch {torch or UNKNOWN}",
        f"- configuration digest: {row.get('config_digest') or UNKNOWN}",
    ]
    return lines


def _spec(value: Any) -> str:
    if not isinstance(value, Mapping):
        return str(value or "none")
    arguments = ", ".join(f"{k}={v}" for k, v in (value.get("init_args") or {}).items() if v not in (None, False))
    return f"{str(value.get('class_path')).rpartition('.')[2]}({arguments})"


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *lines)]


def _numbers(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.6g}" for value in values) + ")" if values else UNKNOWN


def _pair(fp32: int, int8: int) -> str:
    return f"{fp32:,} / {int8:,} bytes"


def _share(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.4f}"
