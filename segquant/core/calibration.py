"""The calibration that every method of a sweep shares, in memory and on disk."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from segquant.core.capture import CapturedCalls
from segquant.core.files import read_folder, write_folder
from segquant.core.statistics import LayerStatistics
from segquant.core.stepwise import StepStatistics

KIND = "calibration"
SCHEMA_VERSION = 1


@dataclass(kw_only=True)
class Calibration:
    """Statistics of each Linear that was called, and what the static graph says of it.

    `graph` maps a layer's name to its segments (see `segquant.core.segments.LayerShape`). It is
    not saved: it is cheap, and follows from the denoiser.
    """

    statistics: Mapping[str, LayerStatistics]
    forwards: int
    graph: Any = field(default=None, repr=False)
    # What a method may ask for beyond (StatisticsNeeds): saved and loaded on their own.
    steps: StepStatistics | None = field(default=None, repr=False)
    captured: CapturedCalls | None = field(default=None, repr=False)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes safetensors and JSON; what layers share is stored once."""
        tensors: dict[str, Tensor] = {}
        stored: dict[int, str] = {}
        layers: dict[str, dict[str, Any]] = {}
        for name, seen in self.statistics.items():
            entry: dict[str, Any] = {
                "rows": seen.rows,
                "calls": seen.calls,
                "shared_with": list(seen.shared_with),
            }
            for key in ("low_I", "high_I", "sample_TI", "gram_II"):
                tensor: Tensor | None = getattr(seen, key)
                if tensor is not None:
                    entry[key] = stored.setdefault(id(tensor), f"{name}.{key}")
                    tensors[entry[key]] = tensor
            layers[name] = entry
        manifest = {
            "kind": KIND,
            "schema_version": SCHEMA_VERSION,
            "forwards": self.forwards,
            "order": list(layers),
            "layers": layers,
        }
        write_folder(folder, tensors=tensors, manifest=manifest)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, graph: Any = None) -> Calibration:
        """What `save` wrote, bit for bit; `graph` is given again."""
        tensors, manifest = read_folder(folder, kind=KIND)
        statistics: dict[str, LayerStatistics] = {}
        for name in manifest["order"]:
            entry = manifest["layers"][name]
            gram = entry.get("gram_II")
            statistics[name] = LayerStatistics(
                low_I=tensors[entry["low_I"]],
                high_I=tensors[entry["high_I"]],
                sample_TI=tensors[entry["sample_TI"]],
                rows=entry["rows"],
                calls=entry["calls"],
                gram_II=None if gram is None else tensors[gram],
                shared_with=tuple(entry["shared_with"]),
            )
        return cls(statistics=statistics, forwards=manifest["forwards"], graph=graph)
