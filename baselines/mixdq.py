"""Mixed precision in MixDQ's way: bits per layer by an integer program over sensitivities."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from segquant.core import (
    TO_NEAREST,
    Bits,
    Calibration,
    Element,
    LayerRecipe,
    QuantizationReport,
    StatisticsNeeds,
    quantize_layers,
)
from segquant.core.costs import stored_bits
from segquant.core.elements import of_layers
from segquant.core.layer import quantize_linear
from segquant.core.layer_plan import LayerPlan
from segquant.core.plain_linears import linear_layers
from segquant.core.schemes import UNQUANTIZED_BITS, NumberFormat
from segquant.core.segments import whole
from segquant.core.sensitivity import reason_to_keep

RESOLUTION = 50_000  # units in which the budget is counted


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One layer in one width."""

    num_bits: int
    error: float  # relative error of the layer's output
    stored_bits: int


@dataclass(kw_only=True)
class MixDq:
    """Give each layer the weight bits that cost the least error under a budget of memory.

    `min sum_i sum_b c_ib S_ib` with `sum c_ib M_ib <= B`, one b per layer: S is the noise-to-signal
    ratio of the layer's output when its weight has b bits, M the bits that are stored, B what the
    run's own uniform bits take. Source: Zhao et al. 2024, arXiv 2405.17873 (ECCV 2024).

    B is the same memory as `rtn` takes at these bits, so that the row differs by where the bits are
    and not by how many. Activations follow the run's bits, but for the `protected` share of layers
    that lose most by their quantized input: these keep it in 16 bit, as in the paper (1 %).
    Left out: sensitivity by the image's structural similarity (content) beside the output's noise
    (quality), which needs images from every layer's quantization; the first text token (BOS) in
    float, which needs a model whose prompts share it; the program for activation bits.
    Cost: no forward beyond the calibration; a rounding of every layer for every width.
    """

    widths: list[int] = field(default_factory=lambda: [2, 4, 8])
    protected: float = 0.01  # share of layers whose input stays in 16 bit
    sample_rows: int = 256

    def __post_init__(self) -> None:
        if not self.widths or any(not 2 <= width <= 8 for width in self.widths):
            raise ValueError(f"widths={self.widths}; give some of 2 to 8 bits")
        if not 0 <= self.protected <= 1:
            raise ValueError(f"protected={self.protected}; give a share in [0, 1]")

    def needs(self) -> StatisticsNeeds:
        return StatisticsNeeds(rows=self.sample_rows)

    def unsupported(self, bits: Bits) -> str | None:
        if bits.weight.number_format is not NumberFormat.integer or not bits.weight.quantized:
            return (
                f"mixdq mixes integers of several widths and {bits.name} has weights in "
                f"{bits.weight.describe()}; use bits with integer weights"
            )
        if bits.mixed_budget is not None:
            return f"{bits.name} mixes widths itself (mixed_budget); use bits of one width"
        if bits.weight.num_bits < min(self.widths):
            return f"{bits.name} is below the least of widths={self.widths}; add a smaller one"
        return None

    def quantize(
        self, denoiser: nn.Module, *, calibration: Calibration, bits: Bits
    ) -> QuantizationReport:
        if reason := self.unsupported(bits):
            raise ValueError(reason)
        table = self._table(denoiser, calibration=calibration, bits=bits)
        uniform = dict.fromkeys(table, bits.weight.num_bits)
        chosen = choose_widths(table, budget=_stored(table, uniform), fallback=uniform)
        spared = self._spared(denoiser, calibration=calibration, bits=bits)

        def plan_of(name: str, linear: nn.Linear) -> LayerPlan:
            width = chosen.get(name)
            own = bits
            if width is not None:
                own = replace(own, weight=replace(bits.weight, num_bits=width))
            notes = [] if width is None else [f"{width} bits by the integer program"]
            if name in spared:
                own = replace(own, activation=replace(bits.activation, num_bits=UNQUANTIZED_BITS))
                notes.append("input in 16 bit: among the most sensitive")
            return LayerPlan(bits=own, notes=tuple(notes))

        return quantize_layers(
            denoiser,
            calibration=calibration,
            bits=bits,
            recipe=LayerRecipe(),
            plan_of=plan_of,
            elements=[
                f"weight bits of {self.widths} per layer by an integer program",
                Element(
                    name="inputs of the most sensitive layers in 16 bit",
                    has=of_layers(spared),
                    otherwise="no input is one of integers, or protected=0",
                ),
                TO_NEAREST,
            ],
            left_out=[
                "sensitivity of content by structural similarity of images",
                "first text token in float (BOS)",
                "integer program over activation bits",
            ],
        )

    def _table(
        self, denoiser: nn.Module, *, calibration: Calibration, bits: Bits
    ) -> dict[str, list[Choice]]:
        """Every layer's choices; the run's own width is always one of them."""
        widths = sorted({*self.widths, bits.weight.num_bits})
        table: dict[str, list[Choice]] = {}
        for name, linear in linear_layers(denoiser).items():
            if reason_to_keep(name, calibration=calibration, bits=bits) is not None:
                continue
            table[name] = [
                _choice(name, linear, calibration=calibration, bits=bits, width=width)
                for width in widths
            ]
        return table

    def _spared(
        self, denoiser: nn.Module, *, calibration: Calibration, bits: Bits
    ) -> frozenset[str]:
        """The layers that lose most by their quantized input, by relative output error."""
        scheme = bits.activation
        if not scheme.quantized or scheme.number_format is not NumberFormat.integer:
            return frozenset()
        errors: dict[str, float] = {}
        fine = replace(bits, weight=replace(bits.weight, num_bits=8))
        for name, linear in linear_layers(denoiser).items():
            if reason_to_keep(name, calibration=calibration, bits=bits) is None:
                quant = _choice(name, linear, calibration=calibration, bits=fine, width=8, x=True)
                errors[name] = quant.error
        count = math.ceil(self.protected * len(errors))
        return frozenset(sorted(errors, key=lambda name: -errors[name])[:count])


def _choice(
    name: str,
    linear: nn.Linear,
    *,
    calibration: Calibration,
    bits: Bits,
    width: int,
    x: bool = False,
) -> Choice:
    """The layer with its weight in `width` bits and, unless `x`, its input in 16."""
    own = replace(bits, weight=replace(bits.weight, num_bits=width))
    if not x and bits.activation.quantized:
        own = replace(own, activation=type(bits.activation)(num_bits=UNQUANTIZED_BITS))
    quant, entry = quantize_linear(
        linear,
        name=name,
        seen=calibration.statistics[name],
        shape=whole(in_features=linear.in_features, out_features=linear.out_features),
        bits=own,
        recipe=LayerRecipe(),
    )
    return Choice(num_bits=width, error=entry.relative_error, stored_bits=stored_bits(quant, entry))


def _taken(table: dict[str, list[Choice]], widths: dict[str, int]) -> list[Choice]:
    return [
        choice for name, row in table.items() for choice in row if choice.num_bits == widths[name]
    ]


def _stored(table: dict[str, list[Choice]], widths: dict[str, int]) -> int:
    return sum(choice.stored_bits for choice in _taken(table, widths))


def choose_widths(
    table: dict[str, list[Choice]], *, budget: int, fallback: dict[str, int]
) -> dict[str, int]:
    """The least sum of errors under the budget: exact, but for memory counted in 50000 units.

    Memory is rounded up to units, so that the budget is never passed.

    Args:
        fallback: widths that fit, taken where they are better than what the units leave room for.
    """
    units = min(budget, RESOLUTION)
    sizes = {
        name: [math.ceil(choice.stored_bits * units / budget - 1e-9) for choice in row]
        for name, row in table.items()
    }
    best = torch.zeros(units + 1, dtype=torch.float64)  # least error with at most so much
    picks: list[Tensor] = []
    for name, row in table.items():
        options = torch.full((len(row), units + 1), math.inf, dtype=torch.float64)
        for number, (choice, size) in enumerate(zip(row, sizes[name], strict=True)):
            if size <= units:
                options[number, size:] = best[: units + 1 - size] + choice.error
        best, pick = options.min(0)
        picks.append(pick)
    if float(best[units]) >= sum(choice.error for choice in _taken(table, fallback)):
        return fallback
    left, chosen = units, {}
    for (name, row), pick in zip(reversed(table.items()), reversed(picks), strict=True):
        number = int(pick[left])
        chosen[name] = row[number].num_bits
        left -= sizes[name][number]
    return chosen
