"""Two folders of images held against each other, metric by metric: B against A.

A metric is of one of two kinds. It tells how near B's images are to A's of the same names; then
what is far is a matter of a noise floor, a second run of A. Or each folder has a value of its own,
and the difference is paired image by image.

Verdicts are at a family-wise error of 5 %, by Holm over all that is judged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

import numpy as np

from evaluation.measure import measure
from evaluation.metrics.flat_images import FlatImages
from evaluation.metrics.metric_catalogue import shown
from evaluation.metrics.metric_inputs import Batch, Inputs
from evaluation.metrics.metric_interface import DELTA, MetricBase, Need, Shown
from evaluation.metrics.psnr import Psnr
from evaluation.records import Metric, MetricUnavailable
from evaluation.report.columns import expand
from evaluation.statistics import (
    RESAMPLES,
    Array,
    Difference,
    Estimate,
    holm,
    mean_estimate,
    paired_difference,
    sign_test,
)

MOST_PIXELS = 2**22  # of a batch: four pictures of 1024 x 1024
MOST_IMAGES = 64

Scores = Mapping[str, Mapping[str, float]]  # column -> name -> value
Told = Callable[[int], None]


class Said(Enum):
    identical = "identical"
    unjudged = "no noise floor"
    within = "within the noise"
    beyond = "beyond the noise"
    nearer = "nearer than the noise"
    worse = "worse"
    better = "better"
    unclear = "not told apart"
    shift = "a shift, no gain"
    other = "different"  # of a metric that knows no better
    unmeasured = "n/a"


BAD = (Said.beyond, Said.worse)


def _nobody(_: int) -> None:
    """Is told how many pairs are done."""


@dataclass(kw_only=True)
class PairInputs(Inputs):
    """Images of any sizes: a batch is of one."""

    sizes: Mapping[str, tuple[int, int]]
    told: Told = _nobody

    def text(self, prompt_id: str) -> str:
        text = self.prompts[prompt_id]
        if text is None:
            raise MetricUnavailable("the images' prompts are not known: --prompt-texts FILE")
        return text

    def batches(self) -> Iterator[Batch]:
        for ids in self._runs():
            own = {name: self.prompts[name] for name in ids}
            yield Batch(ids=ids, inputs=replace(self, prompts=own))
            self.told(len(ids))

    def _runs(self) -> Iterator[list[str]]:
        """Neighbours of one size, as many as memory is for."""
        run: list[str] = []
        for name in self.ids:
            if run:
                width, height = self.sizes[run[0]]
                most = max(1, min(MOST_IMAGES, MOST_PIXELS // (width * height)))
                if self.sizes[name] != self.sizes[run[0]] or len(run) >= most:
                    yield run
                    run = []
            run.append(name)
        if run:
            yield run


@dataclass(kw_only=True)
class Line:
    """One metric.

    `of_b` is B's, to A or its own; `of_a` A's own. `difference` is B less A of their own, or B less
    the noise of what is to A. `noise` is the second run's: to A, or less A.
    """

    shown: Shown
    to_a: bool
    of_b: Metric
    of_a: float | None = None
    estimate: Estimate | None = None  # B's to A, with a 95 % interval whatever the metric prints
    difference: Difference | None = None
    noise: Estimate | None = None
    p_value: float | None = None  # of the difference
    farther: bool = False  # B than the noise, whether that is told or not
    identical: int = 0
    adjusted: float | None = None
    said: Said = Said.unmeasured

    @property
    def name(self) -> str:
        return self.shown.metric

    @property
    def better(self) -> bool | None:
        return self.of_b.higher_is_better


@dataclass(kw_only=True)
class FolderPair:
    """What `compare_folders` found."""

    names: tuple[str, ...]
    lines: list[Line]
    scores: dict[str, dict[str, float]]  # B's, image by image
    reasons: dict[str, str]  # metric -> why it could not be had
    titles: dict[str, str]
    identical: int | None  # images that are A's in every pixel
    noise_identical: int | None
    flat: dict[str, str] = field(default_factory=dict)  # folder -> which images show nothing


def compare_folders(
    metrics: Sequence[MetricBase], *, pair: PairInputs, noise: PairInputs | None = None
) -> FolderPair:
    """Measures `pair.images` (B) against `pair.reference` (A), and a second run of A likewise.

    Raises:
        ValueError: what `measure` raises.
    """
    chosen = [metric for metric in metrics if Need.step_errors not in metric.needs]
    own = [metric for metric in chosen if Need.reference not in metric.needs]
    b = _Side.of(pair, chosen)
    a = _Side.of(replace(pair, images=pair.reference, scores={}, _kept={}, told=_nobody), own)
    again = None if noise is None else _Side.of(noise, chosen)
    words = [item for template in shown(chosen) for item in expand(template, names=set(b.metrics))]
    found = [item for item in words if item.metric in b.metrics]
    lines = [
        _line(item, a=a, b=b, noise=again, seed=pair.settings.seed)
        for item in found
        if not item.metric.endswith(DELTA) and b.metrics[item.metric].value is not None
    ]
    _judge(lines, all_identical=b.identical == len(pair.ids))
    titles = {item.metric: item.title for item in found}
    reasons = {name: metric.note for name, metric in b.metrics.items() if metric.value is None}
    return FolderPair(
        names=tuple(pair.ids),
        lines=lines,
        scores={name: dict(values) for name, values in b.scores.items()},
        reasons=reasons,
        titles=titles,
        identical=b.identical,
        noise_identical=None if again is None else again.identical,
        flat={label: side.flat for label, side in (("A", a), ("B", b)) if side.flat},
    )


@dataclass(kw_only=True)
class _Side:
    """One folder as it was measured."""

    metrics: dict[str, Metric]
    scores: dict[str, dict[str, float]]
    ids: list[str]

    @staticmethod
    def of(inputs: PairInputs, metrics: Sequence[MetricBase]) -> _Side:
        measured = measure(metrics, inputs)
        side = _Side(metrics={}, scores={}, ids=inputs.ids)
        for one in measured.values():
            side.metrics |= one.metrics
            side.scores |= one.scores
        return side

    @property
    def identical(self) -> int | None:
        """How many images are A's in every pixel; None where nothing told."""
        values = self.column(Psnr.columns[0])
        return None if values is None else int(np.isinf(values).sum())

    @property
    def flat(self) -> str:
        damaged = self.metrics.get(FlatImages.name)
        return damaged.note if damaged is not None and damaged.value else ""

    def column(self, name: str) -> Array | None:
        scores = self.scores.get(name)
        if scores is None or set(scores) != set(self.ids):
            return None
        return np.array([scores[key] for key in self.ids])


def _line(item: Shown, *, a: _Side, b: _Side, noise: _Side | None, seed: int) -> Line:
    metric = b.metrics[item.metric]
    if metric.against != "reference":
        return _own_line(item, a=a, b=b, noise=noise, seed=seed)
    line = Line(shown=item, to_a=True, of_b=metric)
    values = b.column(item.per_image)
    if values is None:
        return line
    line.identical = int((~np.isfinite(values)).sum())
    line.estimate = _centred_at(metric.value, _estimate(values, seed=seed))
    theirs = None if noise is None else noise.column(item.per_image)
    if theirs is not None and noise is not None:
        line.noise = _floor(noise.metrics[item.metric].value, theirs)
        _hold_against(line, values, theirs, seed=seed)
    return line


def _hold_against(line: Line, values: Array, theirs: Array, *, seed: int) -> None:
    """Pair by pair; by signs alone where an image that is A's own leaves nothing to subtract."""
    sign = 1 if line.better else -1
    nearer, farther = (int(x.sum()) for x in (values > theirs, values < theirs))
    if line.better is False:
        nearer, farther = farther, nearer
    if np.isfinite(values).all() and np.isfinite(theirs).all():
        line.difference = paired_difference(values, theirs, seed=seed)
        line.p_value, line.farther = line.difference.p_value, sign * line.difference.value < 0
    else:
        line.p_value, line.farther = sign_test(nearer, farther), farther > nearer


def _floor(value: float | None, values: Array) -> Estimate:
    """By Student alone: of a floor that is nearly always 0 a bootstrap knows no bound."""
    finite = values[np.isfinite(values)]
    estimate = mean_estimate(finite if len(finite) else values, seed=0, resamples=0)
    return _centred_at(value, estimate)


def _estimate(values: Array, *, seed: int) -> Estimate:
    """Over those that are finite; where none is, the infinity that all are."""
    finite = values[np.isfinite(values)]
    return mean_estimate(finite if len(finite) else values, seed=seed)


def _centred_at(value: float | None, estimate: Estimate) -> Estimate:
    """A distance of sets is not the mean of its images' contributions to the last digit."""
    if value is None or not (math.isfinite(value) and math.isfinite(estimate.value)):
        return estimate
    move = value - estimate.value
    return replace(estimate, value=value, low=estimate.low + move, high=estimate.high + move)


def _own_line(item: Shown, *, a: _Side, b: _Side, noise: _Side | None, seed: int) -> Line:
    line = Line(shown=item, to_a=False, of_b=b.metrics[item.metric])
    line.difference = _less_a(item, of=b, a=a, seed=seed, resamples=RESAMPLES)
    if line.difference is not None and line.of_b.value is not None:
        line.p_value = line.difference.p_value
        line.of_a = line.of_b.value - line.difference.value
    if noise is not None:
        line.noise = _less_a(item, of=noise, a=a, seed=seed, resamples=0)
    return line


def _less_a(item: Shown, *, of: _Side, a: _Side, seed: int, resamples: int) -> Difference | None:
    """A folder's metric less A's: as the metric itself subtracts it, or image by image."""
    subtracted = of.metrics.get(f"{item.metric}{DELTA}")
    values = of.column(f"{item.metric}{DELTA}")
    if subtracted is not None and values is not None:
        found = paired_difference(values, np.zeros_like(values), seed=seed, resamples=resamples)
        moved = _centred_at(subtracted.value, found)
        return replace(found, value=moved.value, low=moved.low, high=moved.high)
    mine, theirs = of.column(item.per_image), a.column(item.per_image)
    if mine is None or theirs is None:
        return None
    kept = np.isfinite(mine) & np.isfinite(theirs)
    if not kept.any():
        return None
    return paired_difference(mine[kept], theirs[kept], seed=seed, resamples=resamples)


def _judge(lines: Sequence[Line], *, all_identical: bool) -> None:
    p_values = {
        line.name: line.p_value
        for line in lines
        if line.p_value is not None and line.better is not None
    }
    judged = holm(p_values)
    for line in lines:
        result = judged.get(line.name)
        line.adjusted = None if result is None else result.adjusted
        told = result is not None and result.rejected
        if all_identical:
            line.said = Said.identical
        else:
            line.said = _said_to_a(line, told=told) if line.to_a else _said_own(line, told=told)


def _said_to_a(line: Line, *, told: bool) -> Said:
    if line.p_value is None or line.better is None:
        return Said.unjudged
    if not told:
        return Said.within
    return Said.beyond if line.farther else Said.nearer


def _said_own(line: Line, *, told: bool) -> Said:
    difference, noise = line.difference, line.noise
    if difference is None:
        return Said.unjudged
    if difference.value == 0 and difference.low == difference.high:
        return Said.identical
    if noise is not None and _reach(difference) <= _reach(noise):
        return Said.within
    if not told:
        return Said.unclear
    if line.better is None:
        return Said.other
    if (difference.value > 0) == line.better:
        return Said.shift if line.shown.shift_below_unquantized else Said.better
    return Said.worse


def _reach(estimate: Estimate) -> float:
    return max(abs(estimate.low), abs(estimate.high))
