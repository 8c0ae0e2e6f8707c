"""Speed of a sweep's cells: one denoiser step and whole images, of the denoisers that a run uses.

Each cell is measured in a process of its own, so that no memory and nothing compiled is left of
another. What is simulated is loaded, said, and not timed: its time says nothing of its method.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evaluation.resources import peak_cuda_bytes, peak_rss_bytes, reset_peak_memory
from experiments.cell.cell import Cell
from experiments.cell.progress import Progress
from experiments.cell.protocol_fields import stored_bytes
from experiments.cell.sweep import gather_cells
from experiments.config.run_config import RunConfig
from experiments.sampling.model_folder import check_folder, denoisers_of, pipeline_index
from experiments.sampling.pipelines import get_denoiser
from experiments.sampling.sample import sample
from experiments.speed.arguments import BATCHES, ENERGY_SECONDS, IMAGES
from experiments.speed.compiling import compile_denoiser, uncompile, why_not_compiled
from experiments.speed.energy import energy_counter, measure_energy
from experiments.speed.latency import (
    IMAGE_WARMUPS,
    STEP_REPEATS,
    STEP_WARMUPS,
    Latency,
    measure_latency,
    synchronize,
)
from experiments.speed.session import failed, in_random_order
from experiments.store.folders import Store
from segquant.core.calibration import Calibration

EAGER, COMPILED = "eager", "compiled"
_SIMULATED = ("simulated", "library_simulated")
_WEIGHTS = (".safetensors", ".bin")
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class SpeedRequest:
    """How much is measured of every cell."""

    batches: Sequence[int] = BATCHES
    compiled: bool = True
    step_repeats: int = STEP_REPEATS
    images: int = IMAGES
    energy_seconds: float = ENERGY_SECONDS
    budget_seconds: float = float("inf")  # of one mode of a cell at one batch size
    order_seed: int = 0


def measure_cells(configs: Sequence[RunConfig], request: SpeedRequest) -> list[Row]:
    """Cells in random order, rows in the order of the request."""
    measured: dict[int, list[Row]] = {}
    order = in_random_order(range(len(configs)), seed=request.order_seed)
    for place, number in enumerate(order):
        with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
            rows = _waited_for(pool.submit(measure_cell, configs[number], request), configs[number])
        measured[number] = [row | {"order": place} for row in rows]
    return [row for number in range(len(configs)) for row in measured[number]]


def _waited_for(rows: Future[list[Row]], config: RunConfig) -> list[Row]:
    try:
        return rows.result()
    except BrokenProcessPool:  # out of memory, as a rule
        named = {"model": config.model.name, "method": config.method_name, "bits": config.bits.name}
        return [named | {"status": "failed", "reason": "its process was killed"}]


def measure_cell(config: RunConfig, request: SpeedRequest) -> list[Row]:
    """Its rows: a mode and batch size each, or one that says why there is none."""
    progress = Progress(cells=1, prompts=0)
    (cell,) = gather_cells([config], store=Store(Path(config.out)), progress=progress, makes=True)
    named: Row = dict(zip(("model", "method", "bits"), cell.names, strict=True))
    named |= {"dtype": config.model.dtype, "offload": config.model.offload}
    if cell.unsupported is not None:
        return [named | {"status": "skipped", "reason": cell.unsupported}]
    try:
        denoiser = cell.around.loaded(cell.denoiser)
    except Exception as raised:  # one cell's failure is a row of its own
        return [named | failed(raised)]
    named |= {"execution": denoiser.execution, "theoretical_bytes": _theoretical(cell)}
    named["by_layer_class"] = dict(denoiser.kernels.by_layer_class)
    if denoiser.execution in _SIMULATED:
        asked = config.execution == _SIMULATED[0]
        reason = "execution=auto runs codes" if asked else "no layer has a kernel here"
        return [named | {"status": "simulated", "reason": reason}]
    if any(_SIMULATED[0] in way for way in denoiser.kernels.by_layer_class.values()):
        reason = "some layers have no kernel here"
        return [named | {"status": "simulated", "reason": reason}]
    named["disk_bytes"] = _disk_bytes(cell)
    settings = [
        (mode, batch)
        for mode in (EAGER, COMPILED)
        for batch in request.batches
        if mode == EAGER or request.compiled
    ]
    rows = []
    for mode, batch in in_random_order(settings, seed=request.order_seed):
        row = named | {"mode": mode, "batch": batch}
        try:
            rows.append(row | {"status": "ok"} | _measure(cell, mode, batch, request))
        except Exception as raised:
            rows.append(row | failed(raised))
    return sorted(rows, key=lambda row: (row["batch"], row["mode"] == COMPILED))


def _measure(cell: Cell, mode: str, batch: int, request: SpeedRequest) -> Row:
    around = cell.around
    denoiser, device = around.loaded(cell.denoiser), around.device
    if mode == COMPILED and (reason := why_not_compiled(device)):
        return {"status": "not measured", "reason": reason}
    model = cell.config.model
    with around.model.running(denoiser.module, num_threads=cell.num_threads) as pipeline:
        network: nn.Module = get_denoiser(pipeline, model.denoisers)
        prompts = list(around.dataset.evaluation) * batch

        def images() -> Any:
            return sample(pipeline, prompts[:batch], config=model, seed=cell.config.seed)

        with denoiser.sampling(pipeline):
            step = _first_step(network, images)
            found: Row = {"device_bytes": tensor_bytes(network)}
            if mode == COMPILED:
                found["compile_seconds"] = _compile(network, step, device)
            try:
                found |= _timed(step, images, batch, request, device, offload=model.offload)
            finally:
                if mode == COMPILED:
                    uncompile(network)
    return found


def _compile(network: nn.Module, step: Callable[[], Any], device: torch.device) -> float:
    """Seconds of the first call, which compiles."""
    torch._dynamo.reset()
    compile_denoiser(network)
    begun = time.perf_counter()
    step()
    synchronize(device)
    return time.perf_counter() - begun


def _timed(
    step: Callable[[], Any],
    images: Callable[[], Any],
    batch: int,
    request: SpeedRequest,
    device: torch.device,
    *,
    offload: str,
) -> Row:
    half = request.budget_seconds / 2
    found: Row = {}
    if offload == "none":  # else the denoiser waits elsewhere, and a step alone has no place
        one = measure_latency(
            step,
            device=device,
            warmups=STEP_WARMUPS,
            repeats=request.step_repeats,
            budget_seconds=half,
        )
        found["step"] = asdict(one)
    gc.collect()
    reset_peak_memory()
    calls = -(-request.images // batch)
    whole = measure_latency(
        images, device=device, warmups=IMAGE_WARMUPS, repeats=calls, budget_seconds=half
    )
    found["image"] = _of_each(whole, batch)
    cuda = peak_cuda_bytes()
    found["peak_allocated_bytes"] = None if cuda is None else cuda["allocated"]
    found["peak_reserved_bytes"] = None if cuda is None else cuda["reserved"]
    found["peak_resident_bytes"] = peak_rss_bytes() if cuda is None else None
    energy = measure_energy(
        images,
        images=batch,
        device=device,
        counter=energy_counter(device),
        seconds=request.energy_seconds,
    )
    return found | asdict(energy)


def _of_each(latency: Latency, batch: int) -> dict[str, float]:
    """Seconds of one image of a batch."""
    numbers = asdict(latency)
    return {k: v / batch if k.endswith("_seconds") else v for k, v in numbers.items()}


def _first_step(network: nn.Module, images: Callable[[], Any]) -> Callable[[], Any]:
    """The denoiser's first call while images are made, to be called again by itself.

    Of several denoisers it is the call of the one that runs first.
    """
    seen: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any]]] = []

    def look(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        if not seen:
            seen.append((module, args, dict(named)))

    networks = [network, *network.children()]
    with ExitStack() as hooks:
        for one in networks:
            hooks.callback(one.register_forward_pre_hook(look, with_kwargs=True).remove)
        images()
    if not seen:
        raise ValueError("the pipeline made images without calling its denoiser")
    module, args, named = seen[0]

    def step() -> Any:
        with torch.no_grad():
            return module(*args, **named)

    return step


def tensor_bytes(network: nn.Module) -> int:
    """Of all parameters and buffers, scales and low-rank factors among them; a storage once."""
    storages = {}
    for tensor in [*network.parameters(), *network.buffers()]:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _disk_bytes(cell: Cell) -> int | None:
    """Of the denoiser's files; None for what has none of its own (a library's)."""
    if cell.quantized is not None:
        folders = [cell.quantized.build().path]
    else:
        model = cell.config.model
        root = check_folder(model)
        folders = [root / name for name in denoisers_of(model, pipeline_index(root))]
    paths = (path for folder in folders for path in folder.rglob("*"))
    return sum(path.stat().st_size for path in paths if path.suffix in _WEIGHTS) or None


def _theoretical(cell: Cell) -> int | None:
    """The denoiser's bytes by its bits, as a record counts them."""
    report = cell.around.loaded(cell.denoiser).report
    if report is None:
        nothing = Calibration(statistics={}, forwards=0)
        report = cell.config.method.quantize(
            cell.around.model.denoiser, calibration=nothing, bits=cell.config.bits
        )
    return stored_bytes(cell.around.model.weights, report)
