"""The pass over a denoiser's Linears that all methods share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from torch import nn

from segquant.core.calibration import Calibration
from segquant.core.costs import extra_macs_per_row, stored_bits
from segquant.core.layer import QuantizedLayer, needs_gram, quantize_linear
from segquant.core.linear import QuantLinear
from segquant.core.mixed import choose_layer_bits
from segquant.core.plan import LayerRecipe
from segquant.core.protocol import QuantizationReport
from segquant.core.rounding import FactorCache
from segquant.core.schemes import UNQUANTIZED_BITS, Bits
from segquant.core.segments import LayerShape, whole
from segquant.core.sensitivity import choose_kept_layers, reason_to_keep
from segquant.core.sequential import stages
from segquant.core.smoothing import SmoothingMode
from segquant.core.statistics import linear_layers

logger = logging.getLogger(__name__)

BITS_OF_BYTE = 8

ShapeOf = Callable[[str, nn.Linear], LayerShape]


@dataclass
class _Cost:
    """Sums over layers, for the report."""

    quantized_weights: int = 0
    quantized_bits: int = 0
    kept_weights: int = 0
    macs: int = 0
    extra_macs: int = 0
    replay_forwards: int = 0


def quantize_layers(
    denoiser: nn.Module,
    *,
    calibration: Calibration,
    bits: Bits,
    recipe: LayerRecipe,
    shape_of: ShapeOf | None = None,
    elements: Sequence[str] = (),
    left_out: Sequence[str] = (),
) -> QuantizationReport:
    """Replaces every Linear that the bits and the calibration allow, all or in stages.

    Args:
        shape_of: the segments of a layer by name; None for uncut layers.
        elements: what of the published method is done, for the report.
        left_out: what is not.
    """
    shape_of = shape_of or _uncut
    cost = _Cost()
    quantized: list[dict[str, object]] = []
    linears = linear_layers(denoiser)
    kept = _kept(denoiser, calibration=calibration, bits=bits)
    for name in kept:
        cost.kept_weights += linears[name].weight.numel()
        if name in calibration.statistics:
            cost.macs += linears[name].weight.numel() * calibration.statistics[name].rows
    chosen = {}
    if bits.mixed_budget is not None:
        chosen = choose_layer_bits(denoiser, calibration=calibration, bits=bits)
    factors = FactorCache()
    wanted = [name for name in linears if name not in kept]
    for stage in stages(
        denoiser,
        calibration=calibration,
        sequential=recipe.sequential,
        wanted=wanted,
        gram=needs_gram(recipe),
    ):
        cost.replay_forwards += stage.forwards
        for name in stage.layers:
            seen = stage.statistics[name]
            quant, entry = quantize_linear(
                linears[name],
                name=name,
                seen=seen,
                shape=shape_of(name, linears[name]),
                bits=chosen[name].bits if name in chosen else bits,
                recipe=recipe,
                factors=factors,
            )
            entry.notes += [chosen[name].reason] if name in chosen else []
            replace_module(denoiser, old=linears[name], new=quant)
            quantized.append(asdict(entry))
            _count(cost, quant, entry, rows=seen.rows)
    quantized.sort(key=lambda entry: wanted.index(str(entry["name"])))
    logger.info("%s: %d Linears quantized, %d kept", bits.name, len(quantized), len(kept))
    searched = recipe.smoothing.mode is SmoothingMode.search
    return _report(
        cost,
        bits=bits,
        quantized=quantized,
        kept=[{"name": name, "reason": reason} for name, reason in kept.items()],
        search_candidates=len(recipe.smoothing.candidates()) if searched else 0,
        elements=list(elements),
        left_out=list(left_out),
    )


def _kept(denoiser: nn.Module, *, calibration: Calibration, bits: Bits) -> dict[str, str]:
    """The layers that stay as they are, in module order, each with its reason."""
    spared: dict[str, str] = {}
    if bits.keep_budget is not None and bits.quantized:
        spared = choose_kept_layers(
            denoiser, calibration=calibration, bits=bits, budget=bits.keep_budget
        )
    reasons = {
        name: reason_to_keep(name, calibration=calibration, bits=bits) or spared.get(name)
        for name in linear_layers(denoiser)
    }
    return {name: reason for name, reason in reasons.items() if reason is not None}


def replace_module(denoiser: nn.Module, *, old: nn.Module, new: nn.Module) -> None:
    """Puts `new` in every place where `old` is registered."""
    places = [n for n, m in denoiser.named_modules(remove_duplicate=False) if m is old]
    for place in places:
        parent, _, child = place.rpartition(".")
        setattr(denoiser.get_submodule(parent), child, new)


def _uncut(name: str, linear: nn.Linear) -> LayerShape:
    return whole(in_features=linear.in_features, out_features=linear.out_features)


def _count(cost: _Cost, quant: QuantLinear, entry: QuantizedLayer, *, rows: int) -> None:
    cost.macs += quant.in_features * quant.out_features * rows
    cost.quantized_weights += quant.in_features * quant.out_features
    cost.quantized_bits += stored_bits(quant, entry)
    cost.extra_macs += extra_macs_per_row(quant, entry) * rows


def _report(
    cost: _Cost,
    *,
    bits: Bits,
    quantized: list[dict[str, object]],
    kept: list[dict[str, str]],
    search_candidates: int,
    elements: list[str],
    left_out: list[str],
) -> QuantizationReport:
    all_bits = cost.quantized_bits + cost.kept_weights * UNQUANTIZED_BITS
    weights = cost.quantized_weights + cost.kept_weights
    some = cost.quantized_weights > 0
    return QuantizationReport(
        bits=bits.name,
        layers_quantized=quantized,
        layers_kept=kept,
        effective_bits_per_weight=(
            cost.quantized_bits / cost.quantized_weights if some else float(UNQUANTIZED_BITS)
        ),
        effective_bits_per_weight_all=all_bits / weights if weights else float(UNQUANTIZED_BITS),
        extra_macs_fraction=cost.extra_macs / cost.macs if cost.macs else 0.0,
        weight_bytes=(all_bits + BITS_OF_BYTE - 1) // BITS_OF_BYTE,
        search_candidates=search_candidates,
        replay_forwards=cost.replay_forwards,
        elements=elements,
        left_out=left_out,
    )
