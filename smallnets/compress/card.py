"""The model card: a page beside an exported file that says what it is, what it needs and what it does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smallnets.compress.subject import Subject
from smallnets.compress.verify import TOLERANCE, Agreement
from smallnets.measure import Counts
from smallnets.measure.latency import Latency
from smallnets.measure.memory import Memory
from smallnets.measure.micronet import MicroNet
from smallnets.surgery import FakeQuantized

UNKNOWN = "not known"
NOT_MEASURED = "not measured"


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
        val_accuracy: over the validation split, of the "network" and the "file"; empty where it was not measured.
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
    val_accuracy: Mapping[str, float] = field(default_factory=dict)
    latencies: Sequence[tuple[int, str, Latency]] = ()
    machine: str = UNKNOWN
    licence: str | None = None


def card(subject: Subject, facts: Facts, file: Path) -> str:
    """The page, in Markdown, for `file`: a value that nobody measured or stated is said to be so."""
    row = subject.row or {}
    counts, memory = facts.counts, facts.memory
    c, h, w = subject.shape
    channels = {1: "grey", 3: "red, green, blue"}.get(c, str(c))
    computed = "as trained, with int8 numbers" if isinstance(subject.net, FakeQuantized) else "in fp32"
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
        f"- classes: {', '.join(subject.classes) or UNKNOWN}",
        "",
        "## Use",
        "",
        "```python",
        usage(subject, facts.format, file.name),
        "```",
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
                ("validation accuracy, this file", _share(facts.val_accuracy.get("file"))),
                (f"validation accuracy, network {computed}", _share(facts.val_accuracy.get("network"))),
                ("validation accuracy, the run's row", _share(row.get("val_accuracy"))),
                (f"test accuracy, the run's row (of the network {computed})", _share(row.get("test_accuracy"))),
            ],
        ),
        "",
        f"Logits of this file and of the network, on {facts.agreement.images} {facts.compared_on}: relative error"
        f" {facts.agreement.relative:.2g} (allowed: {TOLERANCE[facts.dtype]:g}), largest difference"
        f" {facts.agreement.largest:.2g}, same class for {facts.agreement.same_class:.1%}.",
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


def usage(subject: Subject, format: str, name: str) -> str:
    """Ten lines of Python that print the class of `image.png`, run beside the file."""
    mode, size = ("L" if subject.in_channels == 1 else "RGB"), subject.image_size
    mean, std = ([round(value, 7) for value in values] for values in (subject.mean, subject.std))
    grey = "[..., None]" if subject.in_channels == 1 else ""
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
images = np.ascontiguousarray(((pixels - mean) / std).transpose(2, 0, 1)[None])
logits = {call}
classes = {list(subject.classes) or "range(logits.shape[1])"}
print(classes[logits[0].argmax()])"""


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
