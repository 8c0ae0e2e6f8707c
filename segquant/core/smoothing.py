"""Smoothing: per-channel factors that move activation outliers into the weights.

`X W^T = (X / s) (W s)^T` holds for any positive s; with
`s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)` the quantization error is shared between the two.
Source: SmoothQuant (arXiv 2211.10438), equation 4.

The search minimises, for each output segment, the mean squared error of the layer's whole output
on the sampled rows,

    E(s) = mean over rows and outputs of (X W^T - Q(X / s) Q(W s)^T)^2,

in float32, without the bias (it cancels), with the activation scales that the layer will have:
static ones from all calibration rows, dynamic ones from the row. Weights are rounded to nearest,
also where GPTQ follows. The rows carry the error of weights and of activations and the product of
the two, which a Gram matrix alone does not. With `use_gram` the weights' own part of the error is
taken from all rows instead: tr(D G D^T) / T, D = W - Q(W s) / s, replaces its sampled value.

With `held_out` each row is judged by factors and scales from the other parts of the calibration
set. In-sample, a static scale fits the very extremes that it is judged on, and the tighter every
channel's range, the better it looks; on other prompts such values are clipped. The factors and
scales that the layer gets come from all parts.

Output segments are independent problems. Input segments are not: their errors add up in one output.
The best alpha common to all of them is found first, then each in turn is given its own, which is
kept only where it lowers E. "No smoothing" is a candidate and wins ties.

Legend: T sampled rows, O output features, I input features, P output segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property

import torch
from torch import Tensor

from segquant.core.activation import ActivationGrid, fake_quantize, static_scales
from segquant.core.schemes import TensorScheme
from segquant.core.weights import WeightGrid, fake_quantize_weight

SMALLEST_FACTOR = 1e-4
LARGEST_FACTOR = 1e4

Alpha = float | None  # None: not smoothed


class SmoothingMode(Enum):
    none = "none"
    fixed = "fixed"
    search = "search"


class AlphaGrid(Enum):
    """`released` replays the SegQuant authors' search: its last alpha is never evaluated."""

    full = "full"
    released = "released"  # and "no smoothing" is not among the candidates


@dataclass(frozen=True, kw_only=True)
class SmoothingSettings:
    """Which alphas are tried; alpha in [0, 1], 1 puts all the difficulty on the weights."""

    mode: SmoothingMode = SmoothingMode.none
    alpha: float = 0.5
    alpha_min: float = 0.0
    alpha_max: float = 1.0
    alpha_step: float = 0.1
    include_none: bool = True
    use_gram: bool = False
    held_out: bool = False
    alpha_grid: AlphaGrid = AlphaGrid.full

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha}; give a number in [0, 1]")
        if not 0 <= self.alpha_min <= self.alpha_max <= 1 or self.alpha_step <= 0:
            raise ValueError(
                f"alpha_min={self.alpha_min}, alpha_max={self.alpha_max}, "
                f"alpha_step={self.alpha_step}; give 0 <= alpha_min <= alpha_max <= 1 and a step "
                "above 0"
            )
        if self.held_out and self.use_gram:
            raise ValueError(
                "held_out=true with use_gram=true; a Gram matrix of all rows holds out none: set "
                "one of them false"
            )
        if self.mode is SmoothingMode.search and not self.candidates():
            raise ValueError(
                "alpha_grid=released evaluates all candidates but the last, and there is only one; "
                "widen alpha_min..alpha_max"
            )

    @property
    def over_fits(self) -> bool:
        """Whether alphas are judged on the very rows that ranges come from."""
        return self.mode is SmoothingMode.search and not self.held_out

    def candidates(self) -> tuple[Alpha, ...]:
        """What is tried; of the full grid, both ends."""
        if self.mode is SmoothingMode.none:
            return (None,)
        if self.mode is SmoothingMode.fixed:
            return (self.alpha,)
        steps = int((self.alpha_max - self.alpha_min) / self.alpha_step + 1e-6)
        grid = [round(self.alpha_min + n * self.alpha_step, 10) for n in range(steps + 1)]
        if self.alpha_grid is AlphaGrid.released:
            return tuple(grid[:-1])
        return (None, *grid) if self.include_none else tuple(grid)


@dataclass(frozen=True, kw_only=True)
class LayerInput:
    """What is known of a layer's input: sampled rows, range of all rows, and its Gram matrix.

    The ranges of the calibration's parts and the parts of the sampled rows, where it had several.
    """

    sample_TI: Tensor
    low_I: Tensor
    high_I: Tensor
    gram_II: Tensor | None
    rows: int
    part_low_PI: Tensor | None = None
    part_high_PI: Tensor | None = None
    sample_part_T: Tensor | None = None

    @property
    def in_parts(self) -> bool:
        """Whether rows can be judged by others than those that ranges come from."""
        return self.part_low_PI is not None

    def views(self, *, held_out: bool) -> list[View]:
        """What each sampled row is judged by: all that was seen, or the other parts of it."""
        whole = View(rows=None, others=None, low_I=self.low_I, high_I=self.high_I)
        if not held_out:
            return [whole]
        low_PI, high_PI, part_T = self.part_low_PI, self.part_high_PI, self.sample_part_T
        if low_PI is None or high_PI is None or part_T is None:
            raise ValueError(
                "held_out=true needs a calibration in several parts; give two or more calibration "
                "prompts, or set held_out=false"
            )
        views = []
        for part in range(low_PI.shape[0]):
            others = [other for other in range(low_PI.shape[0]) if other != part]
            views.append(
                View(
                    rows=(part_T == part).nonzero().flatten(),
                    others=(part_T != part).nonzero().flatten(),
                    low_I=low_PI[others].amin(0),
                    high_I=high_PI[others].amax(0),
                )
            )
        return views


@dataclass(frozen=True, kw_only=True)
class View:
    """Sampled rows to judge by (None: all), and what ranges come from: other rows' extremes."""

    rows: Tensor | None
    others: Tensor | None
    low_I: Tensor
    high_I: Tensor

    def amax(self) -> Tensor:
        """Of each input channel, [I]."""
        return torch.maximum(-self.low_I, self.high_I)


@dataclass(frozen=True, kw_only=True)
class Partition:
    """One input segment: its size, and the blocks in it that have scales of their own."""

    size: int
    weight_blocks: tuple[int, ...]
    activation_blocks: tuple[int, ...]
    dual: bool


@dataclass(frozen=True, kw_only=True)
class SearchFit:
    """The chosen alphas' squared errors over the squares of the layer's output, rounded to nearest.

    Each is over the sampled rows: judged by all rows' ranges, the row's own among them, and by the
    ranges of the other parts of the calibration, as on prompts that it has not seen.
    """

    in_sample: float
    held_out: float
    held_out_unsmoothed: float  # of no smoothing

    @classmethod
    def of(cls, parts: Sequence[SearchFit], powers: Sequence[float]) -> SearchFit | None:
        """Of a layer from its output segments and their outputs' squares; None: nothing to fit."""
        total = sum(powers)
        if not parts or total <= 0:
            return None
        pairs = list(zip(parts, powers, strict=True))
        return cls(
            in_sample=sum(part.in_sample * power for part, power in pairs) / total,
            held_out=sum(part.held_out * power for part, power in pairs) / total,
            held_out_unsmoothed=sum(p.held_out_unsmoothed * power for p, power in pairs) / total,
        )


@dataclass(frozen=True, kw_only=True)
class Smoothing:
    """A factor per output segment and input channel, and the alpha of each pair of segments.

    `fit` is there where alphas were searched on a calibration in several parts.
    """

    factors_PI: Tensor
    alphas: tuple[tuple[Alpha, ...], ...]
    fit: SearchFit | None = None

    def repeated(self, count: int) -> Smoothing:
        """One vector given to `count` output segments."""
        assert self.factors_PI.shape[0] == 1
        return replace(
            self, factors_PI=self.factors_PI.expand(count, -1), alphas=self.alphas * count
        )


def smoothing_factors(amax_x_I: Tensor, amax_w_I: Tensor, *, alpha: Alpha) -> Tensor:
    """SmoothQuant's factors, float32.

    A channel without weights is divided until it reaches no further than the smallest of the
    others, and weights that no input meets are divided to the reach of the others', never
    multiplied: neither costs the others a step. What is dead in both, or alone, keeps 1.
    """
    if alpha is None:
        return torch.ones_like(amax_x_I, dtype=torch.float32)
    x_I, w_I = amax_x_I.float(), amax_w_I.float()
    factors_I = (x_I.pow(alpha) / w_I.pow(1 - alpha)).clamp(SMALLEST_FACTOR, LARGEST_FACTOR)
    live_I = (x_I > 0) & (w_I > 0)
    factors_I = torch.where(live_I, factors_I, torch.ones_like(factors_I))
    if bool(live_I.all()) or not bool(live_I.any()):
        return factors_I
    reach_x = (x_I / factors_I)[live_I].amin()
    reach_w = (w_I * factors_I)[live_I].amax()
    no_weight_I, no_input_I = (w_I == 0) & (x_I > 0), (x_I == 0) & (w_I > 0)
    factors_I = torch.where(no_weight_I, (x_I / reach_x).clamp(min=1.0), factors_I)
    factors_I = torch.where(no_input_I, (reach_w / w_I).clamp(max=1.0), factors_I)
    return factors_I.clamp(SMALLEST_FACTOR, LARGEST_FACTOR)


def smooth(
    w_OI: Tensor,
    *,
    seen: LayerInput,
    output_segments: Sequence[int],
    partitions: Sequence[Partition],
    weight: TensorScheme,
    activation: TensorScheme,
    settings: SmoothingSettings,
) -> Smoothing:
    """The factors of every output segment: fixed, or the best of the candidates (see the top)."""
    candidates = settings.candidates()
    factors, alphas = [], []
    fits: list[SearchFit] = []
    powers: list[float] = []
    for w_part_OI in torch.split_with_sizes(w_OI.float(), list(output_segments)):
        rows = (w_part_OI.shape[0],)
        problem = _Problem(w_part_OI, rows, seen, partitions, weight, activation, settings)
        chosen = problem.solve(candidates)
        factors.append(problem.factors(chosen))
        alphas.append(chosen)
        if (fit := problem.fit(chosen)) is not None:
            fits.append(fit)
            powers.append(problem.power)
    return Smoothing(
        factors_PI=torch.stack(factors),
        alphas=tuple(alphas),
        fit=SearchFit.of(fits, powers) if len(fits) == len(alphas) else None,
    )


def smooth_together(
    weights: Sequence[Tensor],
    *,
    seen: LayerInput,
    partitions: Sequence[Partition],
    weight: TensorScheme,
    activation: TensorScheme,
    settings: SmoothingSettings,
) -> Smoothing:
    """One vector for all rows of layers that read one tensor, each with weight scales of its own.

    Args:
        weights: [O, I] each.
    """
    rows = tuple(w_OI.shape[0] for w_OI in weights)
    w_OI = torch.cat([w_OI.detach().float() for w_OI in weights])
    problem = _Problem(w_OI, rows, seen, partitions, weight, activation, settings)
    chosen = problem.solve(settings.candidates())
    fit = problem.fit(chosen)
    return Smoothing(factors_PI=problem.factors(chosen)[None], alphas=(chosen,), fit=fit)


class _Problem:
    """The search for rows of weight that get one vector, against the input that they read."""

    def __init__(
        self,
        w_OI: Tensor,
        row_blocks: tuple[int, ...],  # rows that share weight scales
        seen: LayerInput,
        partitions: Sequence[Partition],
        weight: TensorScheme,
        activation: TensorScheme,
        settings: SmoothingSettings,
    ) -> None:
        self._w_OI, self._seen, self._partitions = w_OI, seen, partitions
        self._row_blocks = row_blocks
        self._weight, self._activation = weight, activation
        self._amax_w_I = w_OI.abs().amax(0)
        self._plain: dict[int, Tensor] = {}
        self._use_gram = settings.use_gram and seen.gram_II is not None
        self._whole = seen.views(held_out=False)[0]
        self._searched = settings.mode is SmoothingMode.search
        self._views = seen.views(held_out=settings.held_out and self._searched)
        self._bounds = []
        start = 0
        for part in partitions:
            self._bounds.append(slice(start, start + part.size))
            start += part.size

    def factors(self, alphas: Sequence[Alpha]) -> Tensor:
        pairs = zip(self._bounds, alphas, strict=True)
        return torch.cat([self._factors_of(at, alpha, self._whole) for at, alpha in pairs])

    @cached_property
    def _exact(self) -> Tensor:
        """The output of the sampled rows [T, O]."""
        return self._seen.sample_TI @ self._w_OI.T

    @cached_property
    def power(self) -> float:
        """The squares of the output, summed over the sampled rows."""
        return float(self._exact.square().sum())

    def fit(self, chosen: Sequence[Alpha]) -> SearchFit | None:
        """How a search's choice does on its own rows and on held-out ones; None: not searched."""
        if not self._searched or not self._seen.in_parts:
            return None
        if self.power <= 0:
            return None

        def error(alphas: Sequence[Alpha], *, held_out: bool) -> float:
            views = self._seen.views(held_out=held_out)
            parts = [self._quantized(n, alpha, views) for n, alpha in enumerate(alphas)]
            return _squared_error(self._exact, parts) * self._exact.numel() / self.power

        return SearchFit(
            in_sample=error(chosen, held_out=False),
            held_out=error(chosen, held_out=True),
            held_out_unsmoothed=error([None] * len(chosen), held_out=True),
        )

    def solve(self, candidates: Sequence[Alpha]) -> tuple[Alpha, ...]:
        """The alpha of each input segment."""
        if len(candidates) == 1:
            return (candidates[0],) * len(self._partitions)
        return tuple(self._search(candidates))

    def _search(self, candidates: Sequence[Alpha]) -> list[Alpha]:
        y_TO = self._exact
        count = len(self._partitions)
        best, best_error, best_parts = candidates[0], float("inf"), []
        for alpha in candidates:
            parts = [self._quantized(n, alpha, self._views) for n in range(count)]
            error = self._error(y_TO, parts)
            if error < best_error:
                best, best_error, best_parts = alpha, error, parts
        chosen = [best] * count
        if count == 1:
            return chosen
        for n in range(count):
            for alpha in candidates:
                if alpha == chosen[n]:
                    continue
                other = self._quantized(n, alpha, self._views)
                parts = [*best_parts[:n], other, *best_parts[n + 1 :]]
                error = self._error(y_TO, parts)
                if error < best_error:
                    chosen[n], best_error, best_parts = alpha, error, parts
        return chosen

    def _factors_of(self, at: slice, alpha: Alpha, view: View) -> Tensor:
        return smoothing_factors(view.amax()[at], self._amax_w_I[at], alpha=alpha)

    def _quantized(self, n: int, alpha: Alpha, views: Sequence[View]) -> tuple[Tensor, Tensor]:
        """One input segment's share of the quantized output [T, O], and its weight error [O, I]."""
        shares = [self._share(n, alpha, view) for view in views]
        if len(shares) == 1:
            return shares[0]
        y_TO = shares[0][0].new_empty(self._seen.sample_TI.shape[0], self._w_OI.shape[0])
        for view, (part_TO, _) in zip(views, shares, strict=True):
            y_TO[view.rows] = part_TO
        return y_TO, shares[0][1]

    def _weights(self, n: int, factors_I: Tensor) -> Tensor:
        """The smoothed weight of one input segment on its grid [O, I]."""
        blocks = self._partitions[n].weight_blocks
        grid = WeightGrid(scheme=self._weight, row_blocks=self._row_blocks, blocks=blocks)
        return fake_quantize_weight(self._w_OI[:, self._bounds[n]] * factors_I, grid=grid)

    def _unsmoothed(self, n: int) -> Tensor:
        """The same without smoothing, which no view changes."""
        if n not in self._plain:
            ones_I = torch.ones_like(self._amax_w_I[self._bounds[n]])
            self._plain[n] = self._weights(n, ones_I)
        return self._plain[n]

    def _share(self, n: int, alpha: Alpha, view: View) -> tuple[Tensor, Tensor]:
        """The same for the rows of one view, with factors and ranges from what it may know."""
        at, part = self._bounds[n], self._partitions[n]
        factors_I = self._factors_of(at, alpha, view)
        w_OI = self._weights(n, factors_I) if alpha is not None else self._unsmoothed(n)
        sample_TI = self._seen.sample_TI[:, at] / factors_I
        x_TI = sample_TI if view.rows is None else sample_TI[view.rows]
        if self._activation.quantized:
            grid = ActivationGrid(
                scheme=self._activation,
                blocks=part.activation_blocks,
                dual=(part.dual,) * len(part.activation_blocks),
            )
            low_I, high_I = view.low_I[at] / factors_I, view.high_I[at] / factors_I
            static = None
            if self._activation.calibrated:
                fit_TI = sample_TI if view.others is None else sample_TI[view.others]
                static = static_scales(low_I, high_I, grid=grid, sample_TI=fit_TI)
            x_TI = fake_quantize(x_TI, grid=grid, static=static)
        error_OI = self._w_OI[:, at] - w_OI / factors_I if self._use_gram else w_OI[:, :0]
        return x_TI @ w_OI.T, error_OI

    def _error(self, y_TO: Tensor, parts: list[tuple[Tensor, Tensor]]) -> float:
        error = _squared_error(y_TO, parts)
        if not self._use_gram:
            return error
        assert self._seen.gram_II is not None
        error_OI = torch.cat([part for _, part in parts], 1)
        sampled = float((self._seen.sample_TI @ error_OI.T).square_().mean())
        every = float(((error_OI @ self._seen.gram_II) * error_OI).sum())
        return error - sampled + every / (self._seen.rows * error_OI.shape[0])


def _squared_error(y_TO: Tensor, parts: Sequence[tuple[Tensor, Tensor]]) -> float:
    difference_TO = y_TO.clone()
    for output_TO, _ in parts:
        difference_TO -= output_TO
    return float(difference_TO.square_().mean())
