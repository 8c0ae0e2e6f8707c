"""Per row: each Linear's own error and cuts, from its record; its codes, from its checkpoint."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor

from evaluation.report.page_data import Histogram, LayerPoint
from experiments.cell.quantized_files import CHECKPOINT
from segquant.core.checkpoint import KIND
from segquant.core.files import TENSORS_FILE, read_manifest
from segquant.core.grids import unpack_int4
from segquant.core.linear import PACKED_BITS
from segquant.core.spec_json import spec_from_dict

if TYPE_CHECKING:
    from evaluation.records import Record
    from experiments.store.folders import Finished

_MOST_BINS = 64
_MOST_CODES = 2**20  # of one layer; of larger ones, evenly spread rows


def layer_points(record: Record) -> list[LayerPoint]:
    """The record's quantized Linears, in the denoiser's order."""
    return [_point(entry) for entry in record.layers_quantized]


def _point(entry: dict[str, Any]) -> LayerPoint:
    duals = entry.get("dual_scale") or []
    inputs = entry.get("input_segments") or []
    of_all = "all inputs" if len(inputs) > 1 else "yes"
    which = ", ".join(str(place) for place, dual in enumerate(duals, 1) if dual)
    return LayerPoint(
        name=str(entry["name"]),
        error=entry.get("relative_error"),
        shape=f"{entry['in_features']} → {entry['out_features']}",
        output_segments=sizes(entry.get("output_segments") or []),
        input_segments=sizes(inputs),
        dual_scale="" if not any(duals) else of_all if all(duals) else f"of segment {which}",
    )


def sizes(parts: Sequence[int]) -> str:
    """`160 x 6`, or `3072 + 12288`; empty for one segment."""
    if len(parts) < 2:
        return ""
    groups = [(size, len(list(same))) for size, same in itertools.groupby(parts)]
    return " + ".join(f"{size} x {count}" if count > 1 else str(size) for size, count in groups)


def told_layers(points: Sequence[LayerPoint], *, most: int) -> list[str]:
    """Names of a few Linears to look at: one of each kind, then those with the largest errors."""
    by_error = sorted(points, key=lambda point: -(point.error or 0.0))
    firsts = {point.kind: point.name for point in reversed(by_error)}
    chosen = list(dict.fromkeys([*firsts.values(), *(point.name for point in by_error)]))[:most]
    return [point.name for point in points if point.name in chosen]


def code_histograms(finished: Finished, layers: Sequence[str]) -> list[Histogram]:
    """How often the checkpoint uses each value of its weights' grids, in steps of the scale.

    A library's modules leave no checkpoint: then there is none.
    """
    folder = finished.path / CHECKPOINT
    if not folder.is_dir():
        return []
    manifest = read_manifest(folder, kind=KIND)["layers"]
    shown = []
    with safe_open(folder / TENSORS_FILE, framework="pt") as opened:
        held = set(opened.keys())
        for name in layers:
            if name in manifest and f"{name}.codes" in held:
                codes = opened.get_tensor(f"{name}.codes")
                shown.append(_histogram(name, _values(codes, manifest[name]["spec"])))
    return shown


def _values(codes: Tensor, described: dict[str, Any]) -> Tensor:
    """What the stored codes stand for, in units of their scale."""
    spec = spec_from_dict(described)
    step = -(-codes.numel() // _MOST_CODES)
    some = codes[::step]
    if spec.weight.num_bits <= PACKED_BITS:
        some = unpack_int4(some, in_features=spec.in_features)
    return spec.weight.grid.restore(some)


def _histogram(name: str, values: Tensor) -> Histogram:
    """A bin for each integer where these are few; else equal bins."""
    low, high = float(values.min()), float(values.max())
    whole = bool((values == values.round()).all()) and high - low < _MOST_BINS
    if whole:
        return histogram(name, values, low=low - 0.5, high=high + 0.5, bins=int(high - low) + 1)
    return histogram(name, values, low=low, high=high, bins=_MOST_BINS)


def histogram(name: str, values: Tensor, *, low: float, high: float, bins: int) -> Histogram:
    """Shares in percent; a constant has one bin."""
    if high <= low:
        return Histogram(layer=name, low=low - 0.5, high=low + 0.5, shares=[100.0])
    counts = torch.histc(values.float(), bins=bins, min=low, max=high)
    shares = (100 * counts / counts.sum()).tolist()
    return Histogram(layer=name, low=low, high=high, shares=[round(share, 3) for share in shares])
