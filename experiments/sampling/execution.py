"""How quantized layers run: simulated in floats, as products of codes, or in another runtime."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from experiments.config.choices import METHODS_OWN, RUNTIMES
from segquant.core.calibration import Calibration
from segquant.core.grids import IntGrid
from segquant.core.linear import QuantLinear
from segquant.core.method_interface import OfThisMachine
from segquant.kernels import Execution, PackedLinear, pack_linear, use_kernels
from segquant.kernels.recode import pack_recoded, why_not_recoded

if TYPE_CHECKING:
    from experiments.config.run_config import RunConfig

_EXPORT = ("onnx", "onnxscript")


def why_not_exported(config: RunConfig) -> str | None:
    """Why a cell is no ONNX file that a runtime runs here, or None."""
    asked = f"execution={config.execution}"
    for scheme in (config.bits.weight, config.bits.activation):
        if scheme.quantized and not isinstance(scheme.grid, IntGrid):
            return f"{asked}: runtimes have no product of {scheme.number_format.name} on a CPU"
    if type(config.method).__module__.startswith("baselines.peers."):
        return f"{asked}: a library's own modules are exported by that library alone"
    if config.device != "cpu" and not (config.device == "auto" and not torch.cuda.is_available()):
        return OfThisMachine(f"{asked} runs on a CPU; set device=cpu")
    if config.model.denoisers is not None and len(config.model.denoisers) > 1:
        return f"{asked}: a pipeline of several denoisers; name one in model.denoisers"
    packages = (*_EXPORT, RUNTIMES[config.execution])
    lost = [name for name in packages if importlib.util.find_spec(name) is None]
    if lost:
        return OfThisMachine(
            f"{asked}: {' and '.join(lost)} not installed: pip install 'segquant-bench[onnx]'"
        )
    return None


def prepare(
    denoiser: nn.Module, execution: str, *, code: str, calibration: Calibration | None
) -> list[Execution]:
    """Puts kernels in place where `execution` asks for them; what became of each layer.

    Args:
        code: another code than the method's own for the inputs; it needs the calibration.

    Raises:
        ValueError: execution=kernel, and some layer has none.
    """
    if execution == "simulated":
        return []
    required = execution == "kernel"
    if code == METHODS_OWN:
        return use_kernels(denoiser, required=required)
    assert calibration is not None

    def pack(name: str, quant: QuantLinear) -> PackedLinear:
        if why_not_recoded(quant) is not None:
            return pack_linear(quant)
        return pack_recoded(quant, seen=calibration.statistics[name], code=code)

    return use_kernels(denoiser, required=required, pack=pack)


def extra_products(
    entries: Sequence[Execution], weights: Mapping[str, int], calibration: Calibration
) -> float:
    """Products beyond a plain Linear's for the inputs' codes, over those of all called Linears.

    Args:
        weights: how many each Linear of the unquantized denoiser has.
    """
    seen = calibration.statistics
    macs = {name: count * seen[name].rows for name, count in weights.items() if name in seen}
    extra = sum(macs[entry.layer] * (entry.products - 1) for entry in entries)
    return extra / sum(macs.values())


def runs_on_kernels(entries: Sequence[Execution]) -> bool:
    """Whether every quantized layer does: a row with a simulated layer in it prints no speed."""
    return bool(entries) and all(entry.execution == "kernel" for entry in entries)


def kernel_left_out(left_out: Sequence[str], execution: str) -> list[str]:
    """What a method leaves out, without its remark on kernels where they ran."""
    ran = execution == "kernel"
    return [item for item in left_out if not (ran and item.startswith("kernels:"))]
