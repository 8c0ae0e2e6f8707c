"""A denoiser of a real model at its published size, with random weights, on disk and in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from experiments.zoo import cast, example_inputs, from_config, load_config
from experiments.zoo.published import PUBLISHED

SHARD = "2GB"  # of a file of weights
_LAST_STEP = 1000


def denoiser_config(model: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a model's main denoiser.

    Args:
        changes: fields that differ from the published ones, as a number of layers.

    Raises:
        ValueError: the model's config is not here, or has no such field.
    """
    if model not in PUBLISHED:
        raise ValueError(
            f"model={model}: its config at full size is not here; there are {', '.join(PUBLISHED)}"
        )
    config = load_config(next(iter(PUBLISHED[model].denoisers.values())))
    unknown = [name for name in changes if name not in config]
    if unknown:
        named = ", ".join(name for name in config if not name.startswith("_"))
        raise ValueError(f"{unknown[0]} is no field of {model}'s denoiser; fields are {named}")
    return {**config, **changes}


def write_random(config: Mapping[str, Any], folder: Path, *, dtype: torch.dtype) -> int:
    """Writes a denoiser as each layer draws its first weights, from a fixed seed.

    Returns:
        Bytes of its files.
    """
    with torch.random.fork_rng(devices=()), _default_type(dtype):
        torch.manual_seed(0)
        made: Any = from_config(config, device="cpu")
    made.to(dtype).save_pretrained(folder, max_shard_size=SHARD)
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def read(folder: Path, *, dtype: torch.dtype) -> nn.Module:
    """What `write_random` wrote, as diffusers loads a model: its files stay mapped."""
    kind = getattr(diffusers, load_config(str(folder))["_class_name"])
    denoiser: nn.Module = kind.from_pretrained(
        folder, torch_dtype=dtype, local_files_only=True
    ).eval()
    return denoiser


def outline(config: Mapping[str, Any], *, dtype: torch.dtype) -> nn.Module:
    """The denoiser without memory."""
    return cast(from_config(config), dtype)


def random_calls(
    denoiser: nn.Module, *, calls: int, batch: int, scale: int
) -> Iterator[dict[str, Any]]:
    """Arguments of so many calls: normal noise, each call at a timestep of its own."""
    shaped = example_inputs(denoiser, batch=batch, scale=scale)
    generator = torch.Generator().manual_seed(0)
    for call in range(calls):

        def drawn(tensor: Tensor) -> Tensor:
            if not tensor.is_floating_point() or tensor.dim() < 2:
                return tensor
            return torch.randn(tensor.shape, generator=generator).to(tensor.dtype)

        arguments: dict[str, Any] = tree_map_only(Tensor, drawn, shaped)
        for name, value in arguments.items():
            if "timestep" in name and isinstance(value, Tensor):
                part = (call + 1) / (calls + 1)
                step = part if value.is_floating_point() else int(_LAST_STEP * part)
                arguments[name] = torch.full_like(value, step)
        yield arguments


@contextmanager
def _default_type(dtype: torch.dtype) -> Iterator[None]:
    """Modules made in the block have parameters of that type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
