"""Metrics of one method's images: every image is decoded once for all of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from evaluation.images import check_ids
from evaluation.metrics.metric_inputs import Batch, Inputs
from evaluation.metrics.metric_interface import MetricBase, Need, unavailable
from evaluation.records import Metric, MetricUnavailable

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Measured:
    """What one metric gave: entries of the record, and column -> prompt id -> value.

    Columns are those that the metric names, and those with the name of one of its entries.
    """

    metrics: dict[str, Metric]
    scores: dict[str, dict[str, float]] = field(default_factory=dict)


def measure(metrics: Sequence[MetricBase], inputs: Inputs) -> dict[str, Measured]:
    """Measure each metric; one that cannot be had here leaves its reason as its entry.

    Several calls with one `inputs` share features and networks.

    Returns:
        By the metric's name.

    Raises:
        ValueError: missing or extra images, unequal sizes, a wrong format.
    """
    _check_folders(metrics, inputs)
    reasons: dict[str, str] = {}
    for batch in inputs.batches():
        for metric in metrics:
            if metric.name not in reasons:
                _score_batch(metric, batch, inputs, reasons=reasons)
    return {metric.name: _measure_one(metric, inputs, reasons=reasons) for metric in metrics}


def _check_folders(metrics: Sequence[MetricBase], inputs: Inputs) -> None:
    needs = [metric.needs for metric in metrics]
    if any(need != {Need.step_errors} for need in needs):
        check_ids(inputs.images, inputs.ids)
    if any(Need.reference in need for need in needs):
        check_ids(inputs.reference, inputs.ids)


def _score_batch(
    metric: MetricBase, batch: Batch, inputs: Inputs, *, reasons: dict[str, str]
) -> None:
    try:
        scores = metric.score(batch, inputs)
    except MetricUnavailable as error:
        reasons[metric.name] = error.reason
        return
    for column, values in scores.items():
        if values.shape != (len(batch.ids),):
            raise ValueError(
                f"metric {metric.name}: {column} has shape {tuple(values.shape)} for "
                f"{len(batch.ids)} images; give one number an image"
            )
        by_id = dict(zip(batch.ids, values.tolist(), strict=True))
        inputs.scores.setdefault(column, {}).update(by_id)


def _measure_one(metric: MetricBase, inputs: Inputs, *, reasons: dict[str, str]) -> Measured:
    reason = reasons.get(metric.name)
    try:
        if reason is not None:
            raise MetricUnavailable(reason)
        for column, values in metric.prompt_scores(inputs).items():
            inputs.scores[column] = dict(values)
        entries = metric.measure(inputs)
    except MetricUnavailable as error:
        logger.info("%s is skipped: %s", metric.name, error.reason)
        entry = unavailable(
            error.reason, against=metric.against, higher_is_better=metric.higher_is_better
        )
        return Measured(metrics={metric.name: entry})
    own = [name for name in (*metric.columns, *entries) if name in inputs.scores]
    return Measured(metrics=entries, scores={name: inputs.scores[name] for name in own})
