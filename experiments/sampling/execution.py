"""How quantized layers run: simulated in floats, or as products of codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from experiments.config.choices import METHODS_OWN
from segquant.core.calibration import Calibration
from segquant.core.linear import QuantLinear
from segquant.kernels import Execution, PackedLinear, pack_linear, use_kernels
from segquant.kernels.recode import pack_recoded, why_not_recoded


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


def kernel_left_out(left_out: Sequence[str], *, ran: bool) -> list[str]:
    """What a method leaves out, without its remark on kernels where products of codes ran."""
    return [item for item in left_out if not (ran and item.startswith("kernels:"))]
