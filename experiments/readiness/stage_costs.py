"""Gigabytes of every stage of a cell, as far as they are known before it runs.

Of memory the least is said: weights and statistics, no activations. Of disk the most.

Legend: I input features of a Linear, rows those sampled of its input.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from experiments.errors import UserError
from experiments.readiness.repositories import sources_of
from experiments.readiness.tensor_files import read_tensor_file
from experiments.readiness.weights_there import PartState, states_of
from experiments.sampling.calibrate import calibration_batch_size, recorded_rows
from experiments.sampling.model_folder import check_folder
from experiments.sampling.model_shapes import empty_denoiser
from experiments.zoo import build, example_inputs, names
from segquant.core.input_statistics import PARTS
from segquant.core.memory import FLOAT32_BYTES, PRIORITY_BYTES
from segquant.core.plain_linears import linear_layers

if TYPE_CHECKING:
    from experiments.cell.cell import Cell
    from experiments.config.run_config import ModelConfig

SHARED_STAGES = ("reference", "trajectory", "calibration", "inputs")  # by the cells of one model
_IMAGE_BYTES = 4  # of a pixel, at most: a PNG of noise
_DEFAULT_SIDE = 1024  # pixels, where neither yaml nor denoiser says
_PIXELS_PER_LATENT = 8
_INPUTS_SIDE = 8  # latents of `example_inputs` at scale 1
_BITS_PER_BYTE = 8


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """The most that a stage takes; None where it is not known."""

    stage: str
    device_bytes: int | None  # 0 where the device is the CPU: its memory is the host's
    host_bytes: int | None
    disk_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    """Of a model."""

    weights: int | None  # all parts, in the dtype of the run
    largest: int | None  # part
    linears: int | None  # values in the denoiser's Linears
    denoiser: int | None  # bytes
    call: int | None  # bytes of what one prompt's call of the denoiser is given


def stage_gigabytes(cell: Cell) -> list[StageCost]:
    """What each stage of a cell takes, shared ones first."""
    config, dataset = cell.config, cell.config.dataset
    model = config.model
    sizes = _sizes(model)
    resident = sizes.weights if model.offload == "none" else sizes.largest
    pixels = (model.height or _DEFAULT_SIDE) * (model.width or _DEFAULT_SIDE)
    images = dataset.evaluation_prompts * pixels * _IMAGE_BYTES
    calls = None if sizes.call is None else sizes.call * model.num_inference_steps
    gram, rows = _statistics(cell)

    def cost(stage: str, *, device: int | None, host: int | None, disk: int | None) -> StageCost:
        on_cpu = cell.config.device == "cpu" or not _has_cuda(cell)
        return StageCost(
            stage=stage,
            device_bytes=0 if on_cpu else device,
            host_bytes=_sum(device, host) if on_cpu else _sum(sizes.weights, host),
            disk_bytes=disk,
        )

    costs = [cost("reference", device=resident, host=0, disk=images)]
    traced = min(config.metrics.teacher_forced_prompts, dataset.evaluation_prompts)
    if traced:
        disk = _times(calls, traced)
        costs.append(cost("trajectory", device=resident, host=0, disk=disk))
    if cell.quantizes:
        device, disk = _sum(resident, gram), _sum(gram, rows)
        costs.append(cost("calibration", device=device, host=rows, disk=disk))
        if config.method.needs().replay:
            limit = int(config.replay_gigabytes * 1e9)
            disk = min(limit, _times(calls, dataset.calibration_prompts) or limit)
            costs.append(cost("inputs", device=resident, host=0, disk=disk))
        costs.append(
            cost("quantized", device=sizes.denoiser, host=disk, disk=_checkpoint(cell, sizes))
        )
    if cell.quantizes or cell.floor is not None:
        costs.append(cost("images", device=resident, host=0, disk=images))
    return costs


_KNOWN: dict[str, nn.Module | None] = {}  # without weights: they take no memory


def known_denoiser(model: ModelConfig) -> nn.Module | None:
    """The denoiser on the meta device: by its folder's config, or the zoo's of its name."""
    try:
        folder = check_folder(model)
    except UserError:
        folder = None
    key = repr((folder, model))
    if key not in _KNOWN:
        _KNOWN[key] = _denoiser(model, folder)
    return _KNOWN[key]


def _zoo_name(model: ModelConfig) -> str:
    """`sd35_medium` and `stable-diffusion/sd3.5-medium` are the zoo's `sd35-medium`."""
    own = {_plain(model.name), _plain(Path(model.path).name)}
    return next((name for name in names() if _plain(name) in own), "")


def _plain(name: str) -> str:
    return "".join(sign for sign in name.lower() if sign.isalnum())


def _denoiser(model: ModelConfig, folder: Path | None) -> nn.Module | None:
    zoo, dtype = _zoo_name(model), model.dtype
    try:
        named = build(zoo) if zoo and folder is None else None
        made = named if folder is None else empty_denoiser(model, folder)
    except (UserError, ValueError):
        return None
    if made is not None:
        for module in made.modules():  # tensor by tensor: diffusers warns of casting the whole
            for name, value in module.named_parameters(recurse=False):
                cast = value.detach().to(getattr(torch, dtype))
                setattr(module, name, nn.Parameter(cast, requires_grad=False))
    return made


def _sizes(model: ModelConfig) -> _Sizes:
    item = getattr(torch, model.dtype).itemsize
    denoiser = known_denoiser(model)
    parts = _parts_bytes(model, item)
    weights = sum(parts) if parts else model.weights_bytes
    own, linears, call = None, None, None
    if denoiser is not None:
        own = sum(p.numel() for p in denoiser.parameters()) * item
        linears = sum(linear.weight.numel() for linear in linear_layers(denoiser).values())
        inputs = _inputs(denoiser, model, batch=1)
        call = None if inputs is None else sum(t.nbytes for t in _tensors(inputs))
    largest = max(parts, default=own)
    return _Sizes(weights=weights, largest=largest, linears=linears, denoiser=own, call=call)


def _parts_bytes(model: ModelConfig, item: int) -> list[int]:
    """Of each part's weights in memory; nothing where one is not here."""
    parts: list[int] = []
    for source in sources_of([model]):
        folder = source.folder()
        if folder is None or not folder.is_dir():
            return []
        try:
            states = states_of(source, folder)
            if not all(state.whole for state in states):
                return []
            parts += [_in_memory(state, item) for state in states if state.weights()]
        except ValueError:
            return []
    return parts


def _in_memory(state: PartState, item: int) -> int:
    return sum(
        read_tensor_file(path).bytes_as(item)
        if path.suffix == ".safetensors"
        else path.stat().st_size
        for path in state.weights()
    )


def _statistics(cell: Cell) -> tuple[int | None, int | None]:
    """Bytes of Gram matrices (once for layers that read one tensor), and of rows and extremes."""
    denoiser = known_denoiser(cell.config.model)
    if denoiser is None:
        return None, None
    needs, model = cell.around.needs, cell.config.model
    prompts = cell.config.dataset.calibration_prompts
    size = calibration_batch_size(cell.config, prompts=prompts)
    linears = linear_layers(denoiser)
    inputs = _inputs(denoiser, model, batch=size)
    read = {} if inputs is None else _reads(denoiser, inputs, linears.values())
    features = read.values() if read else [linear.in_features for linear in linears.values()]
    gram = sum(width**2 for width in features) * FLOAT32_BYTES if needs.gram else 0
    keep = recorded_rows(needs)
    each = (
        linear.in_features * FLOAT32_BYTES * (keep + 2 * PARTS) + keep * PRIORITY_BYTES
        for linear in linears.values()
    )
    return gram, sum(each)


def _reads(
    denoiser: nn.Module, inputs: dict[str, Any], linears: Iterable[nn.Linear]
) -> dict[int, int]:
    """Features of each distinct tensor that Linears read in a call; empty if that is not known."""
    kept: list[Tensor] = []  # alive, so that no other tensor gets its identity
    read: dict[int, int] = {}

    def note(_: nn.Module, given: tuple[Any, ...]) -> None:
        kept.append(given[0])
        read[id(given[0])] = given[0].shape[-1]

    handles = [linear.register_forward_pre_hook(note) for linear in linears]
    try:
        with torch.no_grad():
            denoiser(**inputs)
    except Exception:  # a class that wants other inputs, or values: what is shared is not known
        return {}
    finally:
        for handle in handles:
            handle.remove()
    return read


def _inputs(denoiser: nn.Module, model: ModelConfig, *, batch: int) -> dict[str, Any] | None:
    """Of a call at the run's size, on the meta device; None of a class that the zoo lacks."""
    side = max(model.height or 0, model.width or 0)
    side = (
        side // _PIXELS_PER_LATENT if side else getattr(denoiser.config, "sample_size", None) or 0
    )
    latents = side if isinstance(side, int) and side else _DEFAULT_SIDE // _PIXELS_PER_LATENT
    try:
        with torch.device("meta"):
            made = example_inputs(denoiser, batch=batch, scale=max(1, latents // _INPUTS_SIDE))
    except (ValueError, AttributeError, TypeError):
        return None
    return made


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _checkpoint(cell: Cell, sizes: _Sizes) -> int | None:
    """Of the quantized denoiser's file."""
    if sizes.denoiser is None or sizes.linears is None:
        return None
    item = getattr(torch, cell.config.model.dtype).itemsize
    bits = cell.config.bits.weight.num_bits if cell.config.bits.weight.quantized else 0
    as_codes = sizes.linears * (bits or item * _BITS_PER_BYTE) // _BITS_PER_BYTE
    return sizes.denoiser - sizes.linears * item + as_codes


def _has_cuda(cell: Cell) -> bool:
    return cell.config.device != "auto" or torch.cuda.is_available() or not cell.around.makes


def _sum(*counts: int | None) -> int | None:
    return None if any(count is None for count in counts) else sum(c for c in counts if c)


def _times(count: int | None, factor: int) -> int | None:
    return None if count is None else count * factor
