"""How quantized layers run: simulated in floats, or as products of codes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from segquant.kernels import Execution, use_kernels

EXECUTIONS = ("simulated", "kernel", "auto")


def prepare(denoiser: nn.Module, execution: str) -> list[Execution]:
    """Puts kernels in place where `execution` asks for them; what became of each layer.

    Raises:
        ValueError: execution=kernel, and some layer has none.
    """
    if execution == "simulated":
        return []
    return use_kernels(denoiser, required=execution == "kernel")


def runs_on_kernels(entries: Sequence[Execution]) -> bool:
    """Whether every quantized layer does: a row with a simulated layer in it prints no speed."""
    return bool(entries) and all(entry.execution == "kernel" for entry in entries)


def execution_name(denoiser: str, execution: str) -> str:
    """What a stage that runs a quantized denoiser knows it by."""
    return denoiser if execution == "simulated" else f"{denoiser}-{execution}"


def kernel_left_out(left_out: Sequence[str], execution: str) -> list[str]:
    """What a method leaves out, without its remark on kernels where they ran."""
    ran = execution == "kernel"
    return [item for item in left_out if not (ran and item.startswith("kernels:"))]
