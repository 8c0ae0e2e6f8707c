"""What the cells of one model share: the loaded pipeline, and the stages that lie in the store."""

from __future__ import annotations

import copy
import itertools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from baselines.fp import FullPrecision
from baselines.noise_floor import NoiseFloor
from baselines.peer import LIBRARIES
from evaluation.clip import Evaluator, evaluator_key, load_evaluator
from evaluation.resources import peak_memory_bytes, reset_peak_memory
from experiments import protocol
from experiments.calibrate import CODE as CALIBRATION_CODE
from experiments.calibrate import (
    CalibrationPass,
    calibration_batch_size,
    capture_bytes,
    load_calibration,
)
from experiments.config import ModelConfig, RunConfig
from experiments.correct import corrected_noise, learn_corrector, load_corrector
from experiments.data import Dataset, Prompt, load_dataset, prompts_hash, write_true_images
from experiments.errors import UserError
from experiments.execution import execution_name
from experiments.generate import (
    example_inputs,
    generate_images,
    record_trajectory,
    replay_errors,
)
from experiments.machine import device_of, planned_gpu, threads
from experiments.pipelines import (
    check_folder,
    get_denoiser,
    load_pipeline,
    resolve_path,
    set_denoiser,
    weights_hash,
)
from experiments.progress import Progress
from experiments.replay import count_calls, replay_of
from experiments.sources import closure_digest, source_digest
from experiments.store import Stage, Store, digest
from segquant.core.calibration import Calibration
from segquant.core.capture import DEFAULT_CAPTURE_BYTES
from segquant.core.checkpoint import load_quantized, save_quantized
from segquant.core.correction import Attached, Corrector
from segquant.core.protocol import Method, QuantizationReport, StatisticsNeeds
from segquant.core.statistics import DEFAULT_SAMPLE_ROWS
from segquant.graph import LayerGraph, analyze

_REPORT = "report.json"  # of a library's row, whose modules are not saved
_VERSIONED = ("torch", "diffusers", "transformers")  # what else decides an image's bits


def _corrector(config: RunConfig) -> Corrector | None:
    method: Method = config.method
    return method.corrector(calibration=Calibration(statistics={}, forwards=0))


def _code_of(method: Method) -> list[str]:
    """The modules that decide what a method makes of a denoiser: its own and, if asked, the graph.

    The core is always among them: a method from outside the project stands on it too.
    """
    graph = ["segquant.graph"] if method.needs().graph else []
    return [type(method).__module__, "segquant.core", *graph]


def floor_of(config: RunConfig) -> NoiseFloor | None:
    return config.method if isinstance(config.method, NoiseFloor) else None


@dataclass(kw_only=True)
class Bench:
    """What the cells of one model share while a process works through them."""

    config: RunConfig
    store: Store
    progress: Progress
    needs: StatisticsNeeds  # the union over the sweep: one calibration serves it
    samples: bool = True  # False: other machines make the stages, here they are only looked at

    @cached_property
    def device(self) -> torch.device:
        if not self.samples:
            return torch.device("cpu")
        return device_of(self.config)

    @cached_property
    def num_threads(self) -> int:
        return self.config.num_threads or len(os.sched_getaffinity(0))

    @property
    def sample_rows(self) -> int:
        """As many for a cell alone as in a sweep, so that its result is the same."""
        return max(DEFAULT_SAMPLE_ROWS, self.needs.rows)

    def floor_threads(self, floor: NoiseFloor) -> int:
        """The floor's thread count; one more where that is what every other row has."""
        same = floor.num_threads == self.num_threads
        return floor.num_threads + 1 if same else floor.num_threads

    @cached_property
    def dataset(self) -> Dataset:
        return load_dataset(self.config.dataset)

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
    def evaluator_key(self) -> str:
        """Known without loading it: a look at a sweep takes no model."""
        try:
            return evaluator_key(self.checked_evaluator)
        except ValueError as error:
            raise UserError(
                f"metrics.evaluator={self.config.metrics.evaluator}: {error}"
            ) from error

    @cached_property
    def checked_evaluator(self) -> Path:
        folder = resolve_path(self.config.metrics.evaluator)
        if not (folder / "open_clip_config.json").is_file():
            raise UserError(
                f"metrics.evaluator={self.config.metrics.evaluator}: no open_clip model there; "
                "give a folder with open_clip_config.json and open_clip_model.safetensors"
            )
        return folder

    @cached_property
    def weights(self) -> str:
        cache = self.store.root / "stages" / "file_hashes.json"
        return weights_hash(check_folder(self.config.model), cache=cache)

    @cached_property
    def graph(self) -> LayerGraph:
        prompt = self.dataset.calibration[0]
        inputs = example_inputs(self.pipeline, prompt, config=self.config.model)
        return analyze(self.float_denoiser, inputs)

    def sampler(self, *, batch_size: int | None = None, num_threads: int | None = None) -> Any:
        """The key of everything that decides an image's bits, but for denoiser and prompts."""
        model = self.config.model
        return {
            "weights": self.weights,
            "dtype": model.dtype,
            "size": [model.height, model.width],
            "num_inference_steps": model.num_inference_steps,
            "guidance_scale": model.guidance_scale,
            "call": model.call,
            "batch_size": batch_size or model.batch_size,
            "seed": self.config.seed,
            "device": self._device_name(),
            "num_threads": num_threads or self.num_threads,
            "versions": {name: version(name) for name in _VERSIONED},
            "code": source_digest("experiments/generate.py", "experiments/data.py"),
        }

    def _device_name(self) -> str:
        if not self.samples and self.config.device != "cpu":
            return planned_gpu(self.config)
        return "cpu" if self.device.type == "cpu" else torch.cuda.get_device_name(self.device)

    def has_reference(self) -> bool:
        """Whether the reference's images and trajectory are there."""
        trajectory = self.trajectory_key()
        return self.store.find("images", self.images_key("float")) is not None and (
            trajectory is None or self.store.find("trajectory", trajectory) is not None
        )

    def has_calibration(self) -> bool:
        """Whether the statistics are there, and the inputs where a method replays them."""
        inputs = self.calibration_inputs_key()
        return self._calibration_is_there() and (
            not self.needs.replay or self.store.find("calibration_inputs", inputs) is not None
        )

    def pending(self, config: RunConfig) -> list[tuple[Path, int]]:
        """Stages that sample prompts and are not there yet: their folder and number of prompts."""
        n, floor = len(self.dataset.evaluation), floor_of(config)
        wanted = [("images", self.images_key("float"), n)]
        if floor is not None:
            wanted.append(("images", self.images_key("float", floor=floor), n))
        elif not isinstance(config.method, FullPrecision):
            if not self._calibration_is_there():
                key = self.calibration_key(self.needs)
                wanted.append(("calibration", key, len(self.dataset.calibration)))
            if config.method.needs().replay:
                key = self.calibration_inputs_key()
                wanted.append(("calibration_inputs", key, len(self.dataset.calibration)))
            wanted.append(("images", self.images_key(self.quantized_name(config)), n))
        return [
            (self.store.folder(kind, key), count)
            for kind, key, count in wanted
            if self.store.find(kind, key) is None
        ]

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
            "code": source_digest("experiments/tiny/shapes.py", "experiments/data.py"),
        }
        return self.store.build(
            "dataset", key, lambda folder: write_true_images(self.dataset, folder)
        )

    def images_key(self, denoiser: str, *, floor: NoiseFloor | None = None) -> Any:
        sampler = self.sampler()
        if floor is not None:
            count = self.floor_threads(floor)
            sampler = self.sampler(batch_size=floor.batch_size, num_threads=count)
        return {
            "sampler": sampler,
            "prompts": prompts_hash(self.dataset.evaluation),
            "latents": self.config.latents,
            "image": self.config.image,
            "denoiser": denoiser,
        }

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

    def _traced(self) -> tuple[Prompt, ...]:
        return self.dataset.evaluation[: self.config.metrics.teacher_forced_prompts]

    def trajectory_key(self) -> Any:
        prompts = self._traced()
        if not prompts:
            return None
        return {
            "sampler": self.sampler(),
            "prompts": prompts_hash(prompts),
            "latents": self.config.latents,
        }

    def trajectory(self) -> Stage | None:
        """What the unquantized denoiser was given and said, for some evaluation prompts."""
        prompts, key = self._traced(), self.trajectory_key()
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

    def calibration_key(self, needs: StatisticsNeeds) -> Any:
        size = calibration_batch_size(self.config, prompts=len(self.dataset.calibration))
        return {
            "sampler": self.sampler(batch_size=size),
            "prompts": prompts_hash(self.dataset.calibration),
            "rows": self.sample_rows,
            "gram": needs.gram,
            "steps": needs.steps,
            "capture_bytes": capture_bytes(needs),
            "code": source_digest(*CALIBRATION_CODE),
        }

    def _calibration_needs(self) -> StatisticsNeeds:
        """What the calibration holds: what the sweep needs, or more if such a one is there."""
        grams = dict.fromkeys((self.needs.gram, True))
        steps = dict.fromkeys((self.needs.steps, True))
        captures = dict.fromkeys((capture_bytes(self.needs), DEFAULT_CAPTURE_BYTES))
        for gram, step, capture in itertools.product(grams, steps, captures):
            if capture < capture_bytes(self.needs):
                continue
            needs = replace(self.needs, gram=gram, steps=step, capture_bytes=capture)
            if self.store.find("calibration", self.calibration_key(needs)) is not None:
                return needs
        return self.needs

    def _calibration_is_there(self) -> bool:
        key = self.calibration_key(self._calibration_needs())
        return self.store.find("calibration", key) is not None

    def calibration(self) -> tuple[Stage, Calibration]:
        """What one pass of the unquantized model over the calibration prompts left behind."""
        needs = self._calibration_needs()

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

    def calibration_inputs_key(self) -> Any:
        return {"sampler": self.sampler(), "prompts": prompts_hash(self.dataset.calibration)}

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

    def quantized_key(self, config: RunConfig) -> Any:
        needs = config.method.needs()
        corrected = _corrector(config) is not None
        return {
            "calibration": self.calibration_key(needs),
            "method": protocol.method_fields(config.method),
            "bits": protocol.plain(asdict(config.bits)),
            "code": closure_digest(*_code_of(config.method)),
            "corrector": source_digest("experiments/correct.py") if corrected else None,
        }

    def quantized_name(self, config: RunConfig) -> str:
        """What images and step errors of the quantized denoiser are filed under."""
        return execution_name(
            digest(self.quantized_key(config)),
            config.execution,
            config.activation_code,
            fused=config.fuse_activations,
        )

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
        corrector = _corrector(config)
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
        count, key = self._step_errors_key(trajectory, name, floor=floor)

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
        _, key = self._step_errors_key(trajectory, name, floor=floor)
        stage = self.store.find("step_errors", key)
        return None if stage is None else _read_errors(stage)

    def _step_errors_key(
        self, trajectory: Stage, name: str, *, floor: NoiseFloor | None
    ) -> tuple[int, Any]:
        count = self.num_threads if floor is None else self.floor_threads(floor)
        return count, {"trajectory": trajectory.hash, "denoiser": name, "num_threads": count}


def _read_errors(stage: Stage) -> torch.Tensor:
    loaded = torch.load(stage.path / "errors.pt", weights_only=True)
    assert isinstance(loaded, torch.Tensor)
    return loaded
