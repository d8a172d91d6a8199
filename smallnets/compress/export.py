"""`to_file`: a network as a file for a runtime."""

import copy
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from smallnets.compress.quantize import pt2e_int8, require_images, static_int8
from smallnets.compress.runtime import FORMATS, in_parts, onnx_call, quiet, require
from smallnets.compress.trained import trained_int8
from smallnets.compress.verify import compare_logits
from smallnets.errors import RunError, UserError
from smallnets.surgery.fake_quantize import FakeQuantized
from smallnets.surgery.fold import fold

# What each format's own runtime can hold.
DTYPES: dict[str, tuple[str, ...]] = {
    "onnx": ("fp32", "fp16", "int8"),
    "pt2": ("fp32", "fp16", "bf16"),
    "executorch": ("fp32", "int8"),
}
_TORCH = {"fp16": torch.float16, "bf16": torch.bfloat16}
# Calibration images on which the graph that is about to be rounded is held against the network.
_CHECKED = 16
# ExecuTorch plans its memory once, for the largest batch.
MOST_IMAGES = 64


class InPrecision(nn.Module):
    """A network of another precision behind float32 images and logits.

    The same module with its tensors cast, and its images too: nothing is written anew, so no shape can change.
    (Document 001's half-precision network was another network, flattened where this one averages.)
    """

    def __init__(self, net: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.net = net.to(dtype)
        self.dtype = dtype

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images.to(self.dtype)).float()


def prepared(net: nn.Module, dtype: str = "fp32") -> nn.Module:
    """A copy of `net` that is ready to be exported: eval mode, on the CPU, in `dtype`, and folded (`surgery.fold`).

    With "int8" the copy stays in float32: its numbers are chosen when the file is written.
    """
    bare = copy.deepcopy(getattr(net, "_orig_mod", net)).cpu().eval().requires_grad_(False)
    # ExecuTorch refuses weights that training left in channels_last.
    bare = bare.to(memory_format=torch.contiguous_format)
    # A forward that torch.fx cannot follow stays as it is: the exporters may, and write its BatchNorm too.
    with suppress(UserError):
        bare = fold(bare)
    return InPrecision(bare, _TORCH[dtype]).eval() if dtype in _TORCH else bare


def require_trained(format: str, dtype: str, name: str) -> None:
    """UserError for a form in which a network of quantisation-aware training would not compute what it learned."""
    if (format, dtype) != ("onnx", "int8"):
        raise UserError(
            f"{name} was trained with int8 numbers (QuantAwareTraining) and is written as onnx, int8; asked for was"
            f" {format}, {dtype}"
        )


def to_file(
    net: nn.Module,
    path: str | Path,
    image_shape: tuple[int, int, int],
    format: str = "onnx",
    dtype: str = "fp32",
    calibration: Tensor | None = None,
    notes: Mapping[str, str] | None = None,
) -> Path:
    """Writes `net` to `path` as a file that maps float32 images (N, channels, rows, columns) to logits, for any N.

    BatchNorm is folded into the convolutions; zeros that masks left are stored as the weights they are. The file is
    written beside its place and renamed. `net` is not changed. Before "int8" rounds with `calibration`, the float graph
    is held against `net` on some of these images, within the tolerance of fp32: a wrong graph is told from rounding.

    Args:
        net: maps images to logits; in any mode, on any device. A `FakeQuantized` is written as onnx int8 alone: with
            the numbers of its training, and no `calibration`.
        path: of the file.
        image_shape: channels, rows, columns.
        format: "onnx" (ONNX Runtime), "pt2" (torch.export) or "executorch" (ExecuTorch with XNNPACK; N at
            most 64, for transformers 1: `open_exported` passes larger batches in parts).
        dtype: of the weights and of the arithmetic: "fp32"; "fp16" (onnx, pt2); "bf16" (pt2); "int8" (onnx,
            executorch): static, one scale for each output channel of a weight, ranges of activations from
            `calibration`.
        calibration: for "int8", training images without augmentation, normalised, (N, channels, rows, columns).
        notes: plain facts that are kept in the file, where its format can (onnx, pt2).

    Raises:
        UserError: an unknown format or dtype, one that a `FakeQuantized` is not written in, no calibration images, or a
            runtime that is not installed.
        RunError: the network has an operator that the format lacks, or the graph that is to be rounded computes
            something else.
    """
    if format not in FORMATS:
        raise UserError(f"no export format {format!r}; allowed: {', '.join(FORMATS)}")
    if dtype not in DTYPES[format]:
        raise UserError(f"{format} is written in {', '.join(DTYPES[format])}, not {dtype!r}")
    path = Path(path)
    trained = isinstance(net, FakeQuantized)
    if trained:
        require_trained(format, dtype, type(net.net).__name__)
        calibration = None
    elif dtype == "int8":
        calibration = require_images(calibration, image_shape)
    require(format)
    ready = trained_int8(net) if isinstance(net, FakeQuantized) else prepared(net, dtype)
    example = torch.zeros(2, *image_shape) if calibration is None else calibration[:2].clone()
    if len(example) < 2:  # torch.export takes a batch of one for a constant
        example = example.repeat(2, 1, 1, 1)
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{FORMATS[format]}")
    try:
        with quiet(), torch.no_grad():
            rounding = None
            if dtype == "int8" and calibration is not None:
                rounding = _Rounding(net, path.name, calibration)
            _WRITERS[format](ready, example, part, rounding, dict(notes or {}))
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except (UserError, RunError, OSError, KeyboardInterrupt):
        raise
    except Exception as error:  # whatever exporters and a user's network raise
        raise RunError(f"{type(net).__name__} cannot be written as {format} {dtype}: {_reason(error)}") from error
    finally:
        part.unlink(missing_ok=True)
    return path


@dataclass(frozen=True)
class _Rounding:
    """What int8 needs: the network itself, the file's name, and calibration images."""

    net: nn.Module
    name: str
    images: Tensor

    def check(self, call: Callable[[Tensor], Tensor]) -> None:
        """RunError unless the float graph computes what the network computes."""
        images = self.images[:_CHECKED]
        compare_logits(self.net, call, images).require("fp32", f"{self.name}, before its numbers are rounded,")


def _write_onnx(net: nn.Module, example: Tensor, part: Path, rounding: _Rounding | None, notes: dict[str, str]) -> None:
    batch = {0: torch.export.Dim("batch")}
    program = torch.onnx.export(
        net, (example,), dynamo=True, dynamic_shapes=(batch,), input_names=["images"], output_names=["logits"],
        verbose=False,
    )  # fmt: skip
    assert program is not None
    model = program.model_proto
    for item in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        # Where in which file of this machine each operator was called; a tenth of a small network's file.
        del item.metadata_props[:]
        item.doc_string = ""
    if rounding is not None:
        rounding.check(onnx_call(model.SerializeToString()))
        model = static_int8(model, rounding.images, part.parent)
    del model.metadata_props[:]
    for key, value in notes.items():
        model.metadata_props.add(key=key, value=value)
    part.write_bytes(model.SerializeToString())


def _write_pt2(net: nn.Module, example: Tensor, part: Path, rounding: _Rounding | None, notes: dict[str, str]) -> None:
    program = torch.export.export(net, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for node in program.graph.nodes:
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node"):
            node.meta.pop(key, None)
    torch.export.save(program, part, extra_files=notes)


def _write_executorch(
    net: nn.Module, example: Tensor, part: Path, rounding: _Rounding | None, notes: dict[str, str]
) -> None:
    any_batch = ({0: torch.export.Dim("batch", max=MOST_IMAGES)},)
    try:
        part.write_bytes(_executorch(net, example, any_batch, rounding))
    except Exception as error:
        # ExecuTorch plans views once, and refuses those (a transformer's) whose sizes follow the batch.
        if "_ViewSpec" not in str(error):
            raise
        part.write_bytes(_executorch(net, example[:1], None, rounding))


def _executorch(net: nn.Module, example: Tensor, shapes: Any, rounding: _Rounding | None) -> bytes:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    if rounding is not None:
        captured = torch.export.export(net, (example,), dynamic_shapes=shapes).module()
        rounding.check(in_parts(captured, MOST_IMAGES if shapes else 1))
        net = pt2e_int8(captured, rounding.images, **({} if shapes else {"batch": 1}))
    program = torch.export.export(net, (example,), dynamic_shapes=shapes)
    return to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch().buffer


_Writer = Callable[[nn.Module, Tensor, Path, _Rounding | None, dict[str, str]], None]
_WRITERS: dict[str, _Writer] = {"onnx": _write_onnx, "pt2": _write_pt2, "executorch": _write_executorch}


def _reason(error: BaseException) -> str:
    """The innermost cause in one line, with the operator that is lacking where it is named."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    texts = [" ".join(str(each).split()) for each in chain]
    for text in texts:
        if found := re.search(r"No (?:ONNX function|decompositions?) [^']*'([\w.:]+)'", text):
            return f"it has no operator for {found[1]}"
        # ExecuTorch, when it checks the program, and where only its last step fails.
        if found := re.search(r"Operator torch\._ops\.([\w.]+) is not in Core ATen", text):
            return f"it has no operator for {found[1]}"
        if found := re.search(r"Missing out variants: \{'([\w.:]+)'", text):
            return f"it has no operator for {found[1]}"
    return f"{type(chain[-1]).__name__}: {texts[-1][:300]}"
