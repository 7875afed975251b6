"""What figures may depend on besides code, data and config: versions of packages, the hardware."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("vlp", "torch", "open_clip_torch", "timm", "transformers", "numpy")
"""Whose versions a figure may depend on."""


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that figures may depend on."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def hardware() -> dict[str, str]:
    """Return the processor, its cores and memory, and the GPUs of this machine, in words."""
    import torch

    found = {"processor": _processor(), "cores": str(os.cpu_count())}
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found["memory"] = (
            f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
        )
    names = [torch.cuda.get_device_name(place) for place in range(torch.cuda.device_count())]
    if names:
        found["GPUs"] = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
        found["CUDA"] = str(torch.version.cuda)
    return found


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a source folder, without being installed
        return "not installed"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith("model name")).partition(": ")[2]
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
