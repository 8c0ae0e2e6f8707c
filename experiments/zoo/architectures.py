"""Denoisers from a diffusers config alone, on the meta device: shapes and no memory."""

import json
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn

_CONFIGS = Path(__file__).parent / "configs"
# Where the denoiser of a pipeline folder lies, in the order they are looked for.
_COMPONENTS = ("transformer", "unet", "controlnet")


def names() -> list[str]:
    """The architectures whose configs come with the project."""
    return sorted(path.stem for path in _CONFIGS.glob("*.json"))


def build(target: str, *, device: str = "meta") -> nn.Module:
    """The denoiser of `target`: a name of the zoo, a config file, a model or a pipeline folder."""
    return from_config(load_config(target), device=device)


def load_config(target: str) -> dict[str, Any]:
    path = _config_path(target)
    config: dict[str, Any] = json.loads(path.read_text())
    if "_class_name" not in config:
        raise ValueError(f"{path} has no _class_name; give the config.json of a diffusers model")
    return config


def from_config(config: Mapping[str, Any], *, device: str = "meta") -> nn.Module:
    name = config["_class_name"]
    model_class = getattr(diffusers, name, None)
    if model_class is None:
        raise ValueError(
            f"diffusers {diffusers.__version__} has no model class {name}; install a newer one"
        )
    with torch.device(device):
        denoiser: nn.Module = model_class.from_config(dict(config))
    return denoiser.eval()


def cast(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Puts all floats of a denoiser in that type, tables of positions too, as loading it does.

    Tensor by tensor: diffusers warns of casting the whole.
    """
    for part in module.modules():
        for name, value in part.named_parameters(recurse=False):
            setattr(part, name, nn.Parameter(value.detach().to(dtype), requires_grad=False))
        for name, table in part.named_buffers(recurse=False):
            if table.is_floating_point():
                setattr(part, name, table.to(dtype))
    return module


def _config_path(target: str) -> Path:
    if target in names():
        return _CONFIGS / f"{target}.json"
    path = Path(target)
    if path.is_file():
        return path
    if (path / "model_index.json").is_file():
        for component in _COMPONENTS:
            if (path / component / "config.json").is_file():
                return path / component / "config.json"
        raise ValueError(f"{path} is a pipeline without a {', '.join(_COMPONENTS)} folder")
    if (path / "config.json").is_file():
        return path / "config.json"
    near = get_close_matches(target, names(), n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise ValueError(
        f"{target!r} is no architecture of the zoo{hint} and no diffusers config file or folder; "
        f"the zoo has {', '.join(names())}"
    )
