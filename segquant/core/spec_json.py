"""The structure of a quantized layer as what JSON can hold."""

from __future__ import annotations

from dataclasses import asdict, fields
from enum import Enum
from typing import Any

import torch

from segquant.core.linear import LinearSpec
from segquant.core.schemes import TensorScheme


def spec_to_dict(spec: LinearSpec) -> dict[str, Any]:
    """JSON's types; enums by their names."""
    values = asdict(spec)
    for key in ("weight", "activation"):
        values[key] = {k: v.name if isinstance(v, Enum) else v for k, v in values[key].items()}
    values["rank_dtype"] = dtype_name(spec.rank_dtype)
    return values


def spec_from_dict(values: dict[str, Any]) -> LinearSpec:
    """What `spec_to_dict` made.

    Raises:
        ValueError: it is of another version, or no such structure.
    """
    known = {known_field.name for known_field in fields(LinearSpec)}
    if set(values) != known:
        differing = ", ".join(sorted(set(values) ^ known))
        raise ValueError(f"a layer's structure has other fields than are known here: {differing}")
    ready: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    ready["weight"] = TensorScheme(**values["weight"])
    ready["activation"] = TensorScheme(**values["activation"])
    ready["rank_dtype"] = getattr(torch, values["rank_dtype"])
    return LinearSpec(**ready)


def dtype_name(dtype: torch.dtype) -> str:
    """As torch's attribute is called."""
    return str(dtype).removeprefix("torch.")
