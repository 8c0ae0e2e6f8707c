"""Which layers to leave in 16 bit under a budget: those whose error costs least to be rid of.

A layer's error is that of rounding to nearest on the calibration's statistics, relative to its
output's power, so that the choice is the same for every method. Layers are taken by error per
extra bit as long as they fit; ties go to the earlier one.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from segquant.core.calibration import Calibration
from segquant.core.costs import stored_bits
from segquant.core.layer import quantize_linear
from segquant.core.plain_linears import linear_layers
from segquant.core.recipe import LayerRecipe
from segquant.core.schemes import UNQUANTIZED_BITS, Bits
from segquant.core.segments import whole


@dataclass(frozen=True, kw_only=True)
class LayerSensitivity:
    """What quantizing one layer costs and saves."""

    name: str
    relative_error: float  # ||Y - Y_quantized||^2 / ||Y||^2 on the sampled rows
    weights: int
    stored_bits: int  # of its quantized weight, scales counted

    @property
    def extra_bits(self) -> int:
        """What leaving it in 16 bit costs."""
        return self.weights * UNQUANTIZED_BITS - self.stored_bits


def reason_to_keep(name: str, *, calibration: Calibration, bits: Bits) -> str | None:
    """Why a layer stays in 16 bit, or None."""
    if not bits.quantized:
        return f"bits {bits.name} quantize nothing"
    pattern = bits.kept_by(name)
    if pattern is not None:
        return f"bits.keep: {pattern}"
    if name not in calibration.statistics:
        return "never called during calibration"
    return None


def layer_sensitivities(
    denoiser: nn.Module, *, calibration: Calibration, bits: Bits
) -> list[LayerSensitivity]:
    """Every layer that the bits would quantize, in module order; the denoiser is not changed."""
    sensitivities = []
    for name, linear in linear_layers(denoiser).items():
        if reason_to_keep(name, calibration=calibration, bits=bits) is not None:
            continue
        shape = whole(in_features=linear.in_features, out_features=linear.out_features)
        quant, entry = quantize_linear(
            linear,
            name=name,
            seen=calibration.statistics[name],
            shape=shape,
            bits=bits,
            recipe=LayerRecipe(),
        )
        sensitivities.append(
            LayerSensitivity(
                name=name,
                relative_error=entry.relative_error,
                weights=linear.weight.numel(),
                stored_bits=stored_bits(quant, entry),
            )
        )
    return sensitivities


def choose_kept_layers(
    denoiser: nn.Module, *, calibration: Calibration, bits: Bits, budget: float
) -> dict[str, str]:
    """Layers to leave in 16 bit, each with its reason.

    Args:
        budget: bits per weight over all Linears of the denoiser, those kept anyway included.

    Raises:
        ValueError: the budget is less than what quantizing everything takes.
    """
    seen = layer_sensitivities(denoiser, calibration=calibration, bits=bits)
    total = sum(linear.weight.numel() for linear in linear_layers(denoiser).values())
    spent = total * UNQUANTIZED_BITS - sum(layer.extra_bits for layer in seen)
    if spent > budget * total:
        raise ValueError(
            f"bits {bits.name}: keep_budget={budget:g} bits per weight, and with no further layer "
            f"kept it takes {spent / total:.4g}; raise keep_budget or keep fewer layers by name"
        )
    ranked = sorted(seen, key=lambda layer: -layer.relative_error / max(layer.extra_bits, 1))
    kept: dict[str, str] = {}
    for rank, layer in enumerate(ranked, start=1):
        if spent + layer.extra_bits > budget * total:
            continue
        spent += layer.extra_bits
        kept[layer.name] = (
            f"bits.keep_budget={budget:g}: relative error {layer.relative_error:.3g} rounded to "
            f"nearest, number {rank} of {len(ranked)} by error per bit"
        )
    return kept
