"""SpinQuant's learned rotation, at each Linear's input.

Legend: N blocks of B input features, T rows, I input features, O output features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from baselines.budget import Budget, iterations, shortened
from baselines.quarot import layer_generator, not_rotated, rotation_by, unsupported_rotation
from segquant.core import (
    Bits,
    Calibration,
    GptqSettings,
    LayerRecipe,
    QuantizationReport,
    Rounding,
    StatisticsNeeds,
    quantize_layers,
    rounded_by,
)
from segquant.core.layer_plan import LayerPlan
from segquant.core.learned import activation_ste
from segquant.core.outputs import LayerProblem, layer_problem
from segquant.core.transforms import InputTransform, hadamard_blocks, rotate, rotation_block

QUICK_STEPS = 20
PAPER_STEPS = 100


@dataclass(kw_only=True)
class SpinQuant:
    """Learn the rotation before each Linear on the orthogonal matrices, then round the weights.

    R starts as a randomized Hadamard matrix and follows Cayley SGD: with G the gradient and
    `A = M - M^T, M = G R^T - R R^T G R^T / 2`, a step of length l is
    `R <- (I + l/2 A)^-1 (I - l/2 A) R`, which stays orthogonal. While R is learned the weights are
    in 16 bit and activations are quantized. Source: Liu et al. 2024, arXiv 2405.16406, for the
    method (learning rate 1.5 falling to 0, 100 steps, then GPTQ); Li et al. 2020, arXiv 2002.01113,
    for Cayley SGD.

    Other than in the paper: the loss is each layer's relative output error, not the language
    model's, and each layer has a rotation of its own in blocks, since in a diffusion transformer
    the modulation stands between a folded rotation and the layer (`quarot` says more). So R is
    stored, and done as a product, at run time.
    Left out: rotation of values within heads (R2), of queries and keys (R3).
    Cost: no forward; 20 or 100 small products and solves a layer; B products per channel and row at
    run time, 16 bits for each number of R.
    """

    budget: Budget = Budget.quick  # 20 steps a layer, or the paper's 100
    learning_rate: float = 1.5
    block_size: int = 64
    seed: int = 0  # of the starting rotation
    rounding: Rounding = Rounding.gptq
    damping: float = 0.01
    gptq_block_size: int = 128
    sample_rows: int = 256

    def __post_init__(self) -> None:
        if self.block_size < 4 or self.block_size & (self.block_size - 1):
            raise ValueError(f"block_size={self.block_size}; give a power of two of at least 4")

    @property
    def _steps(self) -> int:
        return iterations(self.budget, quick=QUICK_STEPS, paper=PAPER_STEPS)

    def needs(self) -> StatisticsNeeds:
        return StatisticsNeeds(gram=self.rounding.reads_gram, rows=self.sample_rows)

    def unsupported(self, bits: Bits) -> str | None:
        if not bits.activation.quantized:
            return f"spinquant learns rotations for activations and {bits.name} quantizes none"
        return unsupported_rotation(bits)

    def quantize(
        self, denoiser: nn.Module, *, calibration: Calibration, bits: Bits
    ) -> QuantizationReport:
        if reason := self.unsupported(bits):
            raise ValueError(reason)

        def plan_of(name: str, linear: nn.Linear) -> LayerPlan:
            size = rotation_block(linear.in_features, largest=self.block_size)
            if size == 0:
                return LayerPlan(notes=(not_rotated(linear),))
            seen = calibration.statistics[name]
            problem = layer_problem(linear, name=name, seen=seen, bits=bits)
            rotation_NBB = self._learn(problem, name=name, size=size)
            return LayerPlan(transform=InputTransform(rotation_NBB=rotation_NBB))

        settings = GptqSettings(damping=self.damping, block_size=self.gptq_block_size)
        return quantize_layers(
            denoiser,
            calibration=calibration,
            bits=bits,
            recipe=LayerRecipe(rounding=self.rounding, gptq=settings),
            plan_of=plan_of,
            elements=[
                rotation_by("rotation learned by Cayley SGD, weights in 16 bit meanwhile"),
                rounded_by(self.rounding),
            ],
            left_out=[
                "the model's own loss: each layer's output error is minimised",
                "rotations folded into weights, rotation of values, queries and keys",
                *shortened(self._steps, paper=PAPER_STEPS),
            ],
        )

    def _learn(self, problem: LayerProblem, *, name: str, size: int) -> Tensor:
        features, grid = problem.w_OI.shape[1], problem.activation_grid
        assert grid is not None
        generator = layer_generator(name, seed=self.seed)
        start = hadamard_blocks(features, block_size=size, generator=generator)
        rotation_NBB = start.to(problem.w_OI.device)
        target_TO = problem.output()
        power = target_TO.square().mean().clamp(min=torch.finfo(torch.float32).tiny)
        best_NBB, best = rotation_NBB, float("inf")
        steps = self._steps
        for step in range(steps + 1):
            rotation_NBB = rotation_NBB.detach().requires_grad_()
            with torch.enable_grad():
                x_TI = rotate(problem.sample_TI, rotation_NBB)
                low_I, high_I = x_TI.detach().amin(0), x_TI.detach().amax(0)
                x_TI = activation_ste(x_TI, grid=grid, low_I=low_I, high_I=high_I)
                found_TO = x_TI @ rotate(problem.w_OI, rotation_NBB).T
                loss = (found_TO - target_TO).square().mean() / power
            if float(loss.detach()) < best:
                best_NBB, best = rotation_NBB.detach(), float(loss.detach())
            if step < steps:
                (gradient_NBB,) = torch.autograd.grad(loss, rotation_NBB)
                length = self.learning_rate * (1 - step / steps)
                rotation_NBB = cayley_step(rotation_NBB.detach(), gradient_NBB, length=length)
        return best_NBB.cpu()


def cayley_step(rotation_NBB: Tensor, gradient_NBB: Tensor, *, length: float) -> Tensor:
    """One step down the gradient on the orthogonal matrices, each block on its own."""
    r, g = rotation_NBB, gradient_NBB
    m = g @ r.mT - 0.5 * r @ (r.mT @ g @ r.mT)
    skew = m - m.mT
    identity = torch.eye(r.shape[-1], device=r.device)
    turned: Tensor = torch.linalg.solve(
        identity + 0.5 * length * skew, (identity - 0.5 * length * skew) @ r
    )
    return turned
