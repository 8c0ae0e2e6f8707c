"""A model without its weights: its denoiser on the meta device, the sizes of its other parts.

From the configs in its folder, or from the published ones of the same name where it is not here.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from experiments.errors import UserError
from experiments.readiness.repositories import sources_of
from experiments.readiness.tensor_files import read_tensor_file
from experiments.readiness.weights_there import PartState, states_of
from experiments.sampling.model_folder import check_folder, is_denoiser
from experiments.sampling.model_shapes import empty_denoiser, keep_layers
from experiments.zoo import build, cast, example_inputs, names
from experiments.zoo.published import PUBLISHED, Published, networks, parameter_count
from segquant.core.several import together

if TYPE_CHECKING:
    from experiments.config.run_config import ModelConfig

_DEFAULT_SIDE = 1024  # pixels, where neither yaml nor denoiser says
_PIXELS_PER_LATENT = 8
_INPUTS_SIDE = 8  # latents of `example_inputs` at scale 1
_KNOWN: dict[str, nn.Module | None] = {}  # without weights: they take no memory


def known_denoiser(model: ModelConfig) -> nn.Module | None:
    """What is quantized, on the meta device in the run's dtype; None where nothing tells of it."""
    try:
        folder: Path | None = check_folder(model)
    except UserError:
        folder = None
    key = repr((folder, dataclasses.replace(model, num_inference_steps=1)))
    if key not in _KNOWN:
        try:
            _KNOWN[key] = _made(model, folder)
        except (UserError, ValueError):
            _KNOWN[key] = None
    return _KNOWN[key]


def other_parts(model: ModelConfig) -> dict[str, int] | None:
    """Bytes of each other network in the run's dtype, by name; None where it is not known."""
    item = getattr(torch, model.dtype).itemsize
    chosen = set(model.denoisers or ())
    sizes = _sizes_here(model, item)
    if sizes is None and (published := _published(model)) is not None:
        sizes = {
            name: item * parameter_count(config) for name, config in networks(published).items()
        }
    if sizes is None:
        return None
    return {n: s for n, s in sizes.items() if n not in chosen and (chosen or not is_denoiser(n))}


def call_inputs(denoiser: nn.Module, model: ModelConfig, *, batch: int) -> dict[str, Any] | None:
    """Of a call at the run's size, on the meta device; None of a class that the zoo lacks."""
    side = max(model.height or 0, model.width or 0)
    own = getattr(getattr(denoiser, "config", None), "sample_size", None)
    latents = _DEFAULT_SIDE // _PIXELS_PER_LATENT
    if side:
        latents = side // _PIXELS_PER_LATENT
    elif isinstance(own, int):
        latents = own
    try:
        with torch.device("meta"):
            return example_inputs(denoiser, batch=batch, scale=max(1, latents // _INPUTS_SIDE))
    except (ValueError, AttributeError, TypeError):
        return None


def _made(model: ModelConfig, folder: Path | None) -> nn.Module | None:
    made = _by_name(model) if folder is None else empty_denoiser(model, folder)
    if made is None:
        return None
    cast(made, getattr(torch, model.dtype))
    keep_layers(made, model)
    return made


def _by_name(model: ModelConfig) -> nn.Module | None:
    """Of the published model of that name, else of the zoo's architecture of that name."""
    published = _published(model)
    if published is not None:
        chosen = model.denoisers or [next(iter(published.denoisers))]
        return together({name: build(published.denoisers[name]) for name in chosen})
    own = {_plain(model.name), _plain(Path(model.path).name)}
    return next((build(name) for name in names() if _plain(name) in own), None)


def _published(model: ModelConfig) -> Published | None:
    found = PUBLISHED.get(model.name)
    if found is None or not set(model.denoisers or ()) <= set(found.denoisers):
        return None
    return found


def _plain(name: str) -> str:
    """`sd35_medium` and `sd3.5-medium` are the zoo's `sd35-medium`."""
    return "".join(sign for sign in name.lower() if sign.isalnum())


def _sizes_here(model: ModelConfig, item: int) -> dict[str, int] | None:
    """Of each part's weights in memory, by their files; None where one is not here."""
    sizes: dict[str, int] = {}
    try:
        for source in sources_of([model]):
            folder = source.folder()
            if folder is None or not folder.is_dir():
                return None
            states = states_of(source, folder)
            if not all(state.whole for state in states):
                return None
            named = {source.part or state.name: state for state in states if state.weights()}
            sizes |= {name: _in_memory(state, item) for name, state in named.items()}
    except ValueError:
        return None
    return sizes


def _in_memory(state: PartState, item: int) -> int:
    return sum(
        read_tensor_file(path).bytes_as(item)
        if path.suffix == ".safetensors"
        else path.stat().st_size
        for path in state.weights()
    )
