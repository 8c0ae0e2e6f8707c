"""Stage: one metric of a cell's images, so that one added later makes no other again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.measure import Measured, measure
from evaluation.metrics.metric_inputs import Inputs
from evaluation.metrics.metric_interface import Need
from evaluation.per_image import read_per_image, write_per_image
from evaluation.records import Metric, decode_metric, encode_metric
from experiments.cell.stage import Stage
from experiments.sampling.threads import threads
from experiments.store.sources import package_versions

if TYPE_CHECKING:
    from evaluation.metrics.metric_interface import MetricBase
    from experiments.cell.sampled_images import SampledImages
    from experiments.cell.teacher_forced import StepErrors
    from experiments.cell.true_images import TrueImages
    from experiments.store.folders import Finished

_VALUES = "values.json"
_SCORES = "per_image.csv"


@dataclass(kw_only=True)
class Measurement:
    """What the metrics of one cell are measured on; those that are missing share one pass."""

    images: SampledImages
    reference: SampledImages
    true_images: TrueImages | None
    step_errors: StepErrors | None
    missing: list[MetricBase] = field(default_factory=list)
    _measured: dict[str, Measured] = field(default_factory=dict)

    def of(self, metric: MetricBase) -> Measured:
        if metric.name not in self._measured:
            together = [m for m in self.missing if m.name not in self._measured]
            if metric not in together:
                together = [metric]
            with threads(self.images.around.num_threads):
                self._measured |= measure(together, self._inputs(together))
        return self._measured[metric.name]

    def _inputs(self, metrics: Sequence[MetricBase]) -> Inputs:
        around, errors = self.images.around, self.step_errors
        settings = around.metric_settings
        if settings.cache is not None:
            around.store.ensure(settings.cache)
        judged = any(Need.evaluator in metric.needs for metric in metrics)
        return Inputs(
            images=self.images.build().path,
            reference=self.reference.build().path,
            dataset=None if self.true_images is None else self.true_images.pictures(),
            prompts={prompt.id: prompt.text for prompt in around.dataset.evaluation},
            step_errors=None if errors is None else errors.by_prompt(errors.build()),
            settings=settings,
            loaded=around.evaluator if judged else None,
            networks=around.networks,
        )


@dataclass(frozen=True, kw_only=True)
class MetricStage(Stage):
    """A metric's values, and its scores image by image where it has any."""

    kind = "metrics"
    anywhere = True
    metric: MetricBase
    together: Measurement

    def fields(self) -> dict[str, Any]:
        needs = self.metric.needs
        measured = {
            "images": self.together.images if needs != {Need.step_errors} else None,
            "reference": self.together.reference if Need.reference in needs else None,
            "true_images": self.together.true_images if Need.dataset in needs else None,
            "step_errors": self.together.step_errors if Need.step_errors in needs else None,
        }
        return {
            "metric": self.around.identity_of(self.metric),
            "stages": {key: stage.hash for key, stage in measured.items() if stage is not None},
            "prompts": self.around.prompts_hash.evaluation if Need.prompts in needs else None,
            "num_threads": self.around.num_threads,
            "versions": self.around.metric_versions,
            "packages": package_versions(type(self.metric).__module__),
        }

    def code(self) -> tuple[str, ...]:
        return (type(self.metric).__module__,)

    def make(self, folder: Path) -> None:
        measured = self.together.of(self.metric)
        values = {name: encode_metric(metric) for name, metric in measured.metrics.items()}
        (folder / _VALUES).write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")
        if measured.scores:
            ids = [prompt.id for prompt in self.around.dataset.evaluation]
            write_per_image(folder / _SCORES, ids=ids, scores=measured.scores)


def read_values(finished: Finished) -> dict[str, Metric]:
    """Metric name -> metric, as the stage has them."""
    path = finished.path / _VALUES
    values = json.loads(path.read_text())
    return {name: decode_metric(value, where=f"{path}: {name}") for name, value in values.items()}


def read_scores(finished: Finished) -> Mapping[str, Mapping[str, float]]:
    """Column -> prompt id -> score; empty where it could not be had."""
    path = finished.path / _SCORES
    return read_per_image(path) if path.exists() else {}
