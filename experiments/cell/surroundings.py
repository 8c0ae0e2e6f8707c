"""What the cells of one model share: the model, its prompts, the machine, the store."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from evaluation.clip_evaluator import Evaluator, evaluator_key, load_evaluator
from evaluation.datasets.interface import Prompt
from evaluation.datasets.loading import (
    LoadedDataset,
    load_dataset,
    prompts_hash,
    true_images_of,
)
from evaluation.metrics.metric_catalogue import chosen_metrics, metric_identity
from evaluation.metrics.metric_inputs import MetricSettings
from evaluation.metrics.metric_interface import MetricBase
from evaluation.weight_files import MISSING, weight_files
from experiments.cell.progress import Progress
from experiments.config.run_config import RunConfig
from experiments.errors import UserError, told_to_the_user
from experiments.sampling.adapters import adapter_file
from experiments.sampling.loaded import LoadedModel
from experiments.sampling.machine import device_of, planned_gpu
from experiments.sampling.static_graph import graph_of
from experiments.sampling.weights_hash import model_hash, part_hash
from experiments.store.digests import digest
from experiments.store.file_hashes import HASHES, FileHashes
from experiments.store.folders import Store
from experiments.store.paths import resolve_path
from segquant.core.method_interface import StatisticsNeeds
from segquant.graph import LayerGraph

if TYPE_CHECKING:
    from experiments.cell.denoiser import Denoiser, LoadedDenoiser
    from experiments.sampling.model_parts import Part

_METRICS_VERSIONED = (
    *("torch", "torchvision", "torchmetrics", "clean-fid", "open_clip_torch", "timm"),
    *("transformers", "tokenizers", "pillow", "numpy", "scipy"),
)
_VERSIONED = ("torch", "diffusers", "transformers")  # what else decides an image's bits


@dataclass(frozen=True, kw_only=True)
class PromptHashes:
    """Ids, texts and order of each list of prompts."""

    evaluation: str
    calibration: str
    traced: str


@dataclass(kw_only=True)
class Surroundings:
    """Shared by the cells of one model, data set and sampler; nothing of it is a cell's own.

    What decides a result stands in `sampler()` or in a stage's own fields; what a stage runs, its
    module imports itself, so that its key holds that code.
    """

    config: RunConfig  # of any of the cells: its method, bits and execution are not looked at
    store: Store
    progress: Progress
    needs: StatisticsNeeds  # the union over the sweep: one calibration serves it
    makes: bool = True  # False: other machines make the stages, here they are only looked at
    _loaded: dict[str, LoadedDenoiser] = field(default_factory=dict, repr=False)
    _identities: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)

    @cached_property
    def device(self) -> torch.device:
        return device_of(self.config) if self.makes else torch.device("cpu")

    @cached_property
    def device_name(self) -> str:
        """As keys have it: the GPU's name, also where it is another machine's."""
        if not self.makes and self.config.device != "cpu":
            return planned_gpu(self.config)
        return "cpu" if self.device.type == "cpu" else torch.cuda.get_device_name(self.device)

    @cached_property
    def num_threads(self) -> int:
        return self.config.num_threads or len(os.sched_getaffinity(0))

    @cached_property
    def dataset(self) -> LoadedDataset:
        with told_to_the_user():
            return load_dataset(self.config.dataset)

    @property
    def traced(self) -> tuple[Prompt, ...]:
        """The evaluation prompts whose trajectory is recorded."""
        return self.dataset.evaluation[: self.config.metrics.teacher_forced_prompts]

    @cached_property
    def prompts_hash(self) -> PromptHashes:
        return PromptHashes(
            evaluation=prompts_hash(self.dataset.evaluation),
            calibration=prompts_hash(self.dataset.calibration),
            traced=prompts_hash(self.traced),
        )

    @cached_property
    def weights(self) -> str:
        return model_hash(self.config.model, files=self._files)

    def describe_part(self, part: Part) -> dict[str, str]:
        """Where a part of `model.parts` comes from, for the record."""
        return {
            "path": self.config.model.parts[part.name],
            "class": part.kind.__name__,
            "weights": part_hash(part, files=self._files),
        }

    @cached_property
    def adapter(self) -> str | None:
        """The sha256 of the adapter's file."""
        path = adapter_file(self.config.model)
        return None if path is None else self.file_key(path)

    @cached_property
    def true_images_hash(self) -> str | None:
        """Of the files that the true images are made from; None where they are drawn."""
        with told_to_the_user():
            contents = [
                self._files.of_picture(picture) if picture.exists() else None
                for picture in true_images_of(self.dataset).values()
            ]
        self._files.keep()
        return digest(contents) if contents else None

    @cached_property
    def _files(self) -> FileHashes:
        return FileHashes(self.store.root / HASHES)

    def file_key(self, path: Path) -> str:
        """A file's sha256, read once."""
        sha256 = self._files.of(path)
        self._files.keep()
        return sha256

    @cached_property
    def versions(self) -> dict[str, str]:
        return {name: version(name) for name in _VERSIONED}

    def sampler(self, *, batch_size: int | None = None, num_threads: int | None = None) -> Any:
        """The key of all that decides an image's bits, but for denoiser, prompts and code."""
        model = self.config.model
        return {
            "weights": self.weights,
            "dtype": model.dtype,
            "size": [model.height, model.width],
            "num_inference_steps": model.num_inference_steps,
            "guidance_scale": model.guidance_scale,
            "call": model.call,
            "pipeline": model.pipeline,
            "parts": sorted(model.parts),  # their contents are in `weights`
            "scheduler": model.scheduler,
            "lora": None if model.lora is None else [self.adapter, model.lora_scale],
            "batch_size": batch_size or model.batch_size,
            "seed": self.config.seed,
            "device": self.device_name,
            "num_threads": num_threads or self.num_threads,
            "versions": self.versions,
        }

    # loaded when first asked for ------------------------------------------------------------

    @cached_property
    def model(self) -> LoadedModel:
        return LoadedModel(
            config=self.config.model, device=self.device, make_room=self._loaded.clear
        )

    @cached_property
    def graph(self) -> LayerGraph:
        prompt = self.dataset.calibration[0]
        with self.model.running(None, num_threads=self.num_threads) as pipeline:
            return graph_of(pipeline, prompt, config=self.config.model)

    def loaded(self, denoiser: Denoiser) -> LoadedDenoiser:
        """The denoiser in memory; the last one is kept, as a cell asks for it several times."""
        name = denoiser.name
        if name not in self._loaded:
            self._loaded.clear()
            self._loaded[name] = denoiser.load()
        return self._loaded[name]

    def release(self) -> None:
        """Lets go of the model: a sweep of several holds one at a time."""
        self._loaded.clear()
        for name in ("model", "graph", "evaluator", "networks"):
            self.__dict__.pop(name, None)

    @cached_property
    def evaluator_folder(self) -> Path | None:
        if self.config.metrics.evaluator is None:
            return None
        folder = resolve_path(self.config.metrics.evaluator)
        if not (folder / "open_clip_config.json").is_file():
            raise UserError(
                f"metrics.evaluator={self.config.metrics.evaluator}: no open_clip model there; "
                "give a folder with open_clip_config.json and open_clip_model.safetensors"
            )
        return folder

    @cached_property
    def evaluator_key(self) -> str | None:
        """Known without loading it: a look at a sweep takes no model."""
        if self.evaluator_folder is None:
            return None
        try:
            return evaluator_key(self.evaluator_folder, file_key=self.file_key)
        except ValueError as error:
            raise UserError(f"metrics.evaluator={self.evaluator_folder}: {error}") from error

    @cached_property
    def evaluator(self) -> Evaluator | None:
        if self.evaluator_folder is None:
            return None
        return load_evaluator(self.evaluator_folder, device=self.metric_device)

    @cached_property
    def networks(self) -> dict[str, Any]:
        """Judges and extractors that the metrics of one cell have loaded, for the next cell."""
        return {}

    @cached_property
    def metric_device(self) -> str:
        """Where features and judges are computed: where the cells are, or what the metrics' own
        jobs ask for. The same for whoever asks, since keys hold it."""
        jobs = self.config.cluster.settings("metrics")
        if jobs is not None and "metrics" in self.config.cluster.stages:
            return "cuda" if jobs.gpus and self.config.device != "cpu" else "cpu"
        if self.makes:
            return str(self.device)
        return "cpu" if self.device_name == "cpu" else "cuda"

    @cached_property
    def metrics(self) -> tuple[MetricBase, ...]:
        """Those of the project that are asked for, and the user's own."""
        given = self.config.metrics
        try:
            return chosen_metrics(given.measured, also=given.also, settings=given.settings)
        except ValueError as error:
            raise UserError(f"metrics: {error}") from error

    @property
    def metric_weights(self) -> dict[str, str]:
        """File -> sha256 of the judges' weights that are there."""
        settings = self.metric_settings
        named = {f.path.name for m in self.metrics for f in m.outside_files(settings)}
        known = {name: settings.files.identity(name) for name in named & set(weight_files())}
        return {name: sha256 for name, sha256 in sorted(known.items()) if sha256 != MISSING}

    @cached_property
    def metric_settings(self) -> MetricSettings:
        given, cache = self.config.metrics, self.store.root / "stages" / "features"
        return MetricSettings(
            evaluator=self.evaluator_folder,
            prefix=given.prefix,
            weights=_folder(given.weights, what="weights"),
            inception=_folder(given.inception, what="inception"),
            device=self.metric_device,
            batch=given.batch,
            seed=self.config.seed,
            resamples=given.bootstrap_resamples,
            cache=cache,
            file_key=self.file_key,
        )

    def identity_of(self, metric: MetricBase) -> dict[str, Any]:
        """What its numbers depend on beside the images, the prompts and the code."""
        if metric.name not in self._identities:
            self._identities[metric.name] = metric_identity(metric, self.metric_settings)
        return self._identities[metric.name]

    @cached_property
    def metric_versions(self) -> dict[str, str]:
        return {name: version(name) for name in _METRICS_VERSIONED}


def _folder(given: str | None, *, what: str) -> Path | None:
    """A folder of weights that was named must be there; its files need not.

    Raises:
        UserError: it is none.
    """
    if given is None:
        return None
    folder = resolve_path(given)
    if not folder.is_dir():
        raise UserError(f"metrics.{what}={given}: no such folder; its files are in docs/metrics.md")
    return folder
