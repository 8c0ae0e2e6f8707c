"""DMQ's learned equivalent scaling, and power-of-two scaling of concatenated inputs.

Legend: S steps, K rows of a step, I input features, D candidates of a shift.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from baselines.balancing import balancing_by, layer_steps, safe_factors
from baselines.budget import Budget, iterations, shortened
from segquant.core import (
    TO_NEAREST,
    Bits,
    Calibration,
    Element,
    LayerRecipe,
    QuantizationReport,
    StatisticsNeeds,
    elements,
    quantize_layers,
)
from segquant.core.layer_plan import LayerPlan
from segquant.core.outputs import LayerProblem, layer_problem
from segquant.core.segments import shape_from_graph
from segquant.core.transforms import InputTransform

QUICK_ITERATIONS = 60
PAPER_ITERATIONS = 6000
SHIFTS = (0, 1, 2, 3)  # candidates of the power of two


@dataclass(kw_only=True)
class DmqLes:
    """Learn a factor per input channel that shares the quantization error between input and weight.

    LES: `min over tau > 0 of sum_t lambda_t ||X_t W^T - Q(X_t / tau) Q(W tau)^T||^2`, by Adam with
    straight-through rounding; `lambda_t = (1 - L_t / sum L)^focal` with L_t a running mean of step
    t's loss, so that steps with large losses do not drown the others.
    PTS: where the input is a concatenation, each channel's step is the common one over 2^d, d the
    candidate of four that most of the sampling steps vote for, if at least `consensus` of them do;
    integer products are shifted by d, and the weight stays on its own grid. Static scales only:
    a dynamic one would follow the shifted channels.
    Source: Lee et al. 2025, arXiv 2507.12933; learning rate, iterations, momentum and consensus are
    the paper's; its exponent `focal` is not known to us and 1 is ours.

    tau is kept positive as exp(theta). Each Adam step takes one sampling step's rows, steps in a
    seeded random order.
    Left out: the AdaRound reconstruction that follows in the paper. The votes are by
    sampling step where the paper's are by calibration sample.
    Cost: no forward beyond the calibration; iterations x layers small products; one division per
    channel at run time.
    """

    budget: Budget = Budget.quick  # 60 iterations a layer, or the paper's 6000
    learning_rate: float = 1e-3
    focal: float = 1.0
    momentum: float = 0.95
    power_of_two: bool = True
    consensus: float = 0.85
    seed: int = 0  # of the order of steps
    sample_rows: int = 256

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum={self.momentum}; give a number in [0, 1)")
        if not 0 <= self.consensus <= 1:
            raise ValueError(f"consensus={self.consensus}; give a number in [0, 1]")

    @property
    def _iterations(self) -> int:
        return iterations(self.budget, quick=QUICK_ITERATIONS, paper=PAPER_ITERATIONS)

    def needs(self) -> StatisticsNeeds:
        return StatisticsNeeds(rows=self.sample_rows, steps=True, graph=self.power_of_two)

    def unsupported(self, bits: Bits) -> str | None:
        return None

    def quantize(
        self, denoiser: nn.Module, *, calibration: Calibration, bits: Bits
    ) -> QuantizationReport:
        def plan_of(name: str, linear: nn.Linear) -> LayerPlan:
            return self._plan(name, linear, calibration=calibration, bits=bits)

        return quantize_layers(
            denoiser,
            calibration=calibration,
            bits=bits,
            recipe=LayerRecipe(),
            plan_of=plan_of,
            elements=[
                balancing_by("learned equivalent scaling (LES), weighted over steps"),
                *([_pts(bits)] if self.power_of_two else []),
                TO_NEAREST,
            ],
            left_out=[
                "block reconstruction (AdaRound) after the scaling",
                *([] if self.power_of_two else ["power-of-two scaling (PTS)"]),
                *shortened(self._iterations, paper=PAPER_ITERATIONS),
            ],
        )

    def _plan(
        self, name: str, linear: nn.Linear, *, calibration: Calibration, bits: Bits
    ) -> LayerPlan:
        steps = layer_steps(calibration, name)
        problem = layer_problem(linear, name=name, seen=calibration.statistics[name], bits=bits)
        tau_I = self._learn(problem, steps.sample_SKI)
        transform = InputTransform(scale_I=tau_I)
        concatenated = self.power_of_two and _concatenated(name, linear, calibration=calibration)
        if not concatenated or not _one_step(bits):
            return LayerPlan(transform=transform)
        scaled = layer_problem(
            linear, name=name, seen=calibration.statistics[name], bits=bits, transform=transform
        )
        rows_SKI = torch.cat([steps.sample_SKI, steps.low_SI[:, None], steps.high_SI[:, None]], 1)
        power_I = power_of_two_factors(
            scaled, transform.of_input(rows_SKI), consensus=self.consensus
        )
        note = f"power-of-two scaling: {int((power_I < 1).sum())} channels shifted"
        return LayerPlan(transform=transform, power_I=power_I, notes=(note,))

    def _learn(self, problem: LayerProblem, sample_SKI: Tensor) -> Tensor:
        count = self._iterations
        sample_SKI = sample_SKI.to(problem.w_OI.device)
        theta_I = torch.zeros_like(problem.low_I, requires_grad=True)
        optimizer = torch.optim.Adam([theta_I], lr=self.learning_rate)
        generator = torch.Generator().manual_seed(self.seed)
        running_S = torch.zeros(sample_SKI.shape[0], dtype=torch.float64)
        target_SKO = sample_SKI @ problem.w_OI.T
        with torch.enable_grad():
            for step in _order(sample_SKI.shape[0], count, generator=generator):
                found_KO = problem.learned_output(rows_TI=sample_SKI[step], scale_I=theta_I.exp())
                loss = (found_KO - target_SKO[step]).square().mean()
                weight = focal_weight(
                    running_S, step, float(loss.detach()), focal=self.focal, momentum=self.momentum
                )
                optimizer.zero_grad()
                torch.autograd.backward(weight * loss)
                optimizer.step()
        alive_I = (problem.amax > 0) & (problem.w_OI.abs().amax(0) > 0)
        return safe_factors(theta_I.detach().exp(), alive_I=alive_I).cpu()


def _one_step(bits: Bits) -> bool:
    """Whether an input has a common step that is known beforehand."""
    return bits.activation.calibrated and not bits.activation.microscaled


def _pts(bits: Bits) -> Element:
    why = "no concatenated input has channels that most steps want finer"
    return Element(
        name="power-of-two scaling of concatenated inputs (PTS)",
        has=elements.power_scaled,
        otherwise=why if _one_step(bits) else f"{bits.name} has no static common step to shift",
    )


def focal_weight(
    running_S: Tensor, step: int, loss: float, *, focal: float, momentum: float
) -> float:
    """lambda_t after step t's running loss has taken in this one; `running_S` is updated."""
    seen = float(running_S[step])
    running_S[step] = momentum * seen + (1 - momentum) * loss if seen else loss
    total = float(running_S.sum())
    if total <= 0 or int((running_S > 0).sum()) < 2:
        return 1.0
    return float((1 - float(running_S[step]) / total) ** focal)


def power_of_two_factors(problem: LayerProblem, sample_SKI: Tensor, *, consensus: float) -> Tensor:
    """2^-d of each channel [I]: its step as a part of the common one.

    Each sampling step votes, channel by channel, for the d whose grid (the input's common step over
    2^d) has the least squared error on that step's rows; the smaller d on a tie. The extremes of
    the step are among its rows, so that a value which sampling missed is not clipped for nothing.
    The winner is taken where its share of votes reaches `consensus`, else d = 0.
    """
    grid = problem.activation_grid
    if grid is None:
        return torch.ones_like(problem.low_I)
    codes, sample_SKI = grid.scheme.grid, sample_SKI.to(problem.w_OI.device)
    common = problem.amax.amax() / codes.quant_max
    errors = []
    for shift in SHIFTS:
        step = common / 2.0**shift
        nearest = codes.nearest_(sample_SKI / step) * step
        errors.append((nearest - sample_SKI).square().sum(1))
    votes_SI = torch.stack(errors).argmin(0)
    share_DI = torch.stack([(votes_SI == d).double().mean(0) for d in range(len(SHIFTS))])
    share_I, winner_I = share_DI.max(0)
    winner_I = torch.where(share_I >= consensus, winner_I, torch.zeros_like(winner_I))
    return 2.0 ** -torch.tensor(SHIFTS, device=winner_I.device)[winner_I].float()


def _concatenated(name: str, linear: nn.Linear, *, calibration: Calibration) -> bool:
    if calibration.graph is None:
        raise ValueError(
            "dmq_les with power_of_two=true needs the denoiser's static graph and the calibration "
            "has none; set calibration.graph, or power_of_two=false"
        )
    shape = shape_from_graph(
        calibration.graph,
        name,
        in_features=linear.in_features,
        out_features=linear.out_features,
        head_segments=False,
    )
    return len(shape.input) > 1


def _order(steps: int, count: int, *, generator: torch.Generator) -> list[int]:
    order: list[int] = []
    while len(order) < count:
        order += torch.randperm(steps, generator=generator).tolist()
    return order[:count]
