"""Quantized denoisers on disk: safetensors and a JSON manifest, no pickle."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

from segquant.core.files import read_manifest, read_tensors, write_folder
from segquant.core.layer_pass import replace_module
from segquant.core.linear import QuantLinear
from segquant.core.method_interface import QuantizationReport
from segquant.core.plain_linears import linear_layers
from segquant.core.spec_json import dtype_name, spec_from_dict, spec_to_dict
from segquant.core.stepwise import follow_steps

KIND = "quantized denoiser"
SCHEMA_VERSION = 1


def save_quantized(
    denoiser: nn.Module, folder: str | os.PathLike[str], report: QuantizationReport
) -> None:
    """Writes all of the denoiser's tensors, the structure of its QuantLinears, and the report."""
    layers = {
        name: {"spec": spec_to_dict(module.spec), "dtype": dtype_name(module.dtype)}
        for name, module in denoiser.named_modules()
        if isinstance(module, QuantLinear)
    }
    manifest = {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "denoiser_class": type(denoiser).__name__,
        "layers": layers,
        "report": report.to_dict(),
    }
    write_folder(folder, tensors=denoiser.state_dict(), manifest=manifest)


def load_quantized(
    denoiser_fresh: nn.Module, folder: str | os.PathLike[str]
) -> tuple[nn.Module, QuantizationReport]:
    """Turns a denoiser of the same architecture, whatever its weights, into the one that was saved.

    The module is changed in place and returned; its outputs are the saved one's, bit for bit. What
    it held is let go of before what takes its place is read.

    Raises:
        ValueError: the folder or the denoiser is not the right one. The denoiser is then unchanged.
    """
    manifest = read_manifest(folder, kind=KIND)
    if manifest["schema_version"] != SCHEMA_VERSION:
        raise ValueError(
            f"{folder}: schema version {manifest['schema_version']}; this reads {SCHEMA_VERSION}"
        )
    layers: dict[str, dict[str, Any]] = manifest["layers"]
    _check_layers(denoiser_fresh, manifest, folder)
    place = {name: value.device for name, value in denoiser_fresh.state_dict().items()}
    quants = _empty_layers(denoiser_fresh, layers)
    for name, (quant, where) in quants.items():
        place |= {f"{name}.{key}": where for key in quant.state_dict()}
    # assign: parameters take the saved type, whatever the fresh denoiser's was.
    tensors = read_tensors(folder, place=place)
    denoiser_fresh.load_state_dict(tensors, strict=True, assign=True)
    for quant, where in quants.values():
        quant.settle(where)
    follow_steps(denoiser_fresh)
    return denoiser_fresh, QuantizationReport.from_dict(manifest["report"])


def _check_layers(
    denoiser: nn.Module, manifest: dict[str, Any], folder: str | os.PathLike[str]
) -> None:
    linears = linear_layers(denoiser)
    for name, entry in manifest["layers"].items():
        spec, linear = spec_from_dict(entry["spec"]), linears.get(name)
        sizes = None if linear is None else (linear.in_features, linear.out_features)
        if sizes != (spec.in_features, spec.out_features):
            raise ValueError(
                f"{folder}: {name} is a Linear {spec.in_features} -> {spec.out_features} of a "
                f"{manifest['denoiser_class']}; the given {type(denoiser).__name__} has "
                f"{'none of that name' if sizes is None else f'{sizes[0]} -> {sizes[1]}'} there"
            )


def _empty_layers(
    denoiser: nn.Module, layers: dict[str, dict[str, Any]]
) -> dict[str, tuple[QuantLinear, torch.device]]:
    """Replaces Linears by layers without memory; each with the device that it is to be on."""
    linears = linear_layers(denoiser)
    made = {}
    for name, entry in layers.items():
        linear, dtype = linears.pop(name), getattr(torch, entry["dtype"])
        quant = QuantLinear(spec_from_dict(entry["spec"]), device="meta", dtype=dtype)
        made[name] = quant, linear.weight.device
        replace_module(denoiser, old=linear, new=quant)
    return made
