"""What a number was measured on and with, in words."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import torch

import bptt_envs


def machine(device: str) -> str:
    """The processor and its cores; with a GPU, that too."""
    names = [platform.machine() or "unknown"]
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = (line.partition(":") for line in information.read_text().splitlines())
        names = [value.strip() for key, _, value in lines if key.strip() == "model name"] or names
    text = f"{names[0]}, {os.cpu_count()} cores"
    return f"{text}, {torch.cuda.get_device_name()}" if device == "cuda" else text


def load_average() -> float | None:
    """Processes that ran or waited for a core, averaged over the last minute; None where the system does not tell."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


def versions(*names: str) -> str:
    """Of stable-bptt, then of packages and of "Python" as named; "none" of a package that is not installed."""
    numbers = {"stable-bptt": bptt_envs.__version__} | {name: _version(name) for name in names}
    return ", ".join(f"{name} {number}" for name, number in numbers.items())


def _version(name: str) -> str:
    if name == "Python":
        return platform.python_version()
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "none"
