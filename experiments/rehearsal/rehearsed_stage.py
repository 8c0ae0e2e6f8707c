"""One stage of a rehearsal, in a process of its own, so that its peak of memory is its own."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from evaluation.resources import (
    own_mappings,
    peak_rss_bytes,
    reset_peak_memory,
    resident_bytes,
)
from experiments.config.request import read_request
from experiments.rehearsal.full_size import random_calls, read
from experiments.sampling.model_shapes import keep_layers
from segquant.core.calibration import Calibration
from segquant.core.checkpoint import load_quantized, save_quantized
from segquant.core.linear import QuantLinear
from segquant.core.memory import (
    InputGroup,
    MemoryPlan,
    input_groups,
    plan_groups,
    record_in_passes,
)
from segquant.core.method_interface import StatisticsNeeds
from segquant.core.predictions import tensors_in
from segquant.graph import analyze

if TYPE_CHECKING:
    from experiments.config.run_config import RunConfig
    from segquant.core.input_statistics import StatisticsRecorder


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What a process is told: JSON."""

    kind: str  # calibration, quantization or images
    weights: str  # folder of the denoiser
    work: str  # folder of what stages leave behind
    words: list[str]  # of the cell, as `segbench run` takes them
    needs: dict[str, Any]  # of all methods together
    calls: int
    batch: int
    scale: int
    gigabytes: float | None


def main() -> None:
    stage = Stage(**json.loads(sys.argv[1]))
    torch.set_num_threads(int(sys.argv[2]))
    (config,) = read_request(stage.words, multirun=False).cells
    _warm_up()
    resting = resident_bytes()
    reset_peak_memory()
    begun = time.perf_counter()
    notes = _STAGES[stage.kind](stage, config)
    measured = {
        "seconds": time.perf_counter() - begun,
        "resting_bytes": resting,
        "peak_bytes": peak_rss_bytes(),
        **notes,
    }
    sys.stdout.write(json.dumps(measured) + "\n")


def statistics_plan(stage: Stage, groups: Sequence[InputGroup]) -> MemoryPlan:
    """Of what one forward has shown, of a denoiser with or without memory."""
    needs = StatisticsNeeds(**stage.needs)
    return plan_groups(
        groups,
        gram=needs.gram,
        rows=needs.rows,
        budget_bytes=None if stage.gigabytes is None else int(stage.gigabytes * 1e9),
    )


def _calibrate(stage: Stage, config: RunConfig) -> dict[str, Any]:
    denoiser, needs = _read(stage, config), StatisticsNeeds(**stage.needs)

    def run(recorder: StatisticsRecorder) -> None:
        with torch.no_grad():
            for arguments in random_calls(
                denoiser, calls=stage.calls, batch=stage.batch, scale=stage.scale
            ):
                denoiser(**arguments)

    first = next(random_calls(denoiser, calls=1, batch=stage.batch, scale=stage.scale))
    forwards = record_in_passes(
        denoiser,
        _statistics(stage),
        plan=statistics_plan(stage, input_groups(denoiser, lambda module: module(**first))),
        run=run,
        gram=needs.gram,
        rows=needs.rows,
        seed=config.seed,
    )
    return {"forwards": forwards, "disk_bytes": _size_on_disk(_statistics(stage))}


def _quantize(stage: Stage, config: RunConfig) -> dict[str, Any]:
    denoiser = _read(stage, config)
    held = Calibration.load(_statistics(stage))
    if config.method.needs().graph:
        first = next(random_calls(denoiser, calls=1, batch=2, scale=1))
        held.graph = analyze(denoiser, first, on_error="unsegmented")
    calibration = config.method.needs().of(held)
    report = config.method.quantize(denoiser, calibration=calibration, bits=config.bits)
    folder = _checkpoint(stage, config)
    save_quantized(denoiser, folder, report)
    return {
        "layers_quantized": len(report.layers_quantized),
        "layers_kept": len(report.layers_kept),
        "bits_per_weight": report.effective_bits_per_weight,
        "disk_bytes": _size_on_disk(folder),
    }


def _sample(stage: Stage, config: RunConfig) -> dict[str, Any]:
    """One forward, as images take many: seconds of one."""
    with own_mappings():
        denoiser, _ = load_quantized(_read(stage, config), _checkpoint(stage, config))
        for module in denoiser.modules():
            if isinstance(module, QuantLinear):
                module.drop_codes()
    first = next(random_calls(denoiser, calls=1, batch=stage.batch, scale=stage.scale))
    begun = time.perf_counter()
    with torch.no_grad():
        out = denoiser(**first)
    finite = all(bool(tensor.isfinite().all()) for tensor in tensors_in(out))
    return {"forward_seconds": time.perf_counter() - begun, "finite": finite}


_STAGES: dict[str, Callable[[Stage, Any], dict[str, Any]]] = {
    "calibration": _calibrate,
    "quantization": _quantize,
    "images": _sample,
}


def _read(stage: Stage, config: RunConfig) -> nn.Module:
    denoiser = read(Path(stage.weights), dtype=getattr(torch, config.model.dtype))
    keep_layers(denoiser, config.model)
    return denoiser


def _statistics(stage: Stage) -> Path:
    return Path(stage.work) / "statistics"


def _checkpoint(stage: Stage, config: RunConfig) -> Path:
    return Path(stage.work) / f"{config.method_name}-{config.bits.name}"


def _warm_up() -> None:
    """Libraries allocate at their first product."""
    torch.nn.functional.linear(torch.ones(8, 64), torch.ones(64, 64)).sum()
    torch.linalg.cholesky(torch.eye(64) * 2)


def _size_on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def as_json(stage: Stage) -> str:
    return json.dumps(asdict(stage))


if __name__ == "__main__":
    main()
