"""The formats by name, and the one function that writes them."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from segquant.deploy.other_formats.compressed_tensors_form import COMPRESSED_TENSORS
from segquant.deploy.other_formats.form_interface import (
    Conversion,
    Form,
    FormRefused,
    Inputs,
    quantized_layers,
    reasons_by_layer,
)
from segquant.deploy.other_formats.input_dimensions import input_dimensions
from segquant.deploy.other_formats.nunchaku_form import NUNCHAKU_LITE
from segquant.deploy.other_formats.torchao_form import TORCHAO
from segquant.deploy.other_formats.written_folder import FILE_BYTES, write_folder
from segquant.deploy.seal import plain_config

FORMS: Mapping[str, Form] = {
    form.name: form for form in (COMPRESSED_TENSORS, TORCHAO, NUNCHAKU_LITE)
}


@dataclass(frozen=True, kw_only=True)
class WrittenForm:
    """What was written."""

    folder: Path
    form: str
    layers: int  # quantized
    weight_bytes: int  # of all tensors
    how_to_load: str


def write_form(
    denoiser: nn.Module,
    folder: Path,
    *,
    form: str,
    inputs: Inputs | None = None,
    file_bytes: int = FILE_BYTES,
) -> WrittenForm:
    """Writes a quantized denoiser of diffusers as another library loads it.

    Args:
        folder: a new one, or one that is empty.
        inputs: of one call of the denoiser, by name. A format that stores a static scale in the
            shape of a layer's input asks for them; the denoiser is then run once.
        file_bytes: the most that one file of weights may have.

    Raises:
        FormRefused: layers that the format cannot hold exactly; nothing is written.
        ValueError: there is no such format, its library is missing, there is nothing to write, or
            the inputs are missing.
    """
    if form not in FORMS:
        raise ValueError(f"no format is called {form!r}; there are {', '.join(FORMS)}")
    chosen = FORMS[form]
    conversion, layers = _convert(denoiser, chosen, inputs=inputs)
    size = write_folder(
        Path(folder),
        config=_config(denoiser, conversion.quantization_config),
        tensors=conversion.tensors,
        metadata=conversion.metadata,
        file_bytes=file_bytes,
    )
    return WrittenForm(
        folder=Path(folder),
        form=form,
        layers=layers,
        weight_bytes=size,
        how_to_load=chosen.how_to_load,
    )


def _convert(denoiser: nn.Module, form: Form, *, inputs: Inputs | None) -> tuple[Conversion, int]:
    layers = quantized_layers(denoiser)
    if not layers or not hasattr(denoiser, "register_to_config"):
        raise ValueError(
            f"{type(denoiser).__name__} is no denoiser of diffusers with quantized layers"
        )
    reasons = reasons_by_layer(form, layers)
    if reasons:
        raise FormRefused(form.name, reasons, layers=len(layers))
    if form.missing is not None:
        raise ValueError(f"{form.name}: {form.missing}")
    dimensions = _dimensions(denoiser, form, inputs=inputs)
    within = tuple(f"{name}." for name in layers)
    others = {k: v for k, v in denoiser.state_dict().items() if not k.startswith(within)}
    return form.convert(layers, others, dimensions), len(layers)


def _dimensions(denoiser: nn.Module, form: Form, *, inputs: Inputs | None) -> dict[str, int]:
    """Of the inputs of those layers of which the form asks."""
    layers = quantized_layers(denoiser)
    asked = {name: layer for name, layer in layers.items() if form.asks_dimensions(layer)}
    if not asked:
        return {}
    if inputs is None:
        raise ValueError(
            f"{form.name} stores static scales in the shape of each layer's input; give inputs= of "
            "one call of the denoiser"
        )
    found = input_dimensions(denoiser, asked, inputs=inputs)
    missed = [name for name in asked if name not in found]
    if missed:
        raise ValueError(
            f"{form.name}: the call with these inputs does not reach {len(missed)} layers, "
            f"{missed[0]} first, whose inputs' shape it has to know; give inputs that do"
        )
    return found


def _config(denoiser: nn.Module, quantization_config: Mapping[str, Any]) -> dict[str, Any]:
    own: Any = denoiser.config
    return {
        **plain_config(own),
        "_class_name": type(denoiser).__name__,
        "_diffusers_version": importlib.metadata.version("diffusers"),
        "quantization_config": dict(quantization_config),
    }
