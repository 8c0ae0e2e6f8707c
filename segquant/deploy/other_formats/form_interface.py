"""What a format of another library has to say, and what it makes of a denoiser."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from torch import Tensor, nn

from segquant.core.linear import QuantLinear

Layers = Mapping[str, QuantLinear]
Inputs = Mapping[str, Any]  # of one call of the denoiser, by name
SHOWN_LAYERS = 3


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """The quantized layers in a format: their tensors, and what stands beside them."""

    tensors: dict[str, Tensor]  # by name in the file
    quantization_config: dict[str, Any]  # of config.json
    metadata: dict[str, str] = field(default_factory=dict)  # of every weights' file


@dataclass(frozen=True, kw_only=True)
class Form:
    """A format that a quantized denoiser can be written in."""

    name: str
    library: str | None  # the module that writing needs, beside torch
    how_to_load: str
    obstacles: Callable[[QuantLinear], list[str]]  # why a layer does not fit; empty if it does
    convert: Callable[[Layers, dict[str, Tensor], dict[str, int]], Conversion]
    # (layers, the denoiser's other tensors, dimensions of each layer's input) -> conversion
    asks_dimensions: Callable[[QuantLinear], bool] = lambda layer: False

    def why_not(self, layer: QuantLinear) -> str | None:
        """The first reason why a layer does not fit exactly, or None."""
        return next(iter(self.obstacles(layer)), None)

    @property
    def missing(self) -> str | None:
        """What has to be installed before it can be written, or None."""
        if self.library is None or find_spec(self.library) is not None:
            return None
        extra = self.library.replace("_", "-")
        return f"{extra} is not installed: pip install 'segquant-bench[{extra}]'"


class FormRefused(ValueError):  # noqa: N818 - it is what was done
    """A denoiser that a format cannot hold exactly."""

    def __init__(self, form: str, reasons: Mapping[str, list[str]], *, layers: int) -> None:
        self.form, self.reasons, self.layers = form, dict(reasons), layers
        self.refused = len({name for names in reasons.values() for name in names})
        said = [f"{len(names)} x {why} ({_some(names)})" for why, names in reasons.items()]
        super().__init__(
            f"{form} cannot hold {self.refused} of {layers} quantized layers exactly, and nothing "
            f"was written: {'; '.join(said)}"
        )


def _some(names: list[str]) -> str:
    rest = len(names) - SHOWN_LAYERS
    return ", ".join(names[:SHOWN_LAYERS]) + (f" and {rest} more" if rest > 0 else "")


def quantized_layers(denoiser: nn.Module) -> dict[str, QuantLinear]:
    """By name, in module order."""
    return {n: m for n, m in denoiser.named_modules() if isinstance(m, QuantLinear)}


def reasons_by_layer(form: Form, layers: Layers) -> dict[str, list[str]]:
    """Why a form cannot hold layers: reason -> their names; empty where it holds all."""
    found: dict[str, list[str]] = {}
    for name, layer in layers.items():
        for reason in form.obstacles(layer):
            found.setdefault(reason, []).append(name)
    return found
