"""int8: weights with one scale for each output channel, activations with ranges from calibration images.

ONNX files are quantised by ONNX Runtime's own static quantiser, ExecuTorch files by torchao's PT2E flow with
ExecuTorch's XNNPACK quantiser: in each case the numbers are chosen by the runtime that will compute with them, so that
the operators it fuses are the ones that were calibrated.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from smallnets.errors import UserError

_BATCH = 32


def require_images(images: Tensor | None, shape: tuple[int, int, int]) -> Tensor:
    """The calibration images; UserError when there are none or they are of another shape than (N, *shape)."""
    if images is None or not len(images):
        raise UserError("int8 needs calibration images: at least one training image, got none")
    if images.dim() != 4 or tuple(images.shape[1:]) != tuple(shape):
        raise UserError(f"calibration images are of {('N', *shape)}, got {tuple(images.shape)}")
    return images.float().cpu()


class _Reader:
    """Calibration images in batches, as ONNX Runtime's quantiser asks for them."""

    def __init__(self, images: Tensor) -> None:
        self._batches: Iterator[Tensor] = iter(images.split(_BATCH))

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"images": batch.numpy()}


def static_int8(model: Any, images: Tensor, folder: Path) -> Any:
    """An ONNX model (input `images`) -> the same with int8 weights and activations (QDQ).

    Weights are symmetric with a scale for each output channel, activations have one range each, from the smallest to
    the largest value that the calibration images (N, channels, rows, columns; normalised) give. `folder` is where the
    quantiser may write its files meanwhile.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    CalibrationDataReader.register(_Reader)
    with tempfile.TemporaryDirectory(dir=folder) as inner:
        whole, clean, small = (Path(inner) / name for name in ("fp32.onnx", "clean.onnx", "int8.onnx"))
        onnx.save(model, whole)
        quant_pre_process(str(whole), str(clean), skip_symbolic_shape=True)
        quantize_static(
            str(clean),
            str(small),
            _Reader(images),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(small)


def pt2e_int8(captured: nn.Module, images: Tensor, batch: int = _BATCH) -> nn.Module:
    """The module of an exported program -> the same with int8 weights and activations for ExecuTorch's XNNPACK backend.

    `batch` is how many of the calibration images it takes at once.
    """
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    observed = prepare_pt2e(captured, quantizer)
    for part in images.split(batch):
        observed(part)
    return convert_pt2e(observed)
