"""The configs of a run: dataclasses, each of whose fields a yaml in `conf/` lists."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from evaluation.datasets.interface import Dataset
from experiments.store.paths import SINGLE_FILES
from segquant.core.method_interface import Method
from segquant.core.schemes import Bits
from slurm.settings import JobSettings

JOB_STAGES = ("reference", "calibration", "cell", "metrics")


@dataclass(kw_only=True)
class ModelConfig:
    """A diffusers pipeline, how it is sampled, what of it is quantized, and what is known of it."""

    path: str  # folder in diffusers' format, single file of weights (both relative to the project
    # or absolute), or a hub id
    revision: str | None  # a commit of the hub
    dtype: str  # float32, bfloat16 or float16
    height: int | None  # pixels; null is the pipeline's own
    width: int | None
    num_inference_steps: int
    guidance_scale: float | None  # null is the pipeline's own
    batch_size: int  # prompts in one call of the pipeline; part of the protocol, as it moves bits
    call: dict[str, Any] = field(default_factory=dict)  # more arguments of the pipeline's call
    name: str = ""  # of its rows; empty: the last part of `path`
    pipeline: str | None = None  # diffusers' class, where not the one that the folder names
    configs: str | None = None  # of a single file: the folder or hub id with its configs,
    # tokenizers and what the file lacks; null: what diffusers takes it for, from the local cache
    parts: dict[str, str] = field(default_factory=dict)  # more or other parts: name -> folder,
    # hub id (`owner/name` or `owner/name@commit`) or single file
    denoisers: list[str] | None = None  # which parts are quantized; null: transformers and UNets
    keep: dict[str, str] = field(default_factory=dict)  # layers by pattern -> why in 16 bit
    scheduler: dict[str, Any] = field(default_factory=dict)  # `class` and settings unlike its own
    lora: str | None = None  # an adapter's file, fused before anything else
    lora_scale: float = 1.0
    offload: str = "none"  # or model: a part at a time on the device; or blocks: a block at a time
    embeddings: bool = False  # texts are encoded first, in a stage of their own; then encoders go
    # what is known of it, for `models`, `check` and `fetch`
    unpinned: str | None = None  # why no revision is pinned
    licence: str | None = None
    gated: bool = False  # needs an account that has agreed to the licence
    weights_bytes: int | None = None  # of all files that a run loads
    published_calibration_prompts: dict[str, int] = field(default_factory=dict)  # bits -> number

    def __post_init__(self) -> None:
        path = Path(self.path)
        self.name = self.name or (path.stem if path.suffix in SINGLE_FILES else path.name)


@dataclass(kw_only=True)
class MetricsConfig:
    """What is measured on the images."""

    measured: list[str] | None  # the project's metrics, by name; null: all
    evaluator: str | None  # folder of an open_clip model: `clip_score`, and features of FID and KID
    prefix: str  # names these features in fid_<prefix>_...; never a bare FID
    weights: str | None  # folder with files of evaluation/weights.yaml: what reads them is measured
    inception: str | None  # another folder for inception-2015-12-05.pt alone
    batch: int  # images in memory, and in a network, at once
    teacher_forced_prompts: int
    bootstrap_resamples: int
    also: list[str]  # modules with metrics of one's own, which are measured as well
    settings: dict[str, dict[str, Any]]  # of metrics, by their name


@dataclass(kw_only=True)
class ClusterConfig:
    """Where cells run: `jobs` null is this process, else jobs through submitit."""

    name: str
    jobs: JobSettings | None
    # what differs from `jobs` for a stage: reference, calibration, cell, metrics. With metrics
    # named, a cell is two jobs: its images, and its metrics on other (cheaper) resources
    stages: dict[str, dict[str, Any]]
    gpu_name: str | None  # what torch calls the nodes' GPU: images depend on it, so keys name it
    cells_per_job: int | None  # null: as many short cells as fill pack_minutes
    pack_minutes: int
    shards: int = 1  # in which a cell's images and the calibration are made, apart from each other

    def __post_init__(self) -> None:
        names = [item.name for item in fields(JobSettings)]
        for stage, changes in self.stages.items():
            if stage not in JOB_STAGES:
                raise ValueError(f"stages.{stage}: choose one of {', '.join(JOB_STAGES)}")
            for key in changes:
                if key not in names or key == "executor":
                    raise ValueError(f"stages.{stage}.{key}: fields are {', '.join(names[1:])}")
            self.settings(stage)
        for name in ("cells_per_job", "pack_minutes", "shards"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}; it must be at least 1")

    def settings(self, stage: str) -> JobSettings | None:
        """What a job of that stage asks for."""
        if self.jobs is None:
            return None
        return replace(self.jobs, **self.stages.get(stage, {}))


@dataclass(kw_only=True)
class LoggerConfig:
    """Weights & Biases: a mirror of the records, never read back."""

    mode: str  # offline, online or disabled
    project: str
    entity: str | None
    images: int  # rows of the image table


@dataclass(kw_only=True)
class RunConfig:
    """One cell."""

    model: ModelConfig
    method: Method
    method_name: str
    bits: Bits
    dataset: Dataset
    metrics: MetricsConfig
    cluster: ClusterConfig
    logger: LoggerConfig
    seed: int  # of the noise, of the calibration's sample of rows, and of the bootstrap
    device: str  # auto, cpu, cuda or cuda:N
    activation_code: str  # of inputs, with kernels: method (its own), auto, or a code by name
    execution: str  # of quantized layers: simulated, kernel, or auto (kernel where there is one)
    fuse_activations: bool  # with kernels: SiLU and GELU go into the kernels beside them
    num_threads: int | None  # CPU threads; null is all cores
    latents: str  # initial noise of evaluation images: per_prompt, or shared (one for all)
    image: str  # png, or jpeg: images go through JPEG of quality 75 before they are measured
    statistics_gigabytes: float | None  # memory for a calibration's statistics; null is no limit
    replay_gigabytes: float  # disk for the denoiser's inputs, for methods that run it again
    out: str
    group: str  # name under which W&B groups the cells
    from_environment: tuple[str, ...] = ()  # keys whose values nobody is told
