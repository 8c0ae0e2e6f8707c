"""PTQ4DiT: salience balancing, then rounding and steps learned together."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from baselines.adaround import AdaRound
from baselines.ptq4dit_csb import CSB_LEFT_OUT, csb_elements, csb_factors
from segquant.core import Calibration, Element, StatisticsNeeds
from segquant.core.layer_plan import LayerPlan
from segquant.core.transforms import InputTransform


@dataclass(kw_only=True)
class Ptq4Dit(AdaRound):
    """Balance the salience of channels (see `ptq4dit_csb`), then reconstruct blocks.

    Rounding and the steps of static activations are learned jointly.
    Source: Wu et al. 2024, arXiv 2405.16005; iterations as `adaround`.

    Left out: see `ptq4dit_csb`; the paper's per-tensor asymmetric activations are the bits'
    business. Cost: as `adaround`, and one division per input channel at run time.
    """

    correlation: bool = True  # salience weighted over steps (SSC)

    def needs(self) -> StatisticsNeeds:
        return replace(AdaRound.needs(self), steps=True)

    def plan(self, name: str, linear: nn.Linear, *, calibration: Calibration) -> LayerPlan:
        factors_I = csb_factors(
            linear, name=name, calibration=calibration, correlation=self.correlation
        )
        return LayerPlan(transform=InputTransform(scale_I=factors_I))

    def joint(self) -> bool:
        return True

    def elements(self) -> list[Element | str]:
        balanced = csb_elements(correlation=self.correlation)
        return [*balanced, *AdaRound.elements(self)]

    def left_out(self) -> list[str]:
        return [*AdaRound.left_out(self), CSB_LEFT_OUT[0]]
