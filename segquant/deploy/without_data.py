"""Rounding to nearest with scales that need no calibration."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from segquant.core.calibration import Calibration
from segquant.core.input_statistics import LayerStatistics
from segquant.core.layer_pass import quantize_layers
from segquant.core.method_interface import QuantizationReport
from segquant.core.plain_linears import linear_layers
from segquant.core.recipe import LayerRecipe
from segquant.core.schemes import UNQUANTIZED_BITS, Bits, Granularity, TensorScheme


def without_data(
    weights: int, activations: int | None, *, group_size: int | None, keep: Sequence[str]
) -> Bits:
    """Weights per output feature or group, activations per token as it comes.

    Raises:
        ValueError: bits that there are not, or a group that is none.
    """
    grouped = Granularity.per_channel if group_size is None else Granularity.per_group
    weight = TensorScheme(num_bits=weights, granularity=grouped, group_size=group_size)
    if not weight.quantized:
        raise ValueError(f"weights={weights}; give 2 to 8 bits")
    if activations is None:
        activation = TensorScheme(num_bits=UNQUANTIZED_BITS)
    else:
        activation = TensorScheme(
            num_bits=activations, granularity=Granularity.per_token, dynamic=True
        )
    name = f"w{weights}a{activations or UNQUANTIZED_BITS}_int"
    name += "" if group_size is None else f"_group{group_size}"
    return Bits(name=name, weight=weight, activation=activation, keep=list(keep))


def quantize_without_data(denoiser: nn.Module, bits: Bits) -> QuantizationReport:
    """In place. No input has been seen, so the report's errors mean nothing."""
    assert not bits.activation.calibrated
    seen = {name: _unseen(linear.in_features) for name, linear in linear_layers(denoiser).items()}
    calibration = Calibration(statistics=seen, forwards=0)
    return quantize_layers(denoiser, calibration=calibration, bits=bits, recipe=LayerRecipe())


def _unseen(features: int) -> LayerStatistics:
    ones_I = torch.ones(features)
    return LayerStatistics(low_I=-ones_I, high_I=ones_I, sample_TI=ones_I[None], rows=1, calls=1)
