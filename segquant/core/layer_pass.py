"""The pass over a denoiser's Linears that all methods share."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import nn

from segquant.core.calibration import Calibration
from segquant.core.costs import extra_macs_per_row, rotated_alike, stored_bits
from segquant.core.elements import Element, sort_elements
from segquant.core.fold_smoothing import FoldSite, fold_smoothing
from segquant.core.layer import QuantizedLayer, needs_gram
from segquant.core.layer_plan import LayerPlan, PlanOf, quantize_planned
from segquant.core.linear import QuantLinear
from segquant.core.method_interface import QuantizationReport
from segquant.core.mixed import LayerBits, choose_layer_bits
from segquant.core.other_weights import OtherWeight, other_weights
from segquant.core.over_fit import OverFit
from segquant.core.plain_linears import linear_layers
from segquant.core.recipe import LayerRecipe
from segquant.core.rounding import FactorCache, Rounding
from segquant.core.schemes import BITS_OF_BYTE, UNQUANTIZED_BITS, Bits
from segquant.core.segments import LayerShape, whole
from segquant.core.sensitivity import choose_kept_layers, reason_to_keep
from segquant.core.sequential import Sequential, stages
from segquant.core.several import Denoisers
from segquant.core.shared import ShapeOf, fold_sites, shared_smoothing
from segquant.core.smoothing import Smoothing, SmoothingMode
from segquant.core.stepwise import follow_steps

logger = logging.getLogger(__name__)

_UNSEEN = "error of the other denoisers: each is run on what the unquantized ones gave it"


@dataclass
class _Cost:
    """Sums over layers, for the report."""

    quantized_weights: int = 0
    quantized_bits: int = 0
    kept_weights: int = 0
    kept_bits: int = 0
    macs: int = 0
    extra_macs: int = 0


@dataclass(frozen=True, kw_only=True)
class _Done:
    """A layer's replacement, what the report says of it, and what its calibration saw."""

    quant: QuantLinear
    entry: QuantizedLayer
    rows: int
    shared_with: tuple[str, ...]  # layers that read the same input


def quantize_layers(
    denoiser: nn.Module,
    *,
    calibration: Calibration,
    bits: Bits,
    recipe: LayerRecipe,
    shape_of: ShapeOf | None = None,
    plan_of: PlanOf | None = None,
    elements: Sequence[Element | str] = (),
    left_out: Sequence[str] = (),
) -> QuantizationReport:
    """Replaces every Linear that the bits and the calibration allow, all or in stages.

    With `recipe.fold`, smoothing is folded last: what reads a folded input shares one vector.
    A Linear is let go of as soon as it is replaced, and a replaced one holds its codes alone, so
    that the denoiser becomes smaller on the way and at no time holds both.

    Args:
        shape_of: the segments of a layer by name; None for uncut layers.
        plan_of: what a layer gets that others do not; None for one recipe for all.
        elements: of the published method, for the report: a string is done to the whole row, an
            `Element` to the layers that have it, and left out where none has.
        left_out: what is not.
    """
    weights = {name: linear.weight.numel() for name, linear in linear_layers(denoiser).items()}
    others = other_weights(denoiser)
    kept = reasons_to_keep(denoiser, calibration=calibration, bits=bits)
    chosen = [name for name in weights if name not in kept]
    layer_bits = _layer_bits(denoiser, chosen, calibration=calibration, bits=bits)
    sites = fold_sites(calibration) if recipe.fold else ()
    done: dict[str, _Done] = {}
    forwards = 0
    for stage in stages(
        denoiser,
        calibration=calibration,
        sequential=recipe.sequential,
        wanted=chosen,
        gram=needs_gram(recipe),
        mismatch=recipe.gptq.corrected and recipe.rounding is Rounding.gptq,
    ):
        forwards += stage.forwards
        done |= _quantize_stage(
            denoiser,
            stage.layers,
            calibration=replace(calibration, statistics=stage.statistics),
            layer_bits=layer_bits,
            recipe=recipe,
            shape_of=shape_of or _uncut,
            plan_of=plan_of,
            sites=sites,
            kept=kept,
        )
    folded, reasons = fold_smoothing(denoiser, sites)
    for name in folded:
        done[name].entry.smoothing_at_run_time = False
    follow_steps(denoiser)
    logger.info("%s: %d Linears quantized, %d kept", bits.name, len(done), len(kept))
    if recipe.fold:
        at_run_time = sum(made.entry.smoothing_at_run_time for made in done.values())
        logger.info("smoothing folded into %d inputs, at run time for %d", len(folded), at_run_time)
    layers = [(done[name].quant, done[name].entry) for name in chosen if name in done]
    included, missing = sort_elements(elements, layers)
    searched = recipe.smoothing.mode is SmoothingMode.search
    fits = [made.entry.search_fit for made in done.values() if made.entry.search_fit is not None]
    over_fit = OverFit.of(fits, held_out=recipe.smoothing.held_out)
    if isinstance(denoiser, Denoisers) and recipe.sequential is not Sequential.none:
        reasons.append(_UNSEEN)
    report = _report(
        _cost(weights, others=others, done=done, calibration=calibration),
        bits=bits,
        quantized=[asdict(done[name].entry) for name in chosen if name in done],
        kept=[{"name": name, "reason": reason} for name, reason in kept.items()],
        search_candidates=len(recipe.smoothing.candidates()) if searched else 0,
        replay_forwards=forwards,
        elements=included,
        left_out=[*missing, *left_out, *reasons],
    )
    return replace(report, over_fit=None if over_fit is None else asdict(over_fit))


def _quantize_stage(
    denoiser: nn.Module,
    names: Sequence[str],
    *,
    calibration: Calibration,
    layer_bits: dict[str, LayerBits],
    recipe: LayerRecipe,
    shape_of: ShapeOf,
    plan_of: PlanOf | None,
    sites: Sequence[FoldSite],
    kept: dict[str, str],
) -> dict[str, _Done]:
    """Replaces the chosen layers by what the calibration's statistics make of them.

    A layer whose plan keeps it, or that has no range, is added to `kept`.
    """
    factors = FactorCache()
    linears = linear_layers(denoiser)
    chosen = {name: linears.pop(name) for name in names}
    linears.clear()
    shared: dict[str, Smoothing] = {}
    for own in {id(layer_bits[name].bits): layer_bits[name].bits for name in names}.values():
        # Layers of one input but of unlike widths share no vector.
        alike = {n: linear for n, linear in chosen.items() if layer_bits[n].bits is own}
        shared |= shared_smoothing(
            alike, sites=sites, calibration=calibration, bits=own, recipe=recipe, shape_of=shape_of
        )
        alike.clear()
    done: dict[str, _Done] = {}
    for name in names:
        resting = chosen.pop(name)
        linear = _near(resting, calibration.device)
        plan = LayerPlan() if plan_of is None else plan_of(name, linear)
        if plan.keep is not None:
            kept[name] = plan.keep
            continue
        seen, own = calibration.statistics[name], plan.bits or layer_bits[name].bits
        if own.activation.calibrated and not bool(seen.amax.any()):
            kept[name] = "its input was zero throughout calibration: no range for its scales"
            continue
        quant, entry = quantize_planned(
            linear,
            name=name,
            seen=seen,
            shape=shape_of(name, linear),
            plan=plan,
            bits=layer_bits[name].bits,
            recipe=recipe,
            factors=factors,
            smoothing=shared.get(name),
        )
        entry.notes += [layer_bits[name].reason] if layer_bits[name].reason else []
        quant.release()
        replace_module(denoiser, old=resting, new=quant.to(resting.weight.device))
        done[name] = _Done(
            quant=quant, entry=entry, rows=seen.rows, shared_with=tuple(seen.shared_with)
        )
    return done


def _near(linear: nn.Linear, device: torch.device | None) -> nn.Linear:
    """The layer itself, or a copy of it on the device."""
    if device is None or linear.weight.device == device:
        return linear
    return copy.deepcopy(linear).to(device)


def _layer_bits(
    denoiser: nn.Module, chosen: Iterable[str], *, calibration: Calibration, bits: Bits
) -> dict[str, LayerBits]:
    if bits.mixed_budget is not None:
        return choose_layer_bits(denoiser, calibration=calibration, bits=bits)
    return dict.fromkeys(chosen, LayerBits(bits=bits, reason=""))


def reasons_to_keep(denoiser: nn.Module, *, calibration: Calibration, bits: Bits) -> dict[str, str]:
    """What stays as it is: Linears in module order, then other weights, each with its reason."""
    spared: dict[str, str] = {}
    if bits.keep_budget is not None and bits.quantized:
        spared = choose_kept_layers(
            denoiser, calibration=calibration, bits=bits, budget=bits.keep_budget
        )
    reasons = {
        name: reason_to_keep(name, calibration=calibration, bits=bits) or spared.get(name)
        for name in linear_layers(denoiser)
    }
    kept = {name: reason for name, reason in reasons.items() if reason is not None}
    return kept | {name: other.reason for name, other in other_weights(denoiser).items()}


def replace_module(denoiser: nn.Module, *, old: nn.Module, new: nn.Module) -> None:
    """Puts `new` in every place where `old` is registered."""
    places = [n for n, m in denoiser.named_modules(remove_duplicate=False) if m is old]
    for place in places:
        parent, _, child = place.rpartition(".")
        setattr(denoiser.get_submodule(parent), child, new)


def _uncut(name: str, linear: nn.Linear) -> LayerShape:
    return whole(in_features=linear.in_features, out_features=linear.out_features)


def _cost(
    linears: dict[str, int],
    *,
    others: dict[str, OtherWeight],
    done: dict[str, _Done],
    calibration: Calibration,
) -> _Cost:
    cost = _Cost(
        kept_weights=sum(other.weights for other in others.values()),
        kept_bits=sum(other.stored_bits for other in others.values()),
    )
    charged: set[str] = set()
    for name, weights in linears.items():
        if name not in done:
            cost.kept_weights += weights
            cost.kept_bits += weights * UNQUANTIZED_BITS
            if name in calibration.statistics:
                cost.macs += weights * calibration.statistics[name].rows
            continue
        made = done[name]
        cost.macs += weights * made.rows
        cost.quantized_weights += weights
        turns = not any(
            rotated_alike(made.quant, done[other].quant)
            for other in made.shared_with
            if other in charged
        )
        charged.add(name)
        cost.quantized_bits += stored_bits(made.quant, made.entry, rotation=turns)
        extra = extra_macs_per_row(made.quant, made.entry, rotation=turns)
        cost.extra_macs += extra * made.rows
    return cost


def _report(
    cost: _Cost,
    *,
    bits: Bits,
    quantized: list[dict[str, object]],
    kept: list[dict[str, str]],
    search_candidates: int,
    replay_forwards: int,
    elements: list[str],
    left_out: list[str],
) -> QuantizationReport:
    all_bits = cost.quantized_bits + cost.kept_bits
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
        replay_forwards=replay_forwards,
        elements=elements,
        left_out=left_out,
    )
