"""What FID and KID share: one distance against the reference and the data set, by extractor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from evaluation.clip_evaluator import evaluator_key
from evaluation.distances import INCEPTION_NAME, Array, distance_metric
from evaluation.metrics.metric_inputs import INCEPTION, Inputs, MetricSettings
from evaluation.metrics.metric_interface import unavailable
from evaluation.records import Metric, MetricUnavailable


def measure_distances(
    inputs: Inputs,
    *,
    name: str,
    distance: Callable[[Array, Array, bool], float],
    note: Callable[[bool], str],
    widest_resampled: int | None = None,
) -> dict[str, Metric]:
    """`{name}_{extractor}_reference` and `{name}_{extractor}_dataset` for every extractor.

    Args:
        distance: of two sets of features; whether row i of both is of one prompt.
        note: what is said of it, given the same.
        widest_resampled: features wider than this get no spread.
    """
    metrics = {}
    for prefix in inputs.prefixes:
        for against in ("reference", "dataset"):
            try:
                metric = _measure_one(
                    inputs,
                    prefix=prefix,
                    against=against,
                    distance=distance,
                    note=note,
                    widest_resampled=widest_resampled,
                )
            except MetricUnavailable as error:
                metric = unavailable(error.reason, against=against, higher_is_better=False)
            metrics[f"{name}_{prefix}_{against}"] = metric
    return metrics


def _measure_one(
    inputs: Inputs,
    *,
    prefix: str,
    against: str,
    distance: Callable[[Array, Array, bool], float],
    note: Callable[[bool], str],
    widest_resampled: int | None,
) -> Metric:
    images_ND = inputs.features("images", prefix)
    if against == "dataset" and inputs.dataset is None:
        raise MetricUnavailable("no images of the dataset were given")
    others_MD = inputs.features(against, prefix)
    paired = against == "reference" or inputs.dataset_is_paired
    size = f"n={len(images_ND)} against {len(others_MD)}"
    too_wide = widest_resampled is not None and images_ND.shape[1] > widest_resampled
    return distance_metric(
        lambda a_ND, b_MD: distance(a_ND, b_MD, paired),
        images_ND,
        others_MD,
        against=against,
        paired=paired,
        note=f"features: {prefix}; {note(paired)}; {size}",
        seed=inputs.settings.seed,
        resamples=0 if too_wide else inputs.settings.spread_resamples,
    )


def distances_identity(settings: MetricSettings) -> dict[str, Any]:
    """What the numbers depend on: the extractors, and that one is missing where it is."""
    identity: dict[str, Any] = {
        "evaluator": evaluator_key(settings.evaluator, file_key=settings.file_key),
        "prefix": settings.prefix,
        "seed": settings.seed,
        "spread_resamples": settings.spread_resamples,
    }
    if settings.inception is not None:
        path = settings.inception / INCEPTION_NAME
        identity[INCEPTION] = settings.file_key(path) if path.is_file() else "missing"
        identity["inception_sha256"] = settings.inception_sha256
    return identity
