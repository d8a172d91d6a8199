"""`open_exported`: an exported file in its own runtime."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smallnets.errors import RunError, UserError

FORMATS = {"onnx": ".onnx", "pt2": ".pt2", "executorch": ".pte"}
# Format -> the packages it needs, and the extra that installs them.
_NEEDS = {
    "onnx": (("onnx", "onnxscript", "onnxruntime"), "export"),
    "pt2": ((), ""),
    "executorch": (("executorch", "torchao"), "executorch"),
}


@dataclass(frozen=True)
class Exported:
    """A file that maps float32 images (N, channels, rows, columns) to float32 logits (N, classes).

    Attributes:
        path: of the file.
        format: "onnx", "pt2" or "executorch".
        shape: channels, rows and columns of one image.
        most: images at once; None for any number.
    """

    path: Path
    format: str
    shape: tuple[int, ...]
    most: int | None
    _run: Callable[[Tensor], Tensor]

    def __call__(self, images: Tensor) -> Tensor:
        """Logits of normalised images, on the CPU; UserError for images of another shape."""
        if images.dim() != 4 or tuple(images.shape[1:]) != self.shape or not len(images):
            takes = ", ".join(map(str, self.shape))
            raise UserError(f"{self.path.name} takes images of (N, {takes}), got {tuple(images.shape)}")
        images = images.detach().float().cpu().contiguous()
        return in_parts(self._run, self.most or len(images))(images)


def in_parts(call: Callable[[Tensor], Tensor], most: int) -> Callable[[Tensor], Tensor]:
    """A call that takes at most so many images at once, for any number of them."""
    return lambda images: torch.cat([call(part) for part in images.split(most)])


def require(format: str) -> None:
    """UserError, with the extra to install, unless the packages that a format needs are there."""
    packages, extra = _NEEDS[format]
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise UserError(f"{format} needs {', '.join(missing)}: pip install 'smallnets[{extra}]'")


@contextmanager
def quiet() -> Iterator[None]:
    """Without the notes of exporters and runtimes on themselves; their errors are raised as ever."""
    names = (
        "torch.onnx", "torch.export", "torch._export", "torch.utils._pytree", "onnxscript", "executorch", "torchao",
        "root",
    )  # fmt: skip
    before = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def open_exported(path: str | Path, threads: int | None = None) -> Exported:
    """Opens an exported file (.onnx, .pt2 or .pte) in its own runtime on the CPU.

    Args:
        path: the file.
        threads: for ONNX Runtime, by default as many as it likes; a `.pt2` file runs on torch's, a `.pte` file on
            ExecuTorch's own.

    Raises:
        UserError: no such file, another suffix, or a runtime that is not installed.
        RunError: the runtime refuses the file.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no exported file at {path}")
    format = next((name for name, suffix in FORMATS.items() if suffix == path.suffix), None)
    if format is None:
        raise UserError(f"{path.name}: an exported file ends in {', '.join(FORMATS.values())}")
    require(format)
    try:
        with quiet():
            return _OPENERS[format](path, threads)
    except Exception as error:  # each runtime has its own
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise RunError(f"{path} is not a file that the {format} runtime reads: {reason[:300]}") from error


def _onnx_session(model: str | bytes, threads: int | None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or 0
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def onnx_call(model: bytes) -> Callable[[Tensor], Tensor]:
    """The bytes of an ONNX model in ONNX Runtime: images -> logits."""
    return _call_of(_onnx_session(model, None))


def _call_of(session: Any) -> Callable[[Tensor], Tensor]:
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0])


def _open_onnx(path: Path, threads: int | None) -> Exported:
    session = _onnx_session(str(path), threads)
    return Exported(path, "onnx", tuple(session.get_inputs()[0].shape[1:]), None, _call_of(session))


def _open_pt2(path: Path, threads: int | None) -> Exported:
    program = torch.export.load(path)
    name = program.graph_signature.user_inputs[0]
    entry: Any = next(node for node in program.graph.nodes if node.name == name)
    module = program.module()

    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            return module(images)

    return Exported(path, "pt2", tuple(int(n) for n in entry.meta["val"].shape[1:]), None, run)


def _open_executorch(path: Path, threads: int | None) -> Exported:
    from executorch.runtime import Runtime, Verification

    method = Runtime.get().load_program(path, verification=Verification.Minimal).load_method("forward")
    most, *shape = method.metadata.input_tensor_meta(0).sizes()

    def run(images: Tensor) -> Tensor:
        # The runtime's output lies in its own memory, which the next call writes over.
        return method.execute([images])[0].clone()

    return Exported(path, "executorch", tuple(shape), most, run)


_OPENERS = {"onnx": _open_onnx, "pt2": _open_pt2, "executorch": _open_executorch}
