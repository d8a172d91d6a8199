"""`smallnets score`: a checkpoint by the two scores for small networks, and the bytes it takes in each form."""

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from smallnets.compress.export import prepared
from smallnets.compress.subject import Subject, read_subject
from smallnets.measure import Counts, count
from smallnets.measure.memory import memory
from smallnets.measure.micronet import COURSE_OPERATIONS, COURSE_PARAMETERS, course_score, micronet_score
from smallnets.measure.sparse import stored_forms
from smallnets.surgery import FakeQuantized
from smallnets.verbs.arguments import Parser


def _parser() -> Parser:
    parser = Parser(
        prog="smallnets score",
        description="Scores the network of a checkpoint as it stands: document 001's course score, and the rules of the"
        " MicroNet Challenge 2019 (lower is better); bytes in each form; memory of one inference.",
    )
    parser.add_argument("checkpoint", metavar="CKPT")
    default = "1 to 32 (default: 32; 8 for a network that was trained so)"
    parser.add_argument("--weight_bits", type=int, metavar="N", help=default)
    parser.add_argument("--activation_bits", type=int, metavar="N", help=default)
    parser.add_argument(
        "--layers", action="store_true", help="layer by layer: bytes in each form, MicroNet's storage (32-bit values)"
        " and operations, activations held while it runs (bytes)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="one object, with the layers")
    return parser


def run(argv: Sequence[str]) -> int:
    """`smallnets score CKPT [--weight_bits N] [--activation_bits N] [--layers] [--json]`: prints the scores."""
    options = _parser().parse(argv)
    if options is None:
        return 0
    found = scores(read_subject(options.checkpoint), options.weight_bits, options.activation_bits)
    print(json.dumps(found, indent=1) if options.json else "\n".join(_lines(found, options.layers)))
    return 0


def course_scores(net: nn.Module, counts: Counts, weight_bits: int, activation_bits: int) -> dict[str, float]:
    """Both versions of the course's score for `net`, as it stands: nothing structured is discounted a second time.

    P_u, the share of parameters that masks have set to 0, is that of zeros in weights of two and more dimensions: a
    BatchNorm's bias that is 0 since its birth was pruned by nobody.
    """
    weights = [each for each in net.parameters() if each.requires_grad and each.dim() >= 2]
    zeros = sum(each.numel() - int(torch.count_nonzero(each)) for each in weights)
    share = zeros / counts.parameters if counts.parameters else 0.0
    return {
        baseline: course_score(
            0.0,
            share,
            weight_bits,
            activation_bits,
            counts.parameters,
            counts.macs,
            baseline,  # type: ignore[arg-type]
        )
        for baseline in COURSE_OPERATIONS
    }


def scores(subject: Subject, weight_bits: int | None = None, activation_bits: int | None = None) -> dict[str, Any]:
    """Scores, forms and memory as plain data; forms, memory and MicroNet's score are those of the folded network.

    Bits that are not given are those of the network's training: 8 after quantisation-aware training, else 32.
    """
    size, channels = subject.image_size, subject.in_channels
    trained = 8 if isinstance(subject.net, FakeQuantized) else 32
    weight_bits = trained if weight_bits is None else weight_bits
    activation_bits = trained if activation_bits is None else activation_bits
    stored = subject.stored
    counts = count(stored, size, channels)
    folded = prepared(stored)
    bits = (weight_bits, activation_bits)
    return {
        "name": subject.name,
        "weight_bits": weight_bits,
        "activation_bits": activation_bits,
        "parameters": counts.parameters,
        "nonzero_parameters": counts.nonzero_parameters,
        "macs": counts.macs,
        "course": course_scores(stored, counts, *bits),
        "micronet": micronet_score(folded, size, channels, *bits).plain(),
        "forms": stored_forms(folded, size, channels).plain(),
        "memory": memory(folded, size, channels).plain(),
    }


# Of document 001's two terms: what each counts, and against what.
CONVENTIONS = (
    f"parameters over {COURSE_PARAMETERS:.1e} (half of ResNet-18's); MACs over"
    f" {COURSE_OPERATIONS['published']:.1e} (published: its multiplications, halved, and additions) or"
    f" {COURSE_OPERATIONS['corrected']:.1e} (corrected: half of its MACs)"
)


def _lines(found: dict[str, Any], layers: bool) -> list[str]:
    micronet, forms, held = found["micronet"], found["forms"], found["memory"]
    course = found["course"]
    lines = [
        f"{found['name']}: {found['parameters']:,} parameters, {found['nonzero_parameters']:,} nonzero,"
        f" {found['macs']:,} MACs; weights of {found['weight_bits']} bits, activations of {found['activation_bits']}",
        f"course score        {course['published']:.4f} (published baseline), {course['corrected']:.4f} (corrected)",
        f"its two terms       {CONVENTIONS}",
        f"MicroNet 2019 score {micronet['score']:.4f}: {micronet['storage']:,.0f} values of 32 bits,"
        f" {micronet['multiplications']:,.0f} multiplications, {micronet['additions']:,.0f} additions",
        "bytes               " + ", ".join(f"{k} {forms[k]:,}" for k in _FORMS),
        f"effective MACs      {forms['effective_macs']:,} (of those, none has a weight of 0)",
        f"memory              activations {held['activations_fp32']:,} bytes fp32, {held['activations_int8']:,} int8,"
        f" most at {held['peak'] or 'the network itself'}",
    ]
    if micronet["uncounted"]:
        lines.append(f"not counted         {', '.join(micronet['uncounted'])}")
    if layers:
        lines += ["", *_table(found)]
    return lines


_FORMS = ("fp32", "fp32_sparse", "fp16", "int8", "int8_sparse")


def _table(found: dict[str, Any]) -> list[str]:
    held = {layer["name"]: layer["elements"] for layer in found["memory"]["layers"]}
    work = {layer["name"]: layer for layer in found["micronet"]["layers"]}
    forms = found["forms"]["layers"]
    lines = [
        ["layer", "fp32", "sparse", "fp16", "int8", "effective MACs", "storage", "operations", "activations fp32",
         "activations int8"],
    ]  # fmt: skip
    # A layer without numbers of its own (ReLU, a sum) takes time and memory too.
    for name in dict.fromkeys((*forms, *work, *held)):
        bytes_of, score = forms.get(name, {}), work.get(name, {})
        values = [bytes_of.get(k, 0) for k in ("fp32", "fp32_sparse", "fp16", "int8", "effective_macs")]
        operations = score.get("multiplications", 0) + score.get("additions", 0)
        values += [round(score.get("storage", 0)), round(operations), 4 * held.get(name, 0), held.get(name, 0)]
        lines.append([name or found["name"], *(f"{value:,}" for value in values)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
