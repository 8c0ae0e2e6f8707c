"""Smoothing with searched alpha the straightforward way: the model runs again for every candidate.

What calibration from statistics is measured against. The procedure is that of the SegQuant
authors' released code, without segments: one pass to trace the range of every input channel; for
every candidate alpha one pass that calibrates the smoothed layer (the input's range, and X^T X for
GPTQ) and one that compares its output; with the best alpha of each layer one pass more that
calibrates. As released, the last candidate of the grid is never tried: 11 alphas take
1 + 2 x 10 + 1 = 22 passes. Grids and GPTQ are the project's own: only the procedure differs.

Legend: T rows, O output features, I input features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segquant.core.activation import ActivationGrid, fake_quantize, static_scales
from segquant.core.calibration import Replay
from segquant.core.plain_linears import linear_layers
from segquant.core.rounding import GptqSettings, Rounding, gptq, gptq_factor
from segquant.core.schemes import Bits, Granularity
from segquant.core.smoothing import smoothing_factors
from segquant.core.weights import WeightGrid, dequantize_weight, quantize_weight, weight_scales

LOOPED = (Rounding.rtn, Rounding.gptq)  # what the released code rounds by
ALPHAS = tuple(n / 10 for n in range(11))


class PlainLayer:
    """One Linear on its way through the passes."""

    def __init__(self, linear: nn.Linear, *, bits: Bits, rounding: Rounding) -> None:
        self.linear, self.bits, self.rounding = linear, bits, rounding
        self.w_OI = linear.weight.detach().float()
        features = linear.in_features
        assert bits.weight.granularity is not Granularity.per_group, "one scale per row or tensor"
        self.weight_grid = WeightGrid(
            scheme=bits.weight, row_blocks=(linear.out_features,), blocks=(features,)
        )
        self.grid = ActivationGrid(scheme=bits.activation, blocks=(features,), dual=(False,))
        self.amax_I = torch.zeros(features)
        self.best, self.best_error = 0.0, float("inf")
        self.alpha = 0.0

    def trace(self, x: Tensor) -> None:
        self.amax_I = self.amax_I.maximum(x.reshape(-1, x.shape[-1]).abs().amax(0).float())

    def smooth(self, alpha: float) -> None:
        self.alpha, self.error = alpha, 0.0
        self.factors_I = smoothing_factors(self.amax_I, self.w_OI.abs().amax(0), alpha=alpha)
        self.low_I = torch.full_like(self.amax_I, float("inf"))
        self.high_I = torch.full_like(self.amax_I, -float("inf"))
        self.gram_II = torch.zeros(0)

    def calibrate(self, x: Tensor) -> None:
        x_TI = x.reshape(-1, x.shape[-1]).float() / self.factors_I
        self.low_I, self.high_I = (
            self.low_I.minimum(x_TI.amin(0)),
            self.high_I.maximum(x_TI.amax(0)),
        )
        if self.rounding is Rounding.gptq:
            gram_II = x_TI.T @ x_TI
            self.gram_II = self.gram_II + gram_II if self.gram_II.numel() else gram_II

    def finish(self) -> None:
        smoothed_OI = self.w_OI * self.factors_I
        scales = weight_scales(smoothed_OI, grid=self.weight_grid)
        if self.rounding is Rounding.gptq:
            settings = GptqSettings()
            rows_grid = self.weight_grid
            factor = gptq_factor(self.gram_II, settings=settings)
            codes_OI = gptq(
                smoothed_OI, factor, scales=scales, grid=rows_grid, block_size=settings.block_size
            ).codes_OI
        else:
            codes_OI = quantize_weight(smoothed_OI, scales=scales, grid=self.weight_grid)
        self.quantized_OI = dequantize_weight(codes_OI, scales=scales, grid=self.weight_grid)
        self.static = None
        if self.bits.activation.calibrated:
            self.static = static_scales(self.low_I, self.high_I, grid=self.grid)

    def forward(self, x: Tensor) -> Tensor:
        smoothed = x.float() / self.factors_I
        if self.bits.activation.quantized:
            smoothed = fake_quantize(smoothed, grid=self.grid, static=self.static)
        return F.linear(smoothed, self.quantized_OI, self.linear.bias)

    def compare(self, x: Tensor) -> None:
        exact = F.linear(x.float(), self.w_OI, self.linear.bias)
        self.error += float((self.forward(x) - exact).square().mean())

    def judge(self) -> None:
        if self.error < self.best_error:
            self.best, self.best_error = self.alpha, self.error


def plain_loop(
    denoiser: nn.Module,
    *,
    replay: Replay,
    bits: Bits,
    rounding: Rounding,
    alphas: Sequence[float] = ALPHAS,
) -> tuple[dict[str, PlainLayer], int]:
    """The quantized layers by name, and the passes over the calibration set that they took."""
    layers = {
        name: PlainLayer(linear, bits=bits, rounding=rounding)
        for name, linear in linear_layers(denoiser).items()
    }
    passes = 0

    def run(step: Callable[[PlainLayer, Tensor], None]) -> None:
        nonlocal passes
        passes += 1
        with torch.no_grad(), ExitStack() as hooks:
            for layer in layers.values():

                def see(_: nn.Module, args: tuple[Any, ...], layer: PlainLayer = layer) -> None:
                    step(layer, args[0])

                hooks.callback(layer.linear.register_forward_pre_hook(see).remove)
            replay(denoiser)

    def calibrate(choose: Callable[[PlainLayer], float]) -> None:
        for layer in layers.values():
            layer.smooth(choose(layer))
        run(PlainLayer.calibrate)
        for layer in layers.values():
            layer.finish()

    run(PlainLayer.trace)
    for alpha in alphas[:-1]:
        calibrate(lambda _, alpha=alpha: alpha)  # type: ignore[misc]
        run(PlainLayer.compare)
        for layer in layers.values():
            layer.judge()
    calibrate(lambda layer: layer.best)
    return layers, passes
