"""A quantized denoiser that multiplies floats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from evaluation.resources import own_mappings
from experiments.cell.denoiser import LoadedDenoiser
from experiments.cell.read_quantized import read_quantized
from segquant.core.linear import QuantLinear

if TYPE_CHECKING:
    from experiments.cell.quantized_denoiser import QuantizedDenoiser


@dataclass(frozen=True, kw_only=True)
class SimulatedDenoiser:
    """Quantize, dequantize, multiply: the numerics of the method without a kernel."""

    quantized: QuantizedDenoiser

    @property
    def name(self) -> str:
        return self.quantized.hash

    def code(self) -> tuple[str, ...]:
        return (__name__,)

    def load(self) -> LoadedDenoiser:
        with own_mappings():
            module, report = read_quantized(self.quantized)
            for layer in module.modules():
                if isinstance(layer, QuantLinear):
                    layer.drop_codes()  # the dense weight is all that runs
        return LoadedDenoiser(module=module, report=report, execution=report.execution)
