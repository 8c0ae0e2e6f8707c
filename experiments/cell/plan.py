"""What the stages of one model depend on, and which of them are there. Nothing here loads a model.

Stages are content-addressed: a key holds exactly the fields that decide its stage's content.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from baselines.fp import FullPrecision
from baselines.noise_floor import NoiseFloor
from evaluation.clip import evaluator_key
from experiments.cell import protocol_fields as protocol
from experiments.config.run_config import RunConfig
from experiments.errors import UserError
from experiments.sampling.calibrate import CODE as CALIBRATION_CODE
from experiments.sampling.calibrate import calibration_batch_size, capture_bytes
from experiments.sampling.data import Dataset, Prompt, load_dataset, prompts_hash
from experiments.sampling.execution import execution_name
from experiments.sampling.machine import device_of, planned_gpu
from experiments.sampling.pipelines import check_folder, resolve_path, weights_hash
from experiments.store.folders import Stage, Store, digest
from experiments.store.sources import closure_digest, source_digest
from segquant.core.calibration import Calibration
from segquant.core.correction import Corrector
from segquant.core.input_statistics import DEFAULT_SAMPLE_ROWS
from segquant.core.method_interface import Method, StatisticsNeeds
from segquant.core.recorded_calls import DEFAULT_CAPTURE_BYTES

_VERSIONED = ("torch", "diffusers", "transformers")  # what else decides an image's bits


def floor_of(config: RunConfig) -> NoiseFloor | None:
    return config.method if isinstance(config.method, NoiseFloor) else None


def corrector_of(config: RunConfig) -> Corrector | None:
    method: Method = config.method
    return method.corrector(calibration=Calibration(statistics={}, forwards=0))


def _code_of(method: Method) -> list[str]:
    """The modules that decide what a method makes of a denoiser: its own and, if asked, the graph.

    The core is always among them: a method from outside the project stands on it too.
    """
    graph = ["segquant.graph"] if method.needs().graph else []
    return [type(method).__module__, "segquant.core", *graph]


@dataclass(kw_only=True)
class StagePlan:
    """The keys of the stages that the cells of one model share."""

    config: RunConfig
    store: Store
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
    def checked_evaluator(self) -> Path:
        folder = resolve_path(self.config.metrics.evaluator)
        if not (folder / "open_clip_config.json").is_file():
            raise UserError(
                f"metrics.evaluator={self.config.metrics.evaluator}: no open_clip model there; "
                "give a folder with open_clip_config.json and open_clip_model.safetensors"
            )
        return folder

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
    def weights(self) -> str:
        cache = self.store.root / "stages" / "file_hashes.json"
        return weights_hash(check_folder(self.config.model), cache=cache)

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
            "code": source_digest(
                "experiments/sampling/generate.py", "experiments/sampling/data.py"
            ),
        }

    def _device_name(self) -> str:
        if not self.samples and self.config.device != "cpu":
            return planned_gpu(self.config)
        return "cpu" if self.device.type == "cpu" else torch.cuda.get_device_name(self.device)

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

    def traced(self) -> tuple[Prompt, ...]:
        return self.dataset.evaluation[: self.config.metrics.teacher_forced_prompts]

    def trajectory_key(self) -> Any:
        prompts = self.traced()
        if not prompts:
            return None
        return {
            "sampler": self.sampler(),
            "prompts": prompts_hash(prompts),
            "latents": self.config.latents,
        }

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

    def calibration_inputs_key(self) -> Any:
        return {"sampler": self.sampler(), "prompts": prompts_hash(self.dataset.calibration)}

    def quantized_key(self, config: RunConfig) -> Any:
        needs = config.method.needs()
        corrected = corrector_of(config) is not None
        return {
            "calibration": self.calibration_key(needs),
            "method": protocol.method_fields(config.method),
            "bits": protocol.plain(asdict(config.bits)),
            "code": closure_digest(*_code_of(config.method)),
            "corrector": source_digest("experiments/sampling/correct.py") if corrected else None,
        }

    def quantized_name(self, config: RunConfig) -> str:
        """What images and step errors of the quantized denoiser are filed under."""
        return execution_name(
            digest(self.quantized_key(config)),
            config.execution,
            config.activation_code,
            fused=config.fuse_activations,
        )

    def step_errors_key(
        self, trajectory: Stage, name: str, *, floor: NoiseFloor | None
    ) -> tuple[int, Any]:
        count = self.num_threads if floor is None else self.floor_threads(floor)
        return count, {"trajectory": trajectory.hash, "denoiser": name, "num_threads": count}

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

    def calibration_needs(self) -> StatisticsNeeds:
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
        key = self.calibration_key(self.calibration_needs())
        return self.store.find("calibration", key) is not None

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
