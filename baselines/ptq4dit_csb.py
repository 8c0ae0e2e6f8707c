"""PTQ4DiT's salience balancing alone, without its reconstruction."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from baselines.balancing import balancing_by, layer_steps, power_factors, step_weights
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
from segquant.core.layer_plan import LayerPlan
from segquant.core.transforms import InputTransform


@dataclass(kw_only=True)
class Ptq4DitCsb:
    """Balance the salience of each channel between input and weight, weighted over the steps.

    `s(X_j) = sum_t eta_t max|X_j^(t)|` with `eta = softmax_t(-rho(s(X^(t)), s(W)))`, rho Spearman's
    correlation over channels (the paper's SSC); then the balanced salience is
    `s~ = sqrt(s(X) s(W))`, the input is multiplied by `s~ / s(X)` and the weight by its inverse,
    `s(X) / s~` (CSB). Source: Wu et al. 2024, arXiv 2405.16005.
    The factors without the weighting over steps are SmoothQuant's at alpha 0.5.

    `correlation=False` weighs all steps alike (the paper's ablation). Granularity and asymmetry are
    the bits', not the method's; the paper has per-channel weights and per-tensor activations.
    Left out: see `ptq4dit` for the reconstruction; factors folded into the modulation.
    Cost: no forward beyond the calibration; one division per input channel at run time.
    """

    correlation: bool = True
    sample_rows: int = 256

    def needs(self) -> StatisticsNeeds:
        return StatisticsNeeds(rows=self.sample_rows, steps=True)

    def unsupported(self, bits: Bits) -> str | None:
        return None

    def quantize(
        self, denoiser: nn.Module, *, calibration: Calibration, bits: Bits
    ) -> QuantizationReport:
        def plan_of(name: str, linear: nn.Linear) -> LayerPlan:
            factors_I = csb_factors(
                linear, name=name, calibration=calibration, correlation=self.correlation
            )
            return LayerPlan(transform=InputTransform(scale_I=factors_I))

        return quantize_layers(
            denoiser,
            calibration=calibration,
            bits=bits,
            recipe=LayerRecipe(),
            plan_of=plan_of,
            elements=[*csb_elements(correlation=self.correlation), TO_NEAREST],
            left_out=["block reconstruction (AdaRound)", *CSB_LEFT_OUT],
        )


CSB_LEFT_OUT = (
    "factors folded into the modulation and the previous product: they are applied at run time",
    "quantized attention products (queries, keys, values, softmax)",
)


def csb_elements(*, correlation: bool) -> list[Element]:
    """What of the balancing is done, for the report."""
    names = ["channel-wise salience balancing (CSB)"]
    names += ["Spearman-weighted salience over steps (SSC)"] if correlation else []
    return [balancing_by(name) for name in names]


def csb_factors(
    linear: nn.Linear, *, name: str, calibration: Calibration, correlation: bool
) -> Tensor:
    """The factors that the input is divided by, [I]."""
    amax_SI = layer_steps(calibration, name).amax
    salience_w_I = linear.weight.detach().abs().amax(0).float().cpu()
    if correlation:
        salience_x_I = (step_weights(amax_SI, salience_w_I)[:, None] * amax_SI.double()).sum(0)
    else:
        salience_x_I = amax_SI.mean(0)
    return power_factors(salience_x_I, salience_w_I, alpha=0.5)
