"""PEFT adapters: fused into the pipeline's weights before anything else."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from experiments.errors import UserError
from experiments.store.paths import resolve_path

if TYPE_CHECKING:
    from experiments.config.run_config import ModelConfig

_SUFFIX = ".safetensors"
_LORA_LAYERS = ("lora_A", "lora_B", "lora_down", "lora_up", "lora.down", "lora.up")


def adapter_file(config: ModelConfig) -> Path | None:
    """The file of `model.lora`; None where there is none.

    Raises:
        UserError: it is not there, or no safetensors of low-rank pairs.
    """
    if config.lora is None:
        return None
    from safetensors import SafetensorError, safe_open

    path = resolve_path(config.lora)
    if not path.is_file() or path.suffix != _SUFFIX:
        raise UserError(f"model.lora={config.lora}: no such file; give a {_SUFFIX} of an adapter")
    try:
        with safe_open(path, framework="pt") as tensors:
            names = list(tensors.keys())
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"model.lora={config.lora} cannot be read ({error}); copy it again"
        ) from error
    if not any(mark in name for name in names for mark in _LORA_LAYERS):
        raise UserError(
            f"model.lora={config.lora}: none of its {len(names)} tensors is of a low-rank pair "
            f"({', '.join(_LORA_LAYERS[:4])}); give an adapter's file"
        )
    return path


def check_adapter(config: ModelConfig, kind: type) -> None:
    """Refuses an adapter that cannot be fused into such a pipeline.

    Raises:
        UserError: as `adapter_file`; peft is not installed; the pipeline takes no adapter.
    """
    if config.lora is None:
        if config.lora_scale != 1.0:
            raise UserError(f"model.lora_scale={config.lora_scale} without model.lora; give both")
        return
    adapter_file(config)
    if not all(hasattr(kind, name) for name in ("load_lora_weights", "fuse_lora")):
        raise UserError(f"model.lora={config.lora}: {kind.__name__} takes no adapter")
    if importlib.util.find_spec("peft") is None:
        raise UserError(
            f"model.lora={config.lora}: peft is not installed, which reads adapters: "
            "pip install 'segquant-bench[lora]'"
        )


def fuse_adapter(pipeline: Any, config: ModelConfig) -> None:
    """Adds `lora_scale` times the adapter to the weights; every layer is a plain one afterwards.

    Quantized layers could not take it, so it goes first.

    Raises:
        UserError: nothing of it fits the pipeline.
    """
    path = adapter_file(config)
    if path is None:
        return
    check_adapter(config, type(pipeline))
    networks = _networks(pipeline)
    before = {name: _layers(module) for name, module in networks.items()}
    try:
        pipeline.load_lora_weights(str(path.parent), weight_name=path.name, local_files_only=True)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise UserError(
            f"model.lora={config.lora}: {type(pipeline).__name__} does not take it ({first}); is "
            "it another model's adapter?"
        ) from error
    touched = [name for name, module in networks.items() if _layers(module) != before[name]]
    if not touched:
        raise UserError(
            f"model.lora={config.lora}: none of its layers is one of {type(pipeline).__name__}'s; "
            "it is another model's adapter"
        )
    pipeline.fuse_lora(components=touched, lora_scale=config.lora_scale, safe_fusing=True)
    pipeline.unload_lora_weights()
    left = [name for name in touched if _layers(networks[name]) != before[name]]
    if left:
        raise UserError(
            f"model.lora={config.lora}: after fusing it, {', '.join(left)} has other layers than "
            "before; give an adapter of low-rank pairs of Linears and convolutions alone"
        )


def _networks(pipeline: Any) -> dict[str, nn.Module]:
    return {n: part for n, part in pipeline.components.items() if isinstance(part, nn.Module)}


def _layers(module: nn.Module) -> list[tuple[str, type]]:
    return [(name, type(layer)) for name, layer in module.named_modules()]
