"""A quantized Linear while its rounding is being learned (AdaRound).

`W_q = s (clip(floor(W / s) + h(V) + z, n, p) - z)`, `h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1)`: V
starts where h is the fraction that rounding cuts off, and decides up (V >= 0) or down in the end.
Source: Nagel et al. 2020, arXiv 2004.10568 (AdaRound).

Legend: O output features, I input features, N blocks of input features.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segquant.core import QuantLinear
from segquant.core.activation import ActivationScales
from segquant.core.layer_plan import rebuilt
from segquant.core.learned import activation_ste, on_scales
from segquant.core.ranges import RangeRule
from segquant.core.weights import WeightScales

STRETCH_LOW, STRETCH_HIGH = -0.1, 1.1


def soft_bit(v: Tensor) -> Tensor:
    """h(V): the part of a step that is added to the weight rounded down."""
    return (torch.sigmoid(v) * (STRETCH_HIGH - STRETCH_LOW) + STRETCH_LOW).clamp(0, 1)


def inverse_soft_bit(h: Tensor) -> Tensor:
    """V of a fraction in [0, 1)."""
    return -torch.log((STRETCH_HIGH - STRETCH_LOW) / (h - STRETCH_LOW) - 1)


def rounding_loss(v: Tensor, *, beta: float) -> Tensor:
    """`sum 1 - |2 h - 1|^beta`: 0 where every bit has been decided."""
    return (1 - (2 * soft_bit(v) - 1).abs().pow(beta)).sum()


def annealed_beta(progress: float, *, warm_up: float, start: float, end: float) -> float | None:
    """beta at a share of the iterations, falling on a cosine; None during the warm-up."""
    if progress < warm_up:
        return None
    part = (progress - warm_up) / max(1 - warm_up, 1e-9)
    return end + 0.5 * (start - end) * (1 + math.cos(part * math.pi))


def has_static_steps(quant: QuantLinear) -> bool:
    """Whether the input has one set of static steps, that can be learned."""
    grid = quant.spec.activation_grid
    static = quant.activation_scale is not None and grid is not None
    return static and not quant.spec.activation.microscaled and not quant.spec.steps


class SoftLinear(nn.Module):
    """Takes the place of a QuantLinear of integer weights, uncut output, no smoothing or branch.

    Args:
        quant: it stays as it is; `hardened` makes the one to put back.
        w_OI: the float weight that meets the (transformed) input.
    """

    def __init__(self, quant: QuantLinear, w_OI: Tensor) -> None:
        super().__init__()
        spec = quant.spec
        assert len(spec.output_segments) == 1
        assert not spec.rank
        assert not spec.smoothing_groups
        assert not spec.input_power
        self.quant = quant
        self.in_features, self.out_features = quant.in_features, quant.out_features
        grid = spec.weight_grid
        self._limits = (float(grid.codes.quant_min), float(grid.codes.quant_max))
        scales = WeightScales(scale=quant.weight_scale, zero_point=quant.weight_zero_point)
        wide = scales.per_weight(grid)
        self._scale, self._zero = wide.scale, wide.zero_point
        units_OI = w_OI.float() / wide.scale
        self._floor_OI = units_OI.floor()
        self.v_OI = nn.Parameter(inverse_soft_bit(units_OI - self._floor_OI))
        self.theta = self._step_parameter()
        self.quantize_input = True
        self._decided = False

    def decide(self) -> None:
        """From now on every bit is up or down."""
        self._decided = True

    def _step_parameter(self) -> nn.Parameter | None:
        """The logarithm of the learned static step over the calibrated one; None if dynamic."""
        scale = self.quant.activation_scale
        if scale is None or not has_static_steps(self.quant):
            return None
        return nn.Parameter(torch.zeros_like(scale))

    def weight(self) -> Tensor:
        """The weight as it is now, [O, I]."""
        return (self._codes() - self._offset()) * self._scale

    def _offset(self) -> Tensor | float:
        return 0.0 if self._zero is None else self._zero

    def _codes(self) -> Tensor:
        bit_OI = (self.v_OI >= 0).float() if self._decided else soft_bit(self.v_OI)
        return (self._floor_OI + bit_OI + self._offset()).clamp(*self._limits)

    def forward(self, input: Tensor) -> Tensor:
        transform = self.quant.transform
        x = input.float() if transform is None else transform.of_input(input)
        if self.quantize_input:
            x = self._quantized(x)
        bias_O = self.quant.bias
        bias_O = None if bias_O is None else bias_O.float()
        return F.linear(x, self.weight(), bias_O).to(input.dtype)

    def _quantized(self, x: Tensor) -> Tensor:
        grid = self.quant.spec.activation_grid
        if grid is None:
            return x
        grid = replace(grid, scheme=replace(grid.scheme, range_rule=RangeRule.amax))
        if not grid.scheme.calibrated or grid.scheme.microscaled:
            zeros = torch.zeros(self.in_features, device=x.device)
            dynamic = replace(grid, scheme=replace(grid.scheme, dynamic=True))
            return activation_ste(x, grid=dynamic, low_I=zeros, high_I=zeros)
        scale, zero = self.quant.activation_scale, self.quant.activation_zero_point
        assert scale is not None
        row = self.quant.step if self.quant.spec.steps else 0
        step_N = scale[row] if self.theta is None else (scale * self.theta.exp())[row]
        scales = ActivationScales(scale=step_N, zero_point=None if zero is None else zero[row])
        return on_scales(x, scales=scales, grid=grid)

    def hardened(self) -> QuantLinear:
        """The QuantLinear with every bit decided and the learned steps."""
        changed: dict[str, Tensor] = {}
        scale = self.quant.activation_scale
        if self.theta is not None and scale is not None:
            changed["activation_scale"] = scale * self.theta.detach().exp()
        quant = self.quant
        self.decide()
        with torch.no_grad():
            codes_OI = self._codes()
        made = rebuilt(quant, spec=quant.spec, dtype=quant.dtype, codes_OI=codes_OI, **changed)
        return made.train(quant.training)
