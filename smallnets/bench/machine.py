"""What figures of speed belong to: the machine, and the versions of what ran on it."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from smallnets.results.provenance import versions


def describe_machine(device: torch.device) -> dict[str, Any]:
    """CPU, cores, threads, load at this moment, GPU (None where `device` is none), versions; plain data."""
    cuda = device.type == "cuda"
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        # Runnable processes over the last minute; more than cores are free means noise.
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "device": device.type,
        "gpu": torch.cuda.get_device_name(device) if cuda else None,
        "cuda": torch.version.cuda if cuda else None,
        "system": platform.platform(),
        "versions": {**versions(), "pillow": _version("pillow"), "adabound": _version("adabound")},
    }


def _cpu() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
