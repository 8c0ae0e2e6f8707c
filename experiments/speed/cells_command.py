"""`segbench bench-model model=... method=a,b bits=...`: a run's words, and what is measured."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from evaluation.resources import describe_environment, utc_now
from experiments.config.overrides import key_of
from experiments.config.request import read_request
from experiments.config.run_config import RunConfig
from experiments.errors import UserError
from experiments.sampling.machine import device_of
from experiments.speed.against_unquantized import with_ratios
from experiments.speed.arguments import AUTO
from experiments.speed.machine_state import machine_state, why_not_calm
from experiments.speed.session import PACKAGES
from experiments.speed.time_cells import SpeedRequest, measure_cells
from experiments.store.folders import Store
from experiments.store.paths import ROOT

_EXECUTION = "execution"


def bench_cells(options: argparse.Namespace) -> dict[str, Any]:
    """All measurements as JSON.

    Raises:
        UserError: a word that no run takes, or an option that is for full sizes alone.
    """
    configs = _configs(options)
    request = SpeedRequest(
        batches=_positive("--batches", options.batches),
        compiled=not options.no_compile,
        images=_positive("--images", [options.images])[0],
        energy_seconds=options.energy_seconds,
        budget_seconds=options.budget_seconds,
        order_seed=options.order_seed,
    )
    device = device_of(configs[0])
    Store(Path(configs[0].out)).prepare()
    started, before = utc_now(), machine_state(device)
    rows = with_ratios(measure_cells(configs, request))
    after = machine_state(device)
    return {
        "command": _command(options),
        "started_utc": started,
        "environment": describe_environment(repository=ROOT, packages=PACKAGES),
        "device_kind": device.type,
        "num_threads": configs[0].num_threads or AUTO,
        "machine_before": before,
        "machine_after": after,
        "not_calm": why_not_calm(before, after),
        "order_seed": request.order_seed,
        "rows": rows,
    }


def _configs(options: argparse.Namespace) -> list[RunConfig]:
    """The cells of the words, and of each model the unquantized one that all are held against."""
    if options.models or options.small or options.device != AUTO:
        raise UserError(
            "--models, --small and --device are for full sizes with random weights; with the words "
            "of a run give model=NAME and device=NAME"
        )
    words = list(options.overrides)
    if not any(key_of(word) == _EXECUTION for word in words):
        words.append(f"{_EXECUTION}={AUTO}")
    cells = read_request(words, multirun=True).cells
    others = [word for word in words if key_of(word).partition(".")[0] not in ("method", "bits")]
    fp = read_request([*others, "method=fp", "bits=w16a16"], multirun=True).cells
    known = {repr(config): config for config in (*fp, *cells)}
    return list(known.values())


def _positive(name: str, values: list[int]) -> list[int]:
    if any(value < 1 for value in values):
        raise UserError(f"{name}: {' '.join(map(str, values))}; give 1 or more")
    return values


def _command(options: argparse.Namespace) -> str:
    given = [word for word in options.overrides if key_of(word) != "out"]  # it decides nothing
    words = ["segbench", "bench-model", *given]
    words += ["--batches", *map(str, options.batches), "--images", str(options.images)]
    words += ["--no-compile"] if options.no_compile else []
    return shlex.join(words)
