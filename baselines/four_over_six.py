"""Four Over Six: each block of NVFP4 chooses between two scales."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from segquant.core import (
    TO_NEAREST,
    Bits,
    Calibration,
    Element,
    LayerRecipe,
    NumberFormat,
    QuantizationReport,
    ScaleRule,
    StatisticsNeeds,
    elements,
    quantize_layers,
)


@dataclass(kw_only=True)
class FourOverSix:
    """NVFP4 to nearest, with each block's largest value at 6 or at 4, whichever errs less.

    e2m1 has no value between 4 and 6, so what lies there errs most. Per block of 16,
    `s_6 = e4m3(amax / (6 a))` or `s_4 = e4m3(1.5 amax / (6 a))`, the one with the smaller
    `sum (x - a s q(x / (a s)))^2`, 6 on a tie; the tensor's own scale is
    `a = max|x| / (6 256)`, not `/ (6 448)`, since 1.5 times 448 is beyond e4m3 and 256 is the
    largest scale whose 1.5-fold is on its grid.
    Source: Cook et al. 2025, arXiv 2512.02010, algorithm 1, and the authors' code for 256.
    The rule is a property of the bits (`bits.weight.scale_rule`, `bits.activation.scale_rule`,
    `bits=w4a4_nvfp4_46`), so that any method takes it; this row is rounding to nearest with it.

    Left out: the paper's training recipe. The tensor scale of inputs is calibrated, as for all
    nvfp4 here, and not each tensor's own; inputs beyond it choose among saturated scales.
    Cost: no forward; at run time inputs are quantized twice to choose (the codes stay plain nvfp4,
    so products are no slower). Weights are stored as any nvfp4.
    """

    activations: bool = True  # the inputs too: a choice at run time; false: weights alone
    sample_rows: int = 1024  # rows per layer on which the reported error is measured

    def needs(self) -> StatisticsNeeds:
        return StatisticsNeeds(rows=self.sample_rows)

    def unsupported(self, bits: Bits) -> str | None:
        if bits.weight.number_format is not NumberFormat.nvfp4:
            return (
                f"four_over_six chooses between scales of nvfp4 blocks and {bits.name} has weights "
                f"in {bits.weight.describe()}; use bits with nvfp4 weights"
            )
        return None

    def quantize(
        self, denoiser: nn.Module, *, calibration: Calibration, bits: Bits
    ) -> QuantizationReport:
        if reason := self.unsupported(bits):
            raise ValueError(reason)
        rule, activation = ScaleRule.four_over_six, bits.activation
        if self.activations and activation.number_format is NumberFormat.nvfp4:
            activation = replace(activation, scale_rule=rule)
        own = replace(bits, weight=replace(bits.weight, scale_rule=rule), activation=activation)
        return quantize_layers(
            denoiser,
            calibration=calibration,
            bits=own,
            recipe=LayerRecipe(),
            elements=[
                Element(
                    name="weights' blocks at 6 or at 4",
                    has=elements.six_or_four,
                    otherwise="no weight is nvfp4",
                ),
                Element(
                    name="inputs' blocks at 6 or at 4, chosen at run time",
                    has=elements.six_or_four_inputs,
                    otherwise=f"activations={str(self.activations).lower()}, inputs in "
                    f"{bits.activation.describe()}",
                ),
                TO_NEAREST,
            ],
            left_out=["a scale of each tensor at run time: the inputs' is calibrated"],
        )
