"""TAC-Diffusion: noise-estimation reconstruction and input bias correction, per step.

Legend: S steps, B samples, C channels, K values.
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
class Tac(CorrectedMethod):
    """Scale the output and shift the input of the quantized denoiser, step by step.

    A re-implementation: no code and no coefficients are public. NER: at each step every channel of
    the output is multiplied by the K that minimises
    `absolute sum m (e - K e^)^2 / mean(e^2) + relative sum_b m (e_b - K e^_b)^2 / mean(e_b^2)`,
    b over samples, which has a closed form; the mask m leaves out elements with
    `|e^| < threshold mean|e^|`. IBC: the mean over prompts of (x^_t - x_t), per channel, between
    the quantized path and the unquantized one, is taken off the denoiser's input.
    Source: Yao et al. 2024, arXiv 2407.03917 (ECCV 2024), as far as its text goes. The weights 0.8
    and 0.1 are those of the SegQuant authors' code; its threshold of 4 leaves all but the
    largest elements uncorrected, so the default here is 0: every element counts and is corrected.

    Learned on the quantized model's own path over all calibration prompts, on any latent shape.
    Left out: nothing that is known of it. `base` quantizes the layers.
    Cost: per round, three forwards for each calibration prompt and step.
    """

    key = "tac"
    base: CorrectedBase = CorrectedBase.rtn
    absolute_weight: float = 0.8
    relative_weight: float = 0.1
    threshold: float = 0.0  # times the mean magnitude of the output
    reconstruct: bool = True  # NER
    input_bias: bool = True  # IBC
    rounds: int = 1  # from the second on, the path is the corrected one

    def __post_init__(self) -> None:
        if min(self.absolute_weight, self.relative_weight) < 0 or (
            self.absolute_weight + self.relative_weight <= 0
        ):
            raise ValueError(
                f"absolute_weight={self.absolute_weight}, relative_weight={self.relative_weight}; "
                "give two numbers of at least 0, not both 0"
            )
        super().__post_init__()

    def elements(self) -> list[str]:
        return [
            *(["noise-estimation reconstruction (NER)"] if self.reconstruct else []),
            *(["input bias correction (IBC)"] if self.input_bias else []),
        ]

    def left_out(self) -> list[str]:
        return ["a re-implementation: the authors' coefficients are not public"]

    def corrector(self, *, calibration: Calibration) -> TacCorrector:
        return TacCorrector(settings=self, rounds=self.rounds)


@dataclass
class _Sums:
    """Of one step: the products of the closed form, and the input's difference, per channel."""

    cross_C: Tensor
    power_C: Tensor
    drift_C: Tensor
    calls: int = 0


@dataclass
class TacCorrector:
    """Learned per step: K [C] and the input's bias [C]."""

    settings: Tac
    rounds: int
    scale_SC: Tensor | None = None
    bias_SC: Tensor | None = None
    _seen: dict[int, _Sums] = field(default_factory=dict)

    def observe(self, pair: StepPair, *, step: int) -> None:
        cross_C, power_C = self._products(pair)
        drift_C = by_channel(pair.quantized_input - pair.reference_input).mean(1).cpu()
        if step not in self._seen:
            zeros = (torch.zeros_like(cross_C), torch.zeros_like(cross_C))
            self._seen[step] = _Sums(*zeros, torch.zeros_like(drift_C))
        seen = self._seen[step]
        seen.cross_C = seen.cross_C + cross_C
        seen.power_C = seen.power_C + power_C
        seen.drift_C = seen.drift_C + drift_C
        seen.calls += 1

    def _products(self, pair: StepPair) -> tuple[Tensor, Tensor]:
        e, quantized = pair.reference.double(), pair.quantized.double()
        tiny = torch.finfo(torch.float64).tiny
        own = e.square().flatten(1).mean(1).clamp(min=tiny)
        weight = (
            self.settings.absolute_weight / e.square().mean().clamp(min=tiny)
            + self.settings.relative_weight / own
        ).reshape(-1, *[1] * (e.ndim - 1))
        weight = weight * self._mask(quantized)
        return (
            by_channel(weight * e * quantized).sum(1).cpu(),
            by_channel(weight * quantized * quantized).sum(1).cpu(),
        )

    def _mask(self, quantized: Tensor) -> Tensor:
        return (quantized.abs() >= self.settings.threshold * quantized.abs().mean()).to(
            quantized.dtype
        )

    def fit(self) -> None:
        steps = [self._seen[step] for step in sorted(self._seen)]
        self.scale_SC = torch.stack(
            [torch.where(o.power_C > 0, o.cross_C / o.power_C, 1.0) for o in steps]
        )
        self.bias_SC = torch.stack([o.drift_C / o.calls for o in steps])
        self._seen = {}

    def correct_input(self, latents: Tensor, *, step: int) -> Tensor:
        if self.bias_SC is None or not self.settings.input_bias:
            return latents
        bias = along_channels(self.bias_SC[step], latents)
        return (latents.double() - bias).to(latents.dtype)

    def __call__(self, output: Tensor, *, step: int) -> Tensor:
        if self.scale_SC is None or not self.settings.reconstruct:
            return output
        scaled = output.double() * along_channels(self.scale_SC[step], output)
        kept = torch.where(self._mask(output.double()) > 0, scaled, output.double())
        return kept.to(output.dtype)

    def noise_variance(self, *, step: int) -> None:
        return None

    def tensors(self) -> dict[str, Tensor]:
        assert self.scale_SC is not None
        assert self.bias_SC is not None
        return {"scale_SC": self.scale_SC, "bias_SC": self.bias_SC}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self.scale_SC, self.bias_SC = tensors["scale_SC"], tensors["bias_SC"]
