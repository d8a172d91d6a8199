"""Whether a CPU computes in bfloat16, or only pretends to."""

import platform

import torch


def has_bf16_units() -> bool:
    """Whether this CPU multiplies bfloat16 numbers by itself; True where that is not known.

    Without such units (AVX512-BF16 or AMX on x86, BF16 on ARM) every product is converted to float32 and back, and
    autocast makes a training step slower: 1.8 times for ResNet-20.
    """
    machine = platform.machine().lower()
    if machine in ("x86_64", "amd64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if machine in ("arm64", "aarch64"):
        # Only builds with oneDNN can tell; macOS's may come without.
        return not torch.backends.mkldnn.is_available() or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return True


def slow_precision(device: torch.device, precision: str) -> str | None:
    """What to tell somebody who asked for bfloat16 on a CPU that has no units for it; None otherwise."""
    if device.type != "cpu" or not precision.startswith("bf16") or has_bf16_units():
        return None
    return (
        f"--trainer.precision={precision}: this CPU has no units for bfloat16, which makes training slower, not faster;"
        " leave it at 32-true here"
    )
