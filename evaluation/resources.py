"""What a run cost and where it ran: wall-clock seconds, peak memory, environment, UTC times."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from evaluation.gpu_state import gpu_state

PACKAGES = (
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "accelerate",
    "torchmetrics",
    "clean-fid",
    "open_clip_torch",
    "safetensors",
    "numpy",
    "scipy",
    "pillow",
)
_GIT_TIMEOUT_SECONDS = 10
_M_MMAP_THRESHOLD = -3  # of malloc.h
_LARGE_BYTES = 2**20
_MOST_BYTES = 2**25  # what glibc raises its threshold to at most
_RESET_PEAK_RSS = "5"  # what /proc/self/clear_refs wants in order to reset VmHWM


def reset_peak_memory() -> bool:
    """Start the peak afresh; False where the kernel does not allow it (the peak is then of the
    whole process).
    """
    torch = _torch_with_cuda()
    if torch is not None:
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK_RSS, encoding="ascii")
    except OSError:
        return False
    return True


@contextmanager
def own_mappings() -> Iterator[None]:
    """Gives every large tensor that is made on the CPU within the block a mapping of its own.

    It ends with the tensor. glibc raises its threshold for that with what is freed, up to 32 MB:
    weights of a layer then leave holes that nothing larger fits into. Only for loading: a mapping's
    pages are cleared at first touch, which makes short-lived tensors slow. Elsewhere than in glibc
    nothing is done.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        yield
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
    try:
        yield
    finally:
        mallopt(_M_MMAP_THRESHOLD, _MOST_BYTES)


def resident_bytes() -> int:
    """The resident set of this process now; 0 where the system does not say."""
    return _status_bytes("VmRSS") or 0


def _status_bytes(name: str) -> int | None:
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    values = (line.split()[1] for line in status.splitlines() if line.startswith(f"{name}:"))
    return next((int(value) * 1024 for value in values), None)


def peak_rss_bytes() -> int:
    """Largest resident set of this process since its start or the last reset."""
    marked = _status_bytes("VmHWM")
    if marked is not None:
        return marked
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_cuda_bytes() -> dict[str, int] | None:
    """`allocated` and `reserved` peaks on the current device since the last reset; None without."""
    torch = _torch_with_cuda()
    if torch is None:
        return None
    return {
        "allocated": int(torch.cuda.max_memory_allocated()),
        "reserved": int(torch.cuda.max_memory_reserved()),
    }


def peak_memory_bytes() -> int:
    """The peak that matters: allocated on the GPU where there is one, otherwise resident."""
    cuda = peak_cuda_bytes()
    return cuda["allocated"] if cuda is not None else peak_rss_bytes()


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def describe_environment(
    *, repository: Path | str | None = None, packages: Sequence[str] = PACKAGES
) -> dict[str, Any]:
    """Python, platform, processor, packages, git commit of `repository`, device, threads, clocks.

    A package that is not installed has the version None. Nothing here is part of a run's identity.
    """
    environment: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cpu_count": os.cpu_count(),
        "packages": {name: _version(name) for name in packages},
        "git": git_state(repository) if repository is not None else None,
    }
    return environment | _device()


def git_state(repository: Path | str) -> dict[str, Any] | None:
    """Commit and whether tracked or new files differ from it; None outside a git work tree."""
    commit = _git(repository, "rev-parse", "HEAD")
    status = _git(repository, "status", "--porcelain")
    if commit is None or status is None:
        return None
    return {"commit": commit.strip(), "dirty": bool(status.strip())}


def _git(repository: Path | str, *arguments: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", "-C", str(repository), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=_GIT_TIMEOUT_SECONDS,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor()
    for line in text.splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _device() -> dict[str, Any]:
    import torch

    device: dict[str, Any] = {
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "gpu": {},  # driver, clocks and what slows it down
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        device["device"] = properties.name
        device["device_memory_bytes"] = properties.total_memory
        device["cuda"] = torch.version.cuda
        device["gpu"] = gpu_state(f"GPU-{properties.uuid}")
    return device


def _torch_with_cuda() -> Any | None:
    """torch, if it is imported and has a GPU in use: asking must not start CUDA."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch
    return None


def _synchronize() -> None:
    torch = _torch_with_cuda()
    if torch is not None:
        torch.cuda.synchronize()
