"""torchao, as a row of its own."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from baselines.peer import (
    is_int8_token,
    is_int8_weight_only,
    no_such_bits,
    not_installed,
    quantize_with,
)
from segquant.core import Bits, Calibration, QuantizationReport, StatisticsNeeds


@dataclass(kw_only=True)
class Torchao:
    """torchao's own int8: dynamic (weights per channel, inputs per token) or weight-only.

    `quantize_` with `Int8DynamicActivationInt8WeightConfig` or `Int8WeightOnlyConfig` on the
    same Linears as every other row; the library's rounding, scales and products.
    Source: the library (torchao 0.18), its defaults; nothing is calibrated.
    Left out: its fp8, which needs a GPU of compute capability 8.9. Cost: none beyond the model.
    """

    def needs(self) -> StatisticsNeeds:
        return StatisticsNeeds()

    def unsupported(self, bits: Bits) -> str | None:
        if is_int8_token(bits) or is_int8_weight_only(bits):
            return not_installed("torchao", extra="torchao")
        return no_such_bits("torchao", bits, allowed="w8a8_int8_token or w8a16_int")

    def quantize(
        self, denoiser: nn.Module, *, calibration: Calibration, bits: Bits
    ) -> QuantizationReport:
        return quantize_with(
            _replace,
            denoiser,
            calibration=calibration,
            bits=bits,
            unsupported=self.unsupported(bits),
            elements=["torchao's own modules and defaults"],
            left_out=["fp8: not through this row"],
        )

    def corrector(self, *, calibration: Calibration) -> None:
        return None


def _replace(denoiser: nn.Module, chosen: dict[str, nn.Linear], *, bits: Bits) -> None:
    from torchao.quantization import (
        Int8DynamicActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
        quantize_,
    )

    weight_only = is_int8_weight_only(bits)
    config = Int8WeightOnlyConfig() if weight_only else Int8DynamicActivationInt8WeightConfig()
    quantize_(denoiser, config, filter_fn=lambda _, name: name in chosen)
