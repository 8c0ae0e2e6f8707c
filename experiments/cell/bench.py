"""What the cells of one model share: the loaded pipeline, and the stages that lie in the store."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from baselines.noise_floor import NoiseFloor
from baselines.peers.library import LIBRARIES
from evaluation.clip import Evaluator, load_evaluator
from evaluation.resources import peak_memory_bytes, reset_peak_memory
from experiments.cell.plan import StagePlan, corrector_of
from experiments.cell.progress import Progress
from experiments.config.run_config import ModelConfig, RunConfig
from experiments.sampling.calibrate import CalibrationPass, load_calibration
from experiments.sampling.correct import corrected_noise, learn_corrector, load_corrector
from experiments.sampling.data import prompts_hash, write_true_images
from experiments.sampling.generate import (
    example_inputs,
    generate_images,
    record_trajectory,
    replay_errors,
)
from experiments.sampling.machine import threads
from experiments.sampling.pipelines import get_denoiser, load_pipeline, set_denoiser
from experiments.sampling.replay import count_calls, replay_of
from experiments.store.folders import Stage
from experiments.store.sources import source_digest
from segquant.core.calibration import Calibration
from segquant.core.checkpoint import load_quantized, save_quantized
from segquant.core.correction import Attached
from segquant.core.method_interface import Method, QuantizationReport
from segquant.graph import LayerGraph, analyze

_REPORT = "report.json"  # of a library's row, whose modules are not saved


@dataclass(kw_only=True)
class Bench(StagePlan):
    """What the cells of one model share while a process works through them: stages get made."""

    progress: Progress

    @cached_property
    def pipeline(self) -> Any:
        return load_pipeline(self.config.model, device=self.device)

    @cached_property
    def float_denoiser(self) -> nn.Module:
        return get_denoiser(self.pipeline)

    @cached_property
    def evaluator(self) -> Evaluator:
        return load_evaluator(self.checked_evaluator)

    @cached_property
    def graph(self) -> LayerGraph:
        prompt = self.dataset.calibration[0]
        inputs = example_inputs(self.pipeline, prompt, config=self.config.model)
        return analyze(self.float_denoiser, inputs)

    # stages --------------------------------------------------------------------------------

    def _build(self, kind: str, key: Any, make: Callable[[Path], dict[str, Any] | None]) -> Stage:
        def refuse(folder: Path) -> None:
            raise RuntimeError(
                f"{folder.with_suffix('')} is gone or damaged, and this job only measures; give "
                "the same command again"
            )

        return self.store.build(kind, key, make if self.samples else refuse)

    def true_images(self) -> Stage | None:
        """The dataset's own images of the evaluation prompts."""
        if not self.dataset.has_images:
            return None
        key = {
            "prompts": prompts_hash(self.dataset.evaluation),
            "images": self.dataset.config.images,
            "code": source_digest("experiments/tiny/shapes.py", "experiments/sampling/data.py"),
        }
        return self.store.build(
            "dataset", key, lambda folder: write_true_images(self.dataset, folder)
        )

    def images(
        self,
        denoiser: nn.Module | None,
        key: Any,
        *,
        floor: NoiseFloor | None,
        attached: Attached | None = None,
    ) -> Stage:
        """Images of the evaluation prompts under a denoiser (None: the unquantized one).

        Args:
            attached: the denoiser's corrector, whose variance part is the sampler's business.
        """

        def make(folder: Path) -> dict[str, Any]:
            reset_peak_memory()
            model: ModelConfig = self.config.model
            if floor is not None:
                model = replace(model, batch_size=floor.batch_size)
            with (
                threads(self.num_threads if floor is None else self.floor_threads(floor)),
                self._with_denoiser(denoiser) as pipeline,
                corrected_noise(pipeline, attached),
            ):
                notes = generate_images(
                    pipeline,
                    self.dataset.evaluation,
                    folder,
                    config=model,
                    seed=self.config.seed,
                    progress=self.progress.part("images"),
                    shared_noise=self.config.latents == "shared",
                    jpeg=self.config.image == "jpeg",
                )
            return {**notes, "peak_memory_bytes": peak_memory_bytes()}

        return self._build("images", key, make)

    @contextmanager
    def _with_denoiser(self, denoiser: nn.Module | None) -> Iterator[Any]:
        float_denoiser = self.float_denoiser
        set_denoiser(self.pipeline, float_denoiser if denoiser is None else denoiser)
        try:
            yield self.pipeline
        finally:
            set_denoiser(self.pipeline, float_denoiser)

    def reference(self) -> Stage:
        return self.images(None, self.images_key("float"), floor=None)

    def trajectory(self) -> Stage | None:
        """What the unquantized denoiser was given and said, for some evaluation prompts."""
        prompts, key = self.traced(), self.trajectory_key()
        if key is None:
            return None

        def make(folder: Path) -> dict[str, Any]:
            with threads(self.num_threads), self._with_denoiser(None) as pipeline:
                return record_trajectory(
                    pipeline,
                    prompts,
                    folder,
                    config=self.config.model,
                    seed=self.config.seed,
                    shared_noise=self.config.latents == "shared",
                )

        return self._build("trajectory", key, make)

    def calibration(self) -> tuple[Stage, Calibration]:
        """What one pass of the unquantized model over the calibration prompts left behind."""
        needs = self.calibration_needs()

        def make(folder: Path) -> dict[str, Any]:
            with threads(self.num_threads), self._with_denoiser(None) as pipeline:
                one_pass = CalibrationPass(
                    pipeline=pipeline,
                    denoiser=self.float_denoiser,
                    prompts=self.dataset.calibration,
                    config=self.config,
                    needs=needs,
                    rows=self.sample_rows,
                    progress=self.progress.part("calibration"),
                    note=self.progress.note,
                )
                return one_pass.run(folder)

        stage = self._build("calibration", self.calibration_key(needs), make)
        return stage, load_calibration(stage.path)

    def calibration_inputs(self) -> Stage:
        """The unquantized denoiser's inputs over the calibration prompts; a pass of its own."""

        def make(folder: Path) -> dict[str, Any]:
            with threads(self.num_threads), self._with_denoiser(None) as pipeline:
                notes = record_trajectory(
                    pipeline,
                    self.dataset.calibration,
                    folder,
                    config=self.config.model,
                    seed=self.config.seed,
                    limit_bytes=int(self.config.replay_gigabytes * 1e9),
                )
            return {**notes, "forwards": count_calls(notes)}

        return self._build("calibration_inputs", self.calibration_inputs_key(), make)

    def quantized(self, config: RunConfig) -> Stage:
        """The quantized denoiser as a checkpoint."""

        def make(folder: Path) -> dict[str, Any]:
            stage, calibration = self.calibration()
            method: Method = config.method
            forwards, seconds = stage.notes["forwards"], stage.seconds
            if method.needs().graph:
                calibration.graph = self.graph
            if method.needs().replay:
                inputs = self.calibration_inputs()
                calibration.replay = replay_of(inputs.path, inputs.notes)
                forwards, seconds = forwards + inputs.notes["forwards"], seconds + inputs.seconds
            denoiser = copy.deepcopy(self.float_denoiser)
            with threads(self.num_threads):
                report = method.quantize(denoiser, calibration=calibration, bits=config.bits)
            if not isinstance(report, QuantizationReport):
                raise TypeError(
                    f"{type(method).__name__}.quantize returned {type(report).__name__}; it must "
                    "return a QuantizationReport, as segquant.core.quantize.quantize_layers does"
                )
            if report.execution in LIBRARIES:
                (folder / _REPORT).write_text(json.dumps(report.to_dict()))
            else:
                save_quantized(denoiser, folder / "denoiser", report)
            forwards += report.replay_forwards
            return {"forwards": forwards, "calibration_seconds": seconds}

        return self._build("quantized", self.quantized_key(config), make)

    def load_quantized(
        self, config: RunConfig, stage: Stage
    ) -> tuple[nn.Module, QuantizationReport]:
        """The denoiser of a `quantized` stage; a library's is made again, it cannot be saved."""
        denoiser = copy.deepcopy(self.float_denoiser)
        if not (stage.path / _REPORT).exists():
            return load_quantized(denoiser, stage.path / "denoiser")
        _, calibration = self.calibration()
        with threads(self.num_threads):
            report = config.method.quantize(denoiser, calibration=calibration, bits=config.bits)
        return denoiser, report

    def corrector(self, config: RunConfig, denoiser: nn.Module) -> Attached | None:
        """Hooks the method's corrector to its quantized denoiser; learned if it is not there yet.

        Every corrector learns from all calibration prompts, on the quantized model's own path.
        """
        corrector = corrector_of(config)
        if corrector is None:
            return None

        def make(folder: Path) -> dict[str, Any]:
            with threads(self.num_threads), self._with_denoiser(None) as pipeline:
                return learn_corrector(
                    pipeline,
                    denoiser,
                    corrector,
                    folder,
                    prompts=self.dataset.calibration,
                    config=self.config.model,
                    seed=self.config.seed,
                    progress=self.progress.part("corrector"),
                )

        stage = self._build("corrector", {"quantized": self.quantized_name(config)}, make)
        return load_corrector(denoiser, corrector, stage.path)

    def step_errors(
        self, denoiser: nn.Module | None, name: str, *, floor: NoiseFloor | None
    ) -> torch.Tensor | None:
        """Per prompt and step; the unquantized denoiser too is run again, not assumed exact."""
        trajectory = self.trajectory()
        if trajectory is None:
            return None
        count, key = self.step_errors_key(trajectory, name, floor=floor)

        def make(folder: Path) -> dict[str, Any]:
            with threads(count):
                model = self.float_denoiser if denoiser is None else denoiser
                errors = replay_errors(model, trajectory.path, trajectory.notes)
            torch.save(errors, folder / "errors.pt")
            return {}

        return _read_errors(self._build("step_errors", key, make))

    def find_step_errors(self, name: str, *, floor: NoiseFloor | None) -> torch.Tensor | None:
        """The same if they are there; nothing is run."""
        wanted = self.trajectory_key()
        trajectory = None if wanted is None else self.store.find("trajectory", wanted)
        if trajectory is None:
            return None
        _, key = self.step_errors_key(trajectory, name, floor=floor)
        stage = self.store.find("step_errors", key)
        return None if stage is None else _read_errors(stage)


def _read_errors(stage: Stage) -> torch.Tensor:
    loaded = torch.load(stage.path / "errors.pt", weights_only=True)
    assert isinstance(loaded, torch.Tensor)
    return loaded
