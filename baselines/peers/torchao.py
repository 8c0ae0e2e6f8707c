"""torchao, as a row of its own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from baselines.peers.library import (
    is_fp8_static,
    is_int8_channel_static,
    is_int8_tensor_static,
    is_int8_token,
    is_int8_weight_only,
    no_such_bits,
    not_installed,
    quantize_with,
)
from segquant.core import Bits, Calibration, QuantizationReport, StatisticsNeeds
from segquant.core.floats import E4M3_MAX

INT8_MAX = 127.0


@dataclass(kw_only=True)
class Torchao:
    """torchao's own int8 (dynamic, weight-only or static) and its static fp8.

    `quantize_` with `Int8DynamicActivationInt8WeightConfig`, `Int8WeightOnlyConfig`,
    `Int8StaticActivationInt8WeightConfig` or `Float8StaticActivationFloat8WeightConfig` on the
    same Linears as every other row; the library's rounding, weight scales and products. A static
    input scale is the caller's to give: the calibration's largest magnitude over 127 or 448.
    Source: the library (torchao 0.18), its defaults but for the granularity.
    Left out: its dynamic fp8, which asserts a GPU of compute capability 8.9 and has no bits here
    (nor has fp8 weight-only, which runs). Cost: none beyond the model.
    """

    def needs(self) -> StatisticsNeeds:
        return StatisticsNeeds()

    def unsupported(self, bits: Bits) -> str | None:
        if is_int8_token(bits) or is_int8_weight_only(bits) or _is_static(bits):
            return not_installed("torchao", extra="torchao")
        return no_such_bits(
            "torchao",
            bits,
            allowed="w8a8_int8_token, w8a16_int, w8a8_int8, w8a8_int8_channel or w8a8_fp8",
        )

    def quantize(
        self, denoiser: nn.Module, *, calibration: Calibration, bits: Bits
    ) -> QuantizationReport:
        static = partial(_replace_static, calibration=calibration)
        return quantize_with(
            static if _is_static(bits) else _replace,
            denoiser,
            calibration=calibration,
            bits=bits,
            unsupported=self.unsupported(bits),
            elements=["torchao's own modules and defaults"],
            left_out=["dynamic fp8"],
        )


class _RowsLinear(nn.Linear):
    """Reads its input as rows: torchao wants a static scale of as many dimensions as the input."""

    def forward(self, input: Tensor) -> Tensor:
        rows = super().forward(input.reshape(-1, self.in_features))
        return rows.reshape(*input.shape[:-1], self.out_features)


def _is_static(bits: Bits) -> bool:
    return is_int8_tensor_static(bits) or is_int8_channel_static(bits) or is_fp8_static(bits)


def _replace(denoiser: nn.Module, chosen: dict[str, nn.Linear], *, bits: Bits) -> None:
    from torchao.quantization import (
        Int8DynamicActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
        quantize_,
    )

    weight_only = is_int8_weight_only(bits)
    config = Int8WeightOnlyConfig() if weight_only else Int8DynamicActivationInt8WeightConfig()
    quantize_(denoiser, config, filter_fn=lambda _, name: name in chosen)


def _replace_static(
    denoiser: nn.Module,
    chosen: dict[str, nn.Linear],
    *,
    bits: Bits,
    calibration: Calibration,
) -> None:
    from torchao.quantization import quantize_

    for name, linear in chosen.items():
        amax = calibration.statistics[name].amax.max().clamp(min=torch.finfo(torch.float32).tiny)
        config = _static_config(amax.reshape(1, 1).to(linear.weight.device), bits=bits)
        linear.__class__ = _RowsLinear
        quantize_(linear, config, filter_fn=lambda *_: True)


def _static_config(amax: Tensor, *, bits: Bits) -> Any:
    from torchao.quantization import (
        Float8StaticActivationFloat8WeightConfig,
        Int8StaticActivationInt8WeightConfig,
        PerRow,
        PerTensor,
    )

    if is_fp8_static(bits):
        return Float8StaticActivationFloat8WeightConfig(
            act_quant_scale=amax / E4M3_MAX, granularity=PerTensor()
        )
    weight = PerRow() if is_int8_channel_static(bits) else PerTensor()
    return Int8StaticActivationInt8WeightConfig(
        act_quant_scale=amax / INT8_MAX, granularity=[PerTensor(), weight]
    )
