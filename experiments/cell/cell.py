"""One cell of a sweep: a model under a method at some bits, its stages, its record."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

from baselines.fp import FullPrecision
from baselines.noise_floor import NoiseFloor
from evaluation.per_image import read_per_image
from evaluation.records import Record, read_record, write_record
from experiments.cell.calibration_inputs import CalibrationInputs
from experiments.cell.calibration_pass import calibration_of
from experiments.cell.corrected_denoiser import CorrectedDenoiser
from experiments.cell.denoiser import Denoiser
from experiments.cell.exportable import why_not_exported
from experiments.cell.float_denoiser import FloatDenoiser
from experiments.cell.kernel_denoiser import KernelDenoiser
from experiments.cell.learned_corrector import LearnedCorrector
from experiments.cell.metric_stage import Measurement, MetricStage, read_scores, read_values
from experiments.cell.onnx_denoiser import OnnxDenoiser
from experiments.cell.onnx_files import OnnxFiles
from experiments.cell.quantized_denoiser import QuantizedDenoiser
from experiments.cell.reference_trajectory import ReferenceTrajectory
from experiments.cell.sampled_images import SampledImages
from experiments.cell.simulated_denoiser import SimulatedDenoiser
from experiments.cell.stage import Stage
from experiments.cell.surroundings import Surroundings
from experiments.cell.teacher_forced import StepErrors
from experiments.cell.true_images import TrueImages
from experiments.config.choices import RUNTIMES
from experiments.config.naming import names
from experiments.config.plain import plain
from experiments.config.run_config import RunConfig
from experiments.errors import UserError
from experiments.sampling.correct import why_not_corrected
from experiments.store.digests import digest
from experiments.store.entries import clear_way
from experiments.store.folders import Finished, hash_once
from experiments.store.sources import code_digest
from segquant.core.calibration import Calibration
from segquant.core.correction import Corrector
from segquant.core.method_interface import OfThisMachine, corrector_of

log = logging.getLogger(__name__)

RECORD = "record.json"
SCORES = "per_image.csv"
FAILURE = "failed_metrics.json"  # beside the record of a cell that had finished before
_SCHEMA = 2
# which metrics are measured, and with whose weights, may change: the run stays the same
_METRICS_OF_A_RUN = ("evaluator", "prefix", "teacher_forced_prompts", "bootstrap_resamples")
_DESCRIBED_BY = "experiments.cell.protocol_fields"  # what a record says is part of it


@dataclass(kw_only=True)
class Cell:
    """A config and what it shares with others; nothing is loaded or made until it is asked for."""

    config: RunConfig
    around: Surroundings

    @cached_property
    def names(self) -> tuple[str, str, str]:
        """Model, method and bits as a table prints them."""
        return names(self.config)

    @property
    def label(self) -> str:
        return f"{self.config.model.name} {self.config.method_name} {self.config.bits.name}"

    @cached_property
    def unsupported(self) -> str | None:
        """Why the method does not do these bits, or not this model."""
        reason = self.config.method.unsupported(self.config.bits)
        if reason is None and self.corrected:
            with contextlib.suppress(
                UserError
            ):  # a model that is not here is for its stages to say
                return why_not_corrected(self.config.model)
        if reason is None and self.quantizes and self.config.execution in RUNTIMES:
            return why_not_exported(self.config)
        return reason

    @property
    def refused(self) -> str | None:
        """Why it will not be made; what this machine lacks, others that make stages may have."""
        if isinstance(self.unsupported, OfThisMachine) and not self.around.makes:
            return None
        return self.unsupported

    @property
    def floor(self) -> NoiseFloor | None:
        return self.config.method if isinstance(self.config.method, NoiseFloor) else None

    @property
    def quantizes(self) -> bool:
        return not isinstance(self.config.method, NoiseFloor | FullPrecision)

    @property
    def corrected(self) -> bool:
        """Whether something beside the denoiser changes its output, step by step."""
        return self._fresh_corrector() is not None

    @property
    def fits_layers(self) -> bool:
        """Whether groups and ranks must fit the layers; libraries have rules of their own."""
        kind = type(self.config.method)
        library = kind.__module__.startswith("baselines.peers.")
        return self.quantizes and self.unsupported is None and not library

    @property
    def num_threads(self) -> int:
        """The floor's thread count; one more where that is what every other row has."""
        if self.floor is None:
            return self.around.num_threads
        same = self.floor.num_threads == self.around.num_threads
        return self.floor.num_threads + 1 if same else self.floor.num_threads

    @property
    def batch_size(self) -> int:
        return self.config.model.batch_size if self.floor is None else self.floor.batch_size

    # stages ---------------------------------------------------------------------------------

    @cached_property
    def reference(self) -> SampledImages:
        """Images of the unquantized model."""
        return SampledImages(
            around=self.around,
            denoiser=FloatDenoiser(),
            batch_size=self.config.model.batch_size,
            num_threads=self.around.num_threads,
        )

    @cached_property
    def trajectory(self) -> ReferenceTrajectory | None:
        prompts = self.around.traced
        return ReferenceTrajectory(around=self.around, prompts=prompts) if prompts else None

    @cached_property
    def true_images(self) -> TrueImages | None:
        return TrueImages(around=self.around) if self.around.config.dataset.has_images() else None

    @cached_property
    def quantized(self) -> QuantizedDenoiser | None:
        """None where nothing is quantized."""
        if not self.quantizes:
            return None
        method, bits = self.config.method, self.config.bits
        return QuantizedDenoiser(around=self.around, method=method, bits=bits)

    @cached_property
    def onnx(self) -> OnnxFiles:
        """The quantized denoiser as a file; of a cell that quantizes."""
        assert self.quantized is not None
        return OnnxFiles(around=self.around, quantized=self.quantized)

    @cached_property
    def denoiser(self) -> Denoiser:
        """What samples the cell's images."""
        if self.quantized is None:
            return FloatDenoiser()
        config = self.config
        plain_one: Denoiser = SimulatedDenoiser(quantized=self.quantized)
        if config.execution in RUNTIMES:
            plain_one = OnnxDenoiser(files=self.onnx, runtime=RUNTIMES[config.execution])
        elif config.execution != "simulated":
            plain_one = KernelDenoiser(
                quantized=self.quantized,
                execution=config.execution,
                activation_code=config.activation_code,
                fuse_activations=config.fuse_activations,
            )
        if not self.corrected:
            return plain_one
        corrector = LearnedCorrector(
            around=self.around, denoiser=plain_one, fresh=self._needed_corrector
        )
        return CorrectedDenoiser(base=plain_one, corrector=corrector)

    @cached_property
    def images(self) -> SampledImages:
        return SampledImages(
            around=self.around,
            denoiser=self.denoiser,
            batch_size=self.batch_size,
            num_threads=self.num_threads,
        )

    @cached_property
    def step_errors(self) -> StepErrors | None:
        if self.trajectory is None:
            return None
        return StepErrors(
            around=self.around,
            trajectory=self.trajectory,
            denoiser=self.denoiser,
            num_threads=self.num_threads,
        )

    @cached_property
    def metrics(self) -> tuple[MetricStage, ...]:
        """One stage a metric; what is missing of them is measured in one pass over the images."""
        together = Measurement(
            images=self.images,
            reference=self.reference,
            true_images=self.true_images,
            step_errors=self.step_errors,
        )
        return tuple(
            MetricStage(around=self.around, metric=metric, together=together)
            for metric in self.around.metrics
        )

    def _fresh_corrector(self) -> Corrector | None:
        nothing = Calibration(statistics={}, forwards=0)
        return corrector_of(self.config.method, calibration=nothing)

    def _needed_corrector(self) -> Corrector:
        corrector = self._fresh_corrector()
        assert corrector is not None
        return corrector

    def pending(self) -> list[tuple[Stage, int]]:
        """Stages that sample prompts and are not there yet, with the number of prompts."""
        dataset = self.around.dataset
        wanted: list[tuple[Stage, int]] = [(self.reference, len(dataset.evaluation))]
        if self.quantized is not None:
            wanted.append((calibration_of(self.around), len(dataset.calibration)))
            if self.config.method.needs().replay:
                inputs = CalibrationInputs(around=self.around)
                wanted.append((inputs, len(dataset.calibration)))
        if self.images.hash != self.reference.hash:
            wanted.append((self.images, len(dataset.evaluation)))
        return [(stage, count) for stage, count in wanted if stage.find() is None]

    # the record -----------------------------------------------------------------------------

    @cached_property
    def run_id(self) -> str:
        """The hash of what was run: what a metric's code or a legend says is not in it."""
        config, dataset = self.config, self.config.dataset
        metrics = plain(asdict(config.metrics))
        metrics = {k: v for k, v in metrics.items() if k in _METRICS_OF_A_RUN}
        return digest(
            {
                "schema": _SCHEMA,
                "names": [config.model.name, config.method_name, config.bits.name, dataset.name],
                "stages": {name: stage.hash for name, stage in self._sampled().items()},
                "metrics": {**metrics, "evaluator": self.around.evaluator_key},
                "code": code_digest(_DESCRIBED_BY),
            }
        )

    def _sampled(self) -> dict[str, Stage]:
        stages = {
            "reference": self.reference,
            "true_images": self.true_images,
            "quantized": self.quantized,
            "images": self.images,
            "step_errors": self.step_errors,
        }
        return {name: stage for name, stage in stages.items() if stage is not None}

    def stage_hashes(self) -> dict[str, str]:
        """Which stages make the cell, metrics among them."""
        hashes = {name: stage.hash for name, stage in self._sampled().items()}
        return hashes | {f"metric {stage.metric.name}": stage.hash for stage in self.metrics}

    @property
    def folder(self) -> Path:
        return self.around.store.root / "cells" / self.run_id

    @property
    def record_path(self) -> Path:
        return self.folder / RECORD

    @property
    def scores_path(self) -> Path:
        return self.folder / SCORES

    def read_record(self) -> Record | None:
        """Whatever record there is, also of a failure or with metrics of other code.

        Another sweep may have measured the same images with other settings since: where this
        one's metrics are in the store, the record has those, and no files beside it.
        """
        record = self._stored_record()
        if record is None or record.status != "ok" or self.is_current(record):
            return record
        finished = self._measured()
        if finished is None:
            return record
        metrics = {name: value for stage in finished for name, value in read_values(stage).items()}
        return replace(record, metrics=metrics, stages=self.stage_hashes(), files={})

    def _measured(self) -> list[Finished] | None:
        """The stages of all metrics; None if one is not there, or not what was written."""
        finished = [stage.find() for stage in self.metrics]
        whole = [
            stage
            for stage in finished
            if stage is not None and not any(map(stage.differs, stage.files))
        ]
        return whole if len(whole) == len(finished) else None

    def _stored_record(self) -> Record | None:
        """A damaged one is said, and counts as not there: the same command makes it again."""
        try:
            record = read_record(self.record_path)
            if record.run_id != self.run_id:
                raise ValueError(f"{self.record_path}: the record of {record.run_id}")
        except FileNotFoundError:
            return None
        except (ValueError, OSError) as error:
            log.warning("%s; it counts as not there", error)
            return None
        return record

    def read_failure(self) -> Record | None:
        """Of metrics of a finished cell: the last try at those that are asked for, if it failed."""
        try:
            failure = read_record(self.folder / FAILURE)
        except (ValueError, OSError):  # none, or nothing that can be told of it
            return None
        asked = failure.run_id == self.run_id and failure.stages == self.stage_hashes()
        return failure if asked else None

    def write_failure(self, failure: Record) -> None:
        """Beside the record of a finished cell, which stays as it is."""
        failure.stages = self.stage_hashes()
        self.around.store.ensure(self.folder)
        clear_way(self.folder / FAILURE)
        write_record(self.folder / FAILURE, failure)

    def write_record(self, record: Record) -> None:
        """Whole or not at all; what lies in its place and is no file is set aside."""
        self.around.store.ensure(self.folder)
        clear_way(self.record_path)
        write_record(self.record_path, record)

    def read_scores(self, record: Record) -> dict[str, dict[str, float]]:
        """Column -> prompt id -> score of a finished cell.

        Raises:
            UserError: the file is not what was written.
        """
        finished = None if record.files else self._measured()
        if finished is not None:
            read = (read_scores(stage) for stage in finished)
            return {column: dict(values) for scores in read for column, values in scores.items()}
        if not self._scores_are_whole(record):
            raise UserError(
                f"{self.scores_path} is not what was written; segbench evaluate makes it again"
            )
        return read_per_image(self.scores_path)

    def _scores_are_whole(self, record: Record) -> bool:
        try:
            return hash_once(self.scores_path) == record.files.get(SCORES)
        except OSError:
            return False

    def record(self) -> Record | None:
        """The cell's record, if it is no failure's and its metrics are those that are asked for."""
        record = self._stored_record()
        if record is None or record.status == "failed" or not self.is_current(record):
            return None
        return record

    def is_current(self, record: Record) -> bool:
        """Whether its metrics are all there, of today's code, and its scores what was written."""
        if record.status == "skipped":  # for a library or a GPU that may be there by now
            return record.reason == self.unsupported or self.unsupported != self.refused
        if record.status != "ok":
            return True
        hashes = self.stage_hashes()
        made = all(record.stages.get(name) == hash_ for name, hash_ in hashes.items())
        return made and (not record.files or self._scores_are_whole(record))
