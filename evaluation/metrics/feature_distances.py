"""What FID and KID share: one distance against the reference and the data set, by extractor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from evaluation.clip_evaluator import evaluator_key
from evaluation.distances import Array, Distance, distance_metric, image_values
from evaluation.extractors import FILES, INCEPTION
from evaluation.metrics.metric_inputs import Inputs, MetricSettings
from evaluation.metrics.metric_interface import DELTA, networks_identity, unavailable
from evaluation.outside_files import OutsideFile
from evaluation.records import Metric, MetricUnavailable
from evaluation.statistics import metric_from_estimate, paired_difference

Measure = Callable[[Array, Array, bool], Distance]  # of two sets; row i of both is of one prompt


def measure_distances(
    inputs: Inputs,
    *,
    extractors: Mapping[str, str],
    distance: Measure,
    note: Callable[[bool], str],
) -> dict[str, Metric]:
    """Distances for every extractor: to the reference, and to the data set's images.

    `{name}_dataset_{same,other}_prompts` says whose images these are: of the prompts that were
    evaluated, or of others, which are further away whatever the model. Beside it `..._delta` is the
    difference from the unquantized model's distance, paired image by image.

    Args:
        extractors: what the entries' names begin with -> the extractor, such as
            {"fid_inception": "inception"}.
        note: what is said of a distance, given whether it is of the same prompts.
    """
    metrics: dict[str, Metric] = {}
    for name, prefix in extractors.items():
        one = _Extracted(inputs=inputs, name=name, prefix=prefix, distance=distance)
        for against in ("reference", "dataset"):
            try:
                metrics |= one.measure(against, note=note)
            except MetricUnavailable as error:
                metrics[f"{name}_{against}"] = unavailable(
                    error.reason, against=against, higher_is_better=False
                )
    return metrics


def by_prefix(name: str, inputs: Inputs) -> dict[str, str]:
    """`{name}_{extractor}` for each extractor that FID and KID are measured with."""
    return {f"{name}_{prefix}": prefix for prefix in inputs.settings.prefixes}


@dataclass(frozen=True, kw_only=True)
class _Extracted:
    """One distance of one extractor's features; leaves a score an image in `inputs.scores`."""

    inputs: Inputs
    name: str
    prefix: str
    distance: Measure

    def measure(self, against: str, *, note: Callable[[bool], str]) -> dict[str, Metric]:
        inputs = self.inputs
        inputs.features("images", self.prefix)  # a missing extractor is the first reason
        if against == "dataset" and inputs.dataset is None:
            raise MetricUnavailable("no images of the dataset were given")
        paired = against == "reference" or inputs.dataset_is_paired
        entry = f"{self.name}_{against}"
        if against == "dataset":
            entry += "_same_prompts" if paired else "_other_prompts"
        others = len(inputs.features(against, self.prefix))
        said = f"features: {self.prefix}; {note(paired)}; n={len(inputs.ids)} against {others}"
        value, values_N = self._values("images", against, paired=paired)
        inputs.scores[entry] = dict(zip(inputs.ids, values_N.tolist(), strict=True))
        metric = distance_metric(values_N, value=value, against=against, note=said)
        if against == "reference":
            return {entry: metric}
        return {
            entry: metric,
            f"{entry}{DELTA}": self._delta(entry, value, values_N, paired=paired),
        }

    def _values(self, which: str, against: str, *, paired: bool) -> tuple[float, Array]:
        a_ND, b_MD = (self.inputs.features(name, self.prefix) for name in (which, against))
        found = self.distance(a_ND, b_MD, paired)
        return found.value, image_values(found, paired=paired)

    def _delta(self, entry: str, value: float, values_N: Array, *, paired: bool) -> Metric:
        settings = self.inputs.settings
        unquantized, theirs_N = self.inputs.once(
            "distance", self.name, make=lambda: self._values("reference", "dataset", paired=paired)
        )
        deltas = zip(self.inputs.ids, (values_N - theirs_N).tolist(), strict=True)
        self.inputs.scores[f"{entry}{DELTA}"] = dict(deltas)
        found = paired_difference(
            values_N, theirs_N, seed=settings.seed, resamples=settings.resamples
        )
        metric = metric_from_estimate(
            found,
            higher_is_better=None,
            against="the unquantized model's distance",
            note=f"paired by prompt; two-sided p={found.p_value:.3g}",
            unit="",
        )
        metric.value = value - unquantized
        return metric


def distances_identity(settings: MetricSettings) -> dict[str, Any]:
    """What FID and KID depend on: the extractors, and that one is missing where it is."""
    identity: dict[str, Any] = {
        "prefix": settings.prefix,
        "seed": settings.seed,
        "resamples": settings.resamples,
    }
    if settings.evaluator is not None:
        identity["evaluator"] = evaluator_key(settings.evaluator, file_key=settings.file_key)
    return identity | networks_identity(settings, weights=_files(settings))


def distances_files(settings: MetricSettings) -> list[OutsideFile]:
    """Inception's weights, where its features are asked for."""
    return [settings.files.described(name) for name in _files(settings)]


def _files(settings: MetricSettings) -> list[str]:
    return [FILES[INCEPTION]] if INCEPTION in settings.prefixes else []
