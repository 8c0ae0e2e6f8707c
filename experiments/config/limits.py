"""How far each number of a request may go: below it makes no sense, above it nothing ends."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from evaluation.outside_files import text_fault
from experiments.config.plain import plain
from experiments.errors import UserError

MOST_CELLS = 100_000  # of a sweep
MOST_STEPS = 10**9  # of the denoiser, for the images of one cell
MOST_PIXELS = 2**31  # in one call of the pipeline
_MOST_INTEGER = 2**63 - 1  # what torch's generators and JSON's readers take
_MOST_CHARACTERS = 10_000
_MOST_DEPTH = 20

# least, most, and what stands for the cost of more
_Range = tuple[float, float, str]
_SEED: _Range = (0, _MOST_INTEGER, "torch's generators take no more")
_LIMITS: dict[str, _Range] = {
    "seed": _SEED,
    "num_threads": (1, 1024, "each is a thread of this machine"),
    "statistics_gigabytes": (1e-6, 1e6, "that is memory"),
    "replay_gigabytes": (1e-6, 1e6, "that is disk"),
    "model.height": (2, 16384, "pixels of a side"),
    "model.width": (2, 16384, "pixels of a side"),
    "model.num_inference_steps": (1, 10_000, "each prompt takes that many calls of the denoiser"),
    "model.guidance_scale": (-1000, 1000, "it multiplies the denoiser's output"),
    "model.batch_size": (1, 4096, "so many images are in memory at once"),
    "model.lora_scale": (-100, 100, "it multiplies the adapter"),
    "model.weights_bytes": (1, 1e15, "that is disk"),
    "dataset.evaluation_prompts": (2, 100_000, "each is sampled for every row"),
    "dataset.calibration_prompts": (1, 100_000, "each is sampled once more"),
    "dataset.num_classes": (1, 1_000_000, "of a model's labels"),
    "dataset.seed": _SEED,
    "dataset.calibration_seed": _SEED,
    "metrics.teacher_forced_prompts": (0, 100_000, "each is kept on disk, step by step"),
    "metrics.bootstrap_resamples": (100, 1_000_000, "each draws all prompts again, per metric"),
    "metrics.batch": (1, 4096, "so many images are in memory at once"),
    "logger.images": (0, 10_000, "rows of W&B's table"),
    "cluster.cells_per_job": (1, 100_000, "cells of a job run one after the other"),
    "cluster.pack_minutes": (1, 1_000_000, "minutes of a job"),
    "cluster.shards": (1, 10_000, "each is a job, which loads the model"),
    "cluster.jobs.parallel": (1, 100_000, "jobs at a time"),
    "cluster.jobs.timeout_minutes": (1, 1_000_000, "minutes of a job"),
    "cluster.jobs.cpus": (1, 1024, "of one machine"),
    "cluster.jobs.memory_gb": (1, 100_000, "of one machine"),
    "cluster.jobs.gpus": (0, 64, "of one machine"),
    "cluster.jobs.signal_seconds": (1, 65_535, "Slurm takes no more"),
    "cluster.jobs.max_requeues": (0, 100_000, "each is a job of its own"),
    "bits.mixed_budget": (1, 16, "bits per weight"),
    "bits.keep_budget": (1, 16, "bits per weight"),
}
# Settings that methods share by name; of one's own class too. Their classes check what is theirs.
_METHODS: dict[str, _Range] = {
    "alpha": (0, 1, "how far difficulty moves to the weights"),
    "alpha_min": (0, 1, "how far difficulty moves to the weights"),
    "alpha_max": (0, 1, "how far difficulty moves to the weights"),
    "alpha_step": (0.001, 1, "each step is a candidate of every layer"),
    "batch_size": (1, 4096, "so many images are in memory at once"),
    "num_threads": (1, 1024, "each is a thread of this machine"),
    "beta_start": (0, 1000, "the exponent of a penalty"),
    "beta_end": (0, 1000, "the exponent of a penalty"),
    "block_size": (1, 2**20, "columns at a time"),
    "gptq_block_size": (1, 2**20, "columns at a time"),
    "boundary_seed": _SEED,
    "seed": _SEED,
    "calls": (1, 100_000, "each is kept on disk"),
    "capture_megabytes": (1, 10_000_000, "that is disk"),
    "damping": (1e-12, 1e6, "it is added to the Hessian's diagonal, in parts of its mean"),
    "focal": (0, 1000, "an exponent"),
    "iterations": (1, 1_000_000, "each is a pass over a layer or block"),
    "low_rank_iterations": (1, 1_000_000, "each is a singular value decomposition"),
    "learning_rate": (0, 1000, "of a descent"),
    "rank": (0, 65_536, "of a layer's low-rank branch"),
    "regularization": (0, 1e6, "the weight of a penalty"),
    "rounds": (1, 1000, "each samples the calibration prompts again"),
    "sample_rows": (1, 1_000_000, "rows of every layer's input in memory"),
    "smooth_grids": (0, 10_000, "each is a candidate of every layer"),
    "threshold": (-1e6, 1e6, "of a relative error"),
    "uniform_steps": (1, 10_000, "steps of the denoiser"),
    "warm_up": (0, 1, "a part of the iterations"),
}
_NAMES = ("bits.name", "cluster.name", "dataset.name", "metrics.prefix")  # parts of other names
_NAME_SIGNS = "letters, digits, '_', '-' and '.', not a dot first"
_MOST_NAME = 64
_MOST_METHOD_INTEGER = 10**9  # of a method's number that stands in no table


def check_plain(values: Mapping[str, Any], *, where: str = "") -> None:
    """Refuses what no setting takes, before any class sees it.

    Raises:
        UserError: names the key.
    """
    for key, value in _leaves(values, where, depth=0):
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{key}={value}; give a finite number")
        if isinstance(value, int) and abs(value) > _MOST_INTEGER:
            raise UserError(f"{key} has {len(str(abs(value)))} digits; give fewer than 20")
        if isinstance(value, str):
            _check_text(key, value)


def check_part(group: str, part: Any) -> None:
    """Refuses numbers out of their range and names that could be no name in a group's dataclass.

    Raises:
        UserError: names the key, what is allowed and what more would cost.
    """
    values = plain(asdict(part))
    check_plain(values, where=group)  # a text such as 'nan' has become a number by now
    for key, value in _leaves(values, group, depth=0):
        if isinstance(value, int | float) and not isinstance(value, bool):
            check_number(key, value)
        if key in _NAMES and isinstance(value, str):
            _check_name(key, value)


def check_number(key: str, value: float) -> None:
    """Refuses a number that is out of its range; one without a range passes.

    Raises:
        UserError: names the key, what is allowed and what more would cost.
    """
    group, _, name = key.partition(".")
    limit = _LIMITS.get(_as_for_all_stages(key))
    if group == "method":
        limit = _METHODS.get(name)
        if limit is None and isinstance(value, int):
            limit = (-_MOST_METHOD_INTEGER, _MOST_METHOD_INTEGER, "it would not end")
    if limit is None:
        return
    least, most, cost = limit
    if value < least:
        raise UserError(f"{key}={value}; it must be at least {least:g}")
    if value > most:
        raise UserError(f"{key}={value}; it must be at most {most:.10g} ({cost})")


def check_pattern(pattern: str, *, key: str) -> None:
    """Refuses a pattern that fnmatch reads as a plain text.

    Raises:
        UserError: a bracket that is not closed.
    """
    rest = pattern
    while "[" in rest:
        inside = rest[rest.index("[") + 1 :]
        end = inside.find("]", 2 if inside.startswith("!") else 1)
        if end < 0:
            raise UserError(
                f"{key}: {pattern!r} has a '[' that no ']' closes, so it names no layer; "
                "write [[] for the sign itself"
            )
        rest = inside[end + 1 :]


def _as_for_all_stages(key: str) -> str:
    """`cluster.stages.metrics.cpus` is bounded as `cluster.jobs.cpus` is."""
    parts = key.split(".")
    return f"cluster.jobs.{parts[3]}" if parts[:2] == ["cluster", "stages"] and parts[3:] else key


def _leaves(value: Any, key: str, *, depth: int) -> Iterator[tuple[str, Any]]:
    """Every value within dicts and lists, by dotted key; their keys too."""
    if depth > _MOST_DEPTH:
        raise UserError(f"{key.split('.')[0]}: values are nested too deeply")
    if isinstance(value, Mapping):
        for name, item in value.items():
            _check_text(f"a key of {key}", str(name))
            yield from _leaves(item, f"{key}.{name}".lstrip("."), depth=depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item, key, depth=depth + 1)
    else:
        yield key, value


def _check_text(key: str, text: str) -> None:
    fault = text_fault(text)
    if fault is None and any(ord(sign) < ord(" ") and sign not in "\n\t" for sign in text):
        fault = "a control character"
    if fault is not None:
        raise UserError(f"{ascii(key)[1:-1]} holds {fault}; take it out")
    if len(text) > _MOST_CHARACTERS:
        raise UserError(f"{key} has {len(text)} characters; give {_MOST_CHARACTERS} at most")


def _check_name(key: str, name: str) -> None:
    good = name.replace("_", "").replace("-", "").replace(".", "").isalnum()
    if not good or not name.isascii() or name.startswith(".") or len(name) > _MOST_NAME:
        shown = name if len(name) <= _MOST_NAME else f"{name[:_MOST_NAME]}..."
        raise UserError(f"{key}={shown!r}; give {_NAME_SIGNS}, {_MOST_NAME} at most")
