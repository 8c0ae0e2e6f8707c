"""What a tracked run is called and what is said of it: plain data, for `tracking` to send.

Names are stable and sort: `quality/...` asks whether it is still a good model, `fidelity/...`
whether it is still the same one, `cost/...` what it took, `curve/...` runs over denoising steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from evaluation.records import Metric, Record

QUALITY, FIDELITY, COST, CURVE = "quality", "fidelity", "cost", "curve"
STEP = "denoising_step"  # the axis of curves
DIRECTIONS = "higher_is_better"  # their key in the run's config
_INFINITE = "_infinite"  # a metric without a finite value has this beside it, +1 or -1
_COSTS = ("effective_bits_per_weight", "extra_macs_fraction", "weight_bytes", "peak_memory_bytes")
_COUNTS = ("calibration_forwards", "search_candidates")
_KEYS = ("model", "method", "bits", "dataset", "seed", "execution", "settings", "protocol")


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """What a run is found by; the same id again is the same run."""

    id: str
    name: str
    group: str
    job_type: str  # a stage: calibration, quantization, images, metrics; or report
    tags: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class PromptRow:
    """A prompt's line in the table of images."""

    prompt_id: str
    prompt: str
    reference: Path
    image: Path
    scores: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FilesOf:
    """An artifact: its files by the names that they have in it."""

    name: str
    type: str
    files: Mapping[str, Path]
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class Findings:
    """What is said of a run."""

    summary: dict[str, float | str] = field(default_factory=dict)
    directions: dict[str, bool] = field(default_factory=dict)  # higher is better
    curve: list[dict[str, float]] = field(default_factory=list)  # a row a denoising step
    prompts: list[PromptRow] = field(default_factory=list)
    tables: dict[str, Path] = field(default_factory=dict)  # csv files
    pictures: dict[str, Path] = field(default_factory=dict)
    artifact: FilesOf | None = None


def metric_key(name: str, metric: Metric) -> str:
    """`fidelity/psnr`, `quality/fid_shapes_dataset`."""
    asked = FIDELITY if metric.against.startswith("reference") else QUALITY
    return f"{asked}/{name}"


def metric_values(record: Record) -> dict[str, float]:
    """Values and ends of intervals, finite ones; an infinite value is a sign beside its name."""
    flat: dict[str, float] = {}
    for name, metric in record.metrics.items():
        if metric.value is None or math.isnan(metric.value):
            continue
        key = metric_key(name, metric)
        ends = dict(zip(("low", "high"), metric.interval or (), strict=False))
        if math.isinf(metric.value):
            flat[f"{key}{_INFINITE}"] = math.copysign(1, metric.value)
        else:
            flat[key] = metric.value
        flat |= {f"{key}_{end}": value for end, value in ends.items() if math.isfinite(value)}
    return flat


def cost_values(record: Record) -> dict[str, float]:
    flat = {f"{COST}/seconds_{name}": value for name, value in record.seconds.items()}
    flat = {key.replace("seconds_seconds", "seconds"): value for key, value in flat.items()}
    named = {name: getattr(record, name) for name in (*_COSTS, *_COUNTS)}
    return flat | {f"{COST}/{name}": v for name, v in named.items() if v is not None}


def directions(record: Record) -> dict[str, bool]:
    """Which metrics are better when higher, by key."""
    return {
        metric_key(name, metric): metric.higher_is_better
        for name, metric in record.metrics.items()
        if metric.higher_is_better is not None
    }


def record_findings(record: Record) -> Findings:
    """What a record says; images, curve and files are for the caller to add."""
    summary: dict[str, float | str] = {**metric_values(record), **cost_values(record)}
    summary |= {"status": record.status, "reason": record.reason}
    return Findings(summary=summary, directions=directions(record))


def record_config(record: Record, *, config: Mapping[str, Any]) -> dict[str, Any]:
    """The whole protocol as a searchable config: keys of conf/, commit, versions, device, hash."""
    said = asdict(record)
    environment = record.environment
    git = environment.get("git") or {}
    return {
        **{key: said[key] for key in _KEYS},
        "record_id": record.run_id,
        "git_commit": git.get("commit"),
        "git_dirty": git.get("dirty"),
        "prompts_hash": record.protocol.get("prompts_hash"),
        "device": environment.get("device"),
        "packages": environment.get("packages"),
        "stages": dict(record.stages),
        "layers_kept": {layer["name"]: layer["reason"] for layer in record.layers_kept},
        "given": dict(config),
        DIRECTIONS: directions(record),
    }


def curve_of(errors: Mapping[str, Sequence[float]]) -> list[dict[str, float]]:
    """A row a step from the errors of each prompt: mean and worst, in percent."""
    steps = zip(*errors.values(), strict=True)
    return [dict(_of_step(number, list(values))) for number, values in enumerate(steps)]


def _of_step(number: int, values: Sequence[float]) -> Iterator[tuple[str, float]]:
    yield STEP, number
    yield f"{CURVE}/step_error_percent", 100 * sum(values) / len(values)
    yield f"{CURVE}/step_error_percent_worst", 100 * max(values)
