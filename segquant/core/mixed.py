"""Which layers get more bits under a budget: those that save the most error per extra bit.

Every layer starts with the fewest bits. Then, as long as something fits, the layer and width whose
step up saves the most relative error per stored bit is taken; ties go to the earlier layer, then to
the smaller width. Errors are those of rounding to nearest on the calibration's statistics, relative
to the layer's output, so that the choice is the same for every method.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from segquant.core.calibration import Calibration
from segquant.core.plain_linears import linear_layers
from segquant.core.schemes import UNQUANTIZED_BITS, Bits
from segquant.core.sensitivity import LayerSensitivity, layer_sensitivities


@dataclass(frozen=True, kw_only=True)
class LayerBits:
    """The bits of one layer, and why."""

    bits: Bits
    reason: str


def choose_layer_bits(
    denoiser: nn.Module, *, calibration: Calibration, bits: Bits
) -> dict[str, LayerBits]:
    """The bits of every layer that is to be quantized; the denoiser is not changed.

    Raises:
        ValueError: the budget is less than what the fewest bits take.
    """
    widths = sorted({bits.weight.num_bits, *bits.mixed_bits})
    choices = [with_weight_bits(bits, width) for width in widths]
    seen = [
        layer_sensitivities(denoiser, calibration=calibration, bits=choice) for choice in choices
    ]
    by_layer = {ladder[0].name: ladder for ladder in zip(*seen, strict=True)}
    taken = _greedy(by_layer, room=_room(denoiser, list(seen[0]), bits))
    result = {}
    for name, level in taken.items():
        ladder = by_layer[name]
        reason = (
            f"bits.mixed_budget={bits.mixed_budget:g}: {widths[level]}-bit weight, relative error "
            f"{ladder[level].relative_error:.3g} rounded to nearest"
        )
        if level:
            reason += f" ({ladder[0].relative_error:.3g} with {widths[0]} bits)"
        result[name] = LayerBits(bits=choices[level], reason=reason)
    return result


def with_weight_bits(bits: Bits, num_bits: int) -> Bits:
    """The same bits with weights of one width."""
    weight = replace(bits.weight, num_bits=num_bits)
    return replace(bits, weight=weight, mixed_bits=[], mixed_budget=None)


def _room(denoiser: nn.Module, fewest: list[LayerSensitivity], bits: Bits) -> int:
    """Bits that the budget leaves beyond the fewest."""
    assert bits.mixed_budget is not None
    total = sum(linear.weight.numel() for linear in linear_layers(denoiser).values())
    spent = total * UNQUANTIZED_BITS - sum(layer.extra_bits for layer in fewest)
    if spent > bits.mixed_budget * total:
        raise ValueError(
            f"bits {bits.name}: mixed_budget={bits.mixed_budget:g} bits per weight over all "
            f"Linears, and with the fewest bits everywhere it takes {spent / total:.4g}; raise "
            "mixed_budget, lower weight.num_bits, or keep fewer layers"
        )
    return int(bits.mixed_budget * total) - spent


def _greedy(by_layer: dict[str, tuple[LayerSensitivity, ...]], *, room: int) -> dict[str, int]:
    level = dict.fromkeys(by_layer, 0)
    while True:
        best: tuple[float, str, int, int] | None = None
        for name, ladder in by_layer.items():
            now = ladder[level[name]]
            for higher in range(level[name] + 1, len(ladder)):
                cost = ladder[higher].stored_bits - now.stored_bits
                gain = (now.relative_error - ladder[higher].relative_error) / cost
                if cost <= room and gain > 0 and (best is None or gain > best[0]):
                    best = gain, name, higher, cost
        if best is None:
            return level
        _, name, higher, cost = best
        level[name], room = higher, room - cost
