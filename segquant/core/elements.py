"""What of a published method a row has: told by the layers, not by the settings.

An element that no layer has is listed as left out, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from segquant.core.floats import ScaleRule
from segquant.core.layer import CORRECTED, LEARNED_ROUNDING, NOT_GPTQ, RANGES_KEPT, QuantizedLayer
from segquant.core.linear import QuantLinear
from segquant.core.ranges import RangeRule
from segquant.core.rounding import Rounding

NO_LAYER = "no Linear is quantized at these bits"

Has = Callable[[QuantLinear, QuantizedLayer], bool]


@dataclass(frozen=True, kw_only=True)
class Element:
    """A part of a method, which layers have it, and why none has where none has."""

    name: str
    has: Has
    otherwise: str


def sort_elements(
    elements: Sequence[Element | str], layers: Sequence[tuple[QuantLinear, QuantizedLayer]]
) -> tuple[list[str], list[str]]:
    """What is done, with the number of layers where it is not all of them, and what is not.

    A plain string is of the row, not of any layer. Each layer's entry lists the elements it has.
    """
    done: list[str] = []
    left_out: list[str] = []
    if not layers:
        names = [one if isinstance(one, str) else one.name for one in elements]
        return [], [f"{name}: {NO_LAYER}" for name in names]
    for element in elements:
        if isinstance(element, str):
            done.append(element)
            continue
        having = [entry for quant, entry in layers if element.has(quant, entry)]
        for entry in having:
            entry.elements.append(element.name)
        if not having:
            left_out.append(f"{element.name}: {element.otherwise}")
        elif len(having) == len(layers):
            done.append(element.name)
        else:
            done.append(f"{element.name} ({len(having)} of {len(layers)} Linears)")
    return done, left_out


# What a layer may have ----------------------------------------------------------------------


def _to_nearest(quant: QuantLinear, entry: QuantizedLayer) -> bool:
    return entry.rounding == "rtn" or _fell_back(entry)


def by_gptq(quant: QuantLinear, entry: QuantizedLayer) -> bool:
    return entry.rounding == "gptq" and not _fell_back(entry)


def corrected(quant: QuantLinear, entry: QuantizedLayer) -> bool:
    return by_gptq(quant, entry) and CORRECTED in entry.notes


def by_signround(quant: QuantLinear, entry: QuantizedLayer) -> bool:
    return entry.rounding == "signround"


def narrowed(quant: QuantLinear, entry: QuantizedLayer) -> bool:
    """Whether its ranges were learned with its rounding."""
    learned = [note for note in entry.notes if note.startswith(LEARNED_ROUNDING)]
    return bool(learned) and not learned[0].endswith(RANGES_KEPT)


def _fell_back(entry: QuantizedLayer) -> bool:
    return any(note.startswith(NOT_GPTQ) for note in entry.notes)


def largest_magnitude(quant: QuantLinear, entry: QuantizedLayer) -> bool:
    schemes = (quant.spec.weight, quant.spec.activation)
    return all(
        one.range_rule is RangeRule.amax and not one.by_power for one in schemes if one.quantized
    )


def six_or_four(quant: QuantLinear, entry: QuantizedLayer) -> bool:
    return quant.spec.weight.scale_rule is ScaleRule.four_over_six


def six_or_four_inputs(quant: QuantLinear, entry: QuantizedLayer) -> bool:
    return quant.spec.activation.scale_rule is ScaleRule.four_over_six


def smoothed(quant: QuantLinear, entry: QuantizedLayer) -> bool:
    return entry.smoothing_vectors > 0


def smoothing_by(name: str) -> Element:
    return Element(name=name, has=smoothed, otherwise="every factor is 1")


def folded(quant: QuantLinear, entry: QuantizedLayer) -> bool:
    return entry.smoothing_vectors > 0 and not entry.smoothing_at_run_time


def segmented(quant: QuantLinear, entry: QuantizedLayer) -> bool:
    return len(entry.output_segments) > 1 or len(entry.input_segments) > 1


def input_split(quant: QuantLinear, entry: QuantizedLayer) -> bool:
    return len(entry.input_segments) > 1


def dual_scaled(quant: QuantLinear, entry: QuantizedLayer) -> bool:
    return any(entry.dual_scale)


def low_rank(quant: QuantLinear, entry: QuantizedLayer) -> bool:
    return entry.rank > 0


def shifted(quant: QuantLinear, entry: QuantizedLayer) -> bool:
    return quant.spec.input_shift


def scaled(quant: QuantLinear, entry: QuantizedLayer) -> bool:
    return quant.spec.input_scale


def reordered(quant: QuantLinear, entry: QuantizedLayer) -> bool:
    return quant.spec.input_permuted


def rotated(quant: QuantLinear, entry: QuantizedLayer) -> bool:
    return quant.spec.rotation_blocks > 0


def power_scaled(quant: QuantLinear, entry: QuantizedLayer) -> bool:
    power_I = quant.input_power
    return power_I is not None and bool((power_I < 1).any())


def stepped(quant: QuantLinear, entry: QuantizedLayer) -> bool:
    return quant.spec.steps > 0


def dynamic(quant: QuantLinear, entry: QuantizedLayer) -> bool:
    return quant.spec.activation.quantized and quant.spec.activation.dynamic


def of_layers(names: frozenset[str]) -> Has:
    """Those that a method chose itself."""
    return lambda quant, entry: entry.name in names


TO_NEAREST = Element(
    name="rounding to nearest", has=_to_nearest, otherwise="no weight is rounded so"
)
BY_SIGNROUND = Element(
    name="SignRound: rounding learned by signed gradients",
    has=by_signround,
    otherwise="every layer fell back to nearest",
)
BY_GPTQ = Element(name="GPTQ", has=by_gptq, otherwise="every layer fell back to nearest")


def rounded_by(rounding: Rounding) -> Element:
    """The element of how weights are rounded."""
    return {
        Rounding.rtn: TO_NEAREST,
        Rounding.gptq: BY_GPTQ,
        Rounding.signround: BY_SIGNROUND,
    }[rounding]
