"""A layer's output error on sampled rows, for methods that search or learn a layer's factors.

Legend: T rows, O output features, I input features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from segquant.core.activation import ActivationGrid, fake_quantize, static_scales
from segquant.core.input_statistics import LayerStatistics
from segquant.core.learned import activation_ste, plain_grids, weight_ste
from segquant.core.recipe import LayerRecipe, partitions
from segquant.core.schemes import Bits
from segquant.core.segments import whole
from segquant.core.transforms import InputTransform
from segquant.core.weights import WeightGrid, fake_quantize_weight


@dataclass(frozen=True, kw_only=True)
class LayerProblem:
    """One uncut layer with its sampled rows, range and grids, on the layer's device."""

    w_OI: Tensor
    sample_TI: Tensor
    low_I: Tensor
    high_I: Tensor
    weight_grid: WeightGrid
    activation_grid: ActivationGrid | None

    @property
    def amax(self) -> Tensor:
        return torch.maximum(-self.low_I, self.high_I)

    def output(self) -> Tensor:
        """The float layer's, without its bias [T, O]."""
        return self.sample_TI @ self.w_OI.T

    def quantized_input(self, scale_I: Tensor) -> Tensor:
        """Q(X / s), on the scales that the layer will have."""
        x_TI, grid = self.sample_TI / scale_I, self.activation_grid
        if grid is None:
            return x_TI
        static = None
        if grid.scheme.calibrated:
            low_I, high_I = self.low_I / scale_I, self.high_I / scale_I
            static = static_scales(low_I, high_I, grid=grid, sample_TI=x_TI)
        return fake_quantize(x_TI, grid=grid, static=static)

    def quantized_weight(self, w_OI: Tensor) -> Tensor:
        """Q(W), to nearest."""
        return fake_quantize_weight(w_OI, grid=self.weight_grid)

    def learned_output(self, *, rows_TI: Tensor, scale_I: Tensor) -> Tensor:
        """Q(X / s) Q(W s)^T of some rows, with gradients to s."""
        x_TI = rows_TI / scale_I
        if self.activation_grid is not None:
            x_TI = activation_ste(
                x_TI,
                grid=self.activation_grid,
                low_I=self.low_I / scale_I,
                high_I=self.high_I / scale_I,
            )
        return x_TI @ weight_ste(self.w_OI * scale_I, grid=self.weight_grid).T


def layer_problem(
    linear: nn.Linear,
    *,
    name: str,
    seen: LayerStatistics,
    bits: Bits,
    transform: InputTransform | None = None,
) -> LayerProblem:
    """The problem of one layer, after a transform of its input if there is one."""
    device = linear.weight.device
    if transform is not None:
        seen = transform.of_statistics(seen)
        linear = transform.of_linear(linear)
    shape = whole(in_features=linear.in_features, out_features=linear.out_features)
    parts = partitions(shape, name=name, bits=bits, recipe=LayerRecipe(), notes=[])
    weight_grid, activation_grid = plain_grids(
        weight=bits.weight,
        activation=bits.activation,
        blocks=(parts[0].weight_blocks, parts[0].activation_blocks),
        rows=linear.out_features,
    )
    return LayerProblem(
        w_OI=linear.weight.detach().float(),
        sample_TI=seen.sample_TI.to(device),
        low_I=seen.low_I.to(device),
        high_I=seen.high_I.to(device),
        weight_grid=weight_grid,
        activation_grid=activation_grid,
    )
