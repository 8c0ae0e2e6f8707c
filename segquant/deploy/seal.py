"""What a file of a quantized denoiser says of itself, so that another file is not taken for it.

The header of every safetensors file holds one JSON text: the structure of each quantized layer, the
denoiser's class and config, and the sha256 of every tensor. The sha256 of that text is the seal; it
stands in config.json. So an altered byte, a tensor that is missing or too many, another config and
another model's file are all told apart from what was written, by name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from segquant.core.linear import QuantLinear
from segquant.core.spec_json import dtype_name, spec_to_dict

KEY = "segquant"  # of the text in a safetensors header
SUFFIX = ".safetensors"
VERSION = 1


class DamagedFile(ValueError):  # noqa: N818 - it is what was found
    """A file that is not what was written; the message names it and what differs."""


@dataclass(frozen=True, kw_only=True)
class Contents:
    """All that a quantized denoiser is, beside the bytes of its tensors."""

    version: int
    denoiser_class: str
    config: dict[str, Any]  # of the denoiser, by which it is built
    dtype: str  # of what is not quantized
    layers: dict[str, dict[str, Any]]  # name -> spec, dtype
    tensors: dict[str, str]  # name -> sha256

    @classmethod
    def read(cls, text: str) -> Contents:
        values = json.loads(text)
        if values.get("version") != VERSION:
            raise ValueError(f"version {values.get('version')}; this reads {VERSION}")
        return cls(**values)

    def text(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))


def seal_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def layers_of(denoiser: nn.Module) -> dict[str, dict[str, Any]]:
    """The structure of every quantized layer."""
    return {
        name: {"spec": spec_to_dict(module.spec), "dtype": dtype_name(module.dtype)}
        for name, module in denoiser.named_modules()
        if isinstance(module, QuantLinear)
    }


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a denoiser's config that it is built by, in JSON's types."""
    kept = {k: v for k, v in config.items() if not k.startswith("_") and k != "quantization_config"}
    plain: dict[str, Any] = json.loads(json.dumps(kept, sort_keys=True, default=str))
    return plain


def digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The sha256 of each tensor: of its type, its shape and its bytes."""
    return {name: _digest(tensor) for name, tensor in tensors.items()}


def _digest(tensor: Tensor) -> str:
    head = f"{dtype_name(tensor.dtype)} {list(tensor.shape)} "
    digest = hashlib.sha256(head.encode())
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_sealed(files: Sequence[str | Path], *, seal: str) -> Contents:
    """What the files say of themselves, once every byte of them has been read and is right.

    Raises:
        DamagedFile: a file is not what was written; it is named.
    """
    for file in files:
        if Path(file).suffix != SUFFIX:
            raise DamagedFile(
                f"{file}: not safetensors; a quantized denoiser is in no other format"
            )
    texts = {str(file): _text(file) for file in files}
    for file, text in texts.items():
        if seal_of(text) != seal:
            raise DamagedFile(
                f"{file}: is not the file that its config.json is of (seal {seal_of(text)[:12]}, "
                f"config.json has {seal[:12]}); one of the two was altered or exchanged"
            )
    try:
        contents = Contents.read(next(iter(texts.values())))
    except (ValueError, TypeError) as error:
        raise DamagedFile(f"{files[0]}: {error}") from error
    _check_tensors(files, contents.tensors)
    return contents


def _text(file: str | Path) -> str:
    try:
        with safe_open(file, framework="pt") as opened:
            text = (opened.metadata() or {}).get(KEY)
    except (SafetensorError, OSError) as error:
        raise DamagedFile(f"{file}: cannot be read as safetensors ({error})") from error
    if text is None:
        raise DamagedFile(f"{file}: its header has no {KEY!r}; it was not written by segquant")
    return str(text)


def _check_tensors(files: Sequence[str | Path], expected: Mapping[str, str]) -> None:
    seen: set[str] = set()
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no dict
                if name not in expected:
                    raise DamagedFile(f"{file}: tensor {name} is not part of this denoiser")
                if _digest(opened.get_tensor(name)) != expected[name]:
                    raise DamagedFile(f"{file}: tensor {name} is not what was written")
                if name in seen:
                    raise DamagedFile(f"{file}: tensor {name} is in another file too")
                seen.add(name)
    if missing := sorted(set(expected) - seen):
        raise DamagedFile(
            f"{files[0]}: {len(missing)} of {len(expected)} tensors are missing, {missing[0]} first"
        )


def check_config(contents: Contents, *, denoiser_class: str, config: Mapping[str, Any]) -> None:
    """Whether a model is built as the one that was saved.

    Raises:
        DamagedFile: another class, or another value of a field of the config.
    """
    if denoiser_class != contents.denoiser_class:
        raise DamagedFile(
            f"config.json is of a {denoiser_class}, the weights are of a {contents.denoiser_class}"
        )
    given = plain_config(config)
    for name, value in contents.config.items():
        if name not in given or given[name] != value:
            raise DamagedFile(
                f"config.json has {name}={given.get(name)!r}; the weights were saved of "
                f"{name}={value!r}"
            )
