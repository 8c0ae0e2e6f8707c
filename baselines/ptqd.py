"""PTQD: the quantized model's error as a correlated part, a bias and a noise, taken off per step.

Legend: S steps, C channels, K values of a channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from baselines.corrected import CorrectedBase, CorrectedMethod
from segquant.core import Calibration
from segquant.core.correction import StepPair, along_channels, by_channel


@dataclass(kw_only=True)
class Ptqd(CorrectedMethod):
    """Correct the denoiser's output by what its quantization error is like at each step.

    `e^ = e + D, D = k e + D'`: at each step k is the slope of D on e (no less than 0), mu_q and
    sigma_q the mean and deviation of D' per channel; the corrected output is
    `(e^ - mu_q) / (1 + k)`. A stochastic sampler's own noise then becomes
    `sigma_t^2 <- max(0, sigma_t^2 - c_t^2 sigma_q^2 / (1 + k)^2)`, c_t its factor of e.
    Source: He et al. 2023, arXiv 2305.10657.

    Learned on the quantized model's own path over all calibration prompts, the unquantized model
    beside it on the same inputs; the paper has 1024 samples. Where the model predicts a velocity
    (flow matching), e is the velocity: the correlation and the bias are taken off all the same.
    A deterministic sampler (all three tiny pipelines have one) adds no noise, so the variance part
    does not apply to it; the record says which it was.
    Left out: bits per step by signal-to-noise ratio. `base` quantizes the layers; the paper's is
    BRECQ, which `base=adaround` is; the default is `rtn`, so that the row shows the correction.
    Cost: per round, three forwards for each calibration prompt and step.
    """

    key = "ptqd"
    base: CorrectedBase = CorrectedBase.rtn
    correlation: bool = True
    bias: bool = True
    variance: bool = True  # for stochastic samplers
    rounds: int = 1  # from the second on, the path is the corrected one

    def elements(self) -> list[str]:
        return [
            *(["correlated part of the error taken off per step"] if self.correlation else []),
            *(["bias per channel and step taken off"] if self.bias else []),
        ]

    def left_out(self) -> list[str]:
        return [
            "bits per step by signal-to-noise ratio",
            "learning on the guided prediction: under classifier-free guidance the slope, the bias "
            "and the variance are those of the denoiser's raw output",
        ]

    def corrector(self, *, calibration: Calibration) -> PtqdCorrector:
        return PtqdCorrector(
            correlation=self.correlation,
            bias=self.bias,
            variance=self.variance,
            rounds=self.rounds,
        )


@dataclass
class _Sums:
    """Running sums of one step, per channel, float64."""

    count: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, e_CK: Tensor, d_CK: Tensor) -> None:
        self.count += e_CK.shape[1]
        parts = {"e": e_CK, "d": d_CK, "ee": e_CK * e_CK, "ed": e_CK * d_CK, "dd": d_CK * d_CK}
        for name, part in parts.items():
            total_C = part.sum(1).cpu()
            self.sums[name] = self.sums[name] + total_C if name in self.sums else total_C


@dataclass
class PtqdCorrector:
    """Learned per step: k, mu_q [C] and sigma_q^2 [C]."""

    correlation: bool
    bias: bool
    variance: bool
    rounds: int
    k_S: Tensor | None = None
    mean_SC: Tensor | None = None
    variance_SC: Tensor | None = None
    _seen: dict[int, _Sums] = field(default_factory=dict)

    def observe(self, pair: StepPair, *, step: int) -> None:
        e_CK = by_channel(pair.reference)
        self._seen.setdefault(step, _Sums()).add(e_CK, by_channel(pair.quantized) - e_CK)

    def fit(self) -> None:
        fits = [self._fit_step(self._seen[step]) for step in sorted(self._seen)]
        self.k_S = torch.stack([k for k, _, _ in fits])
        self.mean_SC = torch.stack([mean_C for _, mean_C, _ in fits])
        self.variance_SC = torch.stack([variance_C for _, _, variance_C in fits])
        self._seen = {}

    def _fit_step(self, seen: _Sums) -> tuple[Tensor, Tensor, Tensor]:
        mean = {name: total_C / seen.count for name, total_C in seen.sums.items()}
        k = torch.zeros((), dtype=torch.float64)
        if self.correlation:
            # The slope over all values of the step, channels together.
            e, d = mean["e"].mean(), mean["d"].mean()
            spread = mean["ee"].mean() - e * e
            if float(spread) > 0:
                k = ((mean["ed"].mean() - e * d) / spread).clamp(min=0)
        rest_C = mean["d"] - k * mean["e"]
        square_C = mean["dd"] - 2 * k * mean["ed"] + k * k * mean["ee"]
        variance_C = (square_C - rest_C * rest_C).clamp(min=0)
        return k, rest_C if self.bias else torch.zeros_like(rest_C), variance_C

    def correct_input(self, latents: Tensor, *, step: int) -> Tensor:
        return latents

    def __call__(self, output: Tensor, *, step: int) -> Tensor:
        if self.k_S is None or self.mean_SC is None:
            return output
        mean = along_channels(self.mean_SC[step], output)
        corrected = (output.double() - mean) / (1 + float(self.k_S[step]))
        return corrected.to(output.dtype)

    def noise_variance(self, *, step: int) -> tuple[float, float] | None:
        if not self.variance or self.k_S is None or self.variance_SC is None:
            return None
        return float(self.variance_SC[step].mean()), 1 + float(self.k_S[step])

    def tensors(self) -> dict[str, Tensor]:
        assert self.k_S is not None
        assert self.mean_SC is not None
        assert self.variance_SC is not None
        return {"k_S": self.k_S, "mean_SC": self.mean_SC, "variance_SC": self.variance_SC}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self.k_S, self.mean_SC = tensors["k_S"], tensors["mean_SC"]
        self.variance_SC = tensors["variance_SC"]


def calibrated_variance(
    variance: float, *, coefficient: float, error: float, factor: float
) -> float:
    """The sampler's variance with the quantization's part taken off, not below 0.

    Args:
        variance: sigma_t^2 of the sampler.
        coefficient: c_t, the sampler's factor of the prediction.
        error: sigma_q^2.
        factor: 1 + k.
    """
    return max(0.0, variance - coefficient**2 * error / factor**2)
