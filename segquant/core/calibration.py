"""The calibration that every method of a sweep shares, in memory and on disk."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor, nn

from segquant.core.files import TENSORS_FILE, read_manifest, write_folder
from segquant.core.input_statistics import LayerStatistics
from segquant.core.recorded_calls import CapturedCalls
from segquant.core.stepwise import StepStatistics

KIND = "calibration"
SCHEMA_VERSION = 1
TENSOR_KEYS = (
    "low_I",
    "high_I",
    "sample_TI",
    "gram_II",
    "part_low_PI",
    "part_high_PI",
    "sample_part_T",
    "priority_T",
)


class Replay(Protocol):
    """Runs a denoiser on the calibration's inputs, those that the unquantized one was given."""

    def __call__(self, denoiser: nn.Module, *, calls: int | None = None) -> None:
        """Every input in its order, or the first few of each denoiser.

        What the denoiser returns is not to be read: a forward may end as soon as it has said what
        is recorded of it.
        """
        ...


@dataclass(kw_only=True)
class Calibration:
    """Statistics of each Linear that was called, and what the static graph says of it.

    `graph` maps a layer's name to its segments (see `segquant.core.segments.LayerShape`). It is
    not saved: it is cheap, and follows from the denoiser. Nor is `replay`, for methods whose needs
    say so: it is the caller's to give again.
    """

    statistics: Mapping[str, LayerStatistics]
    forwards: int
    graph: Any = field(default=None, repr=False)
    replay: Replay | None = field(default=None, repr=False)
    # What a method may ask for beyond (StatisticsNeeds): saved and loaded on their own.
    steps: StepStatistics | None = field(default=None, repr=False)
    captured: CapturedCalls | None = field(default=None, repr=False)
    draw: str = ""  # names the draw of the calibration's prompts, for what is random beside them
    # Where layers are quantized, one at a time; None: where each of them lies.
    device: torch.device | None = None

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
                "parts": list(seen.parts),
            }
            for key in TENSOR_KEYS:
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
        """What `save` wrote, bit for bit, in one folder or in parts below it.

        Tensors are read from disk when a layer is asked for, and not kept. `graph` is given again.
        """
        parts = sorted(Path(folder).glob("part*")) or [Path(folder)]
        stored = StoredStatistics(parts)
        return cls(statistics=stored, forwards=stored.forwards, graph=graph)


@dataclass(frozen=True, kw_only=True)
class NarrowedStatistics(Mapping[str, LayerStatistics]):
    """Others' statistics as if recorded with or without Gram matrices and with fewer rows."""

    held: Mapping[str, LayerStatistics]
    gram: bool
    rows: int

    def __getitem__(self, name: str) -> LayerStatistics:
        return self.held[name].narrowed(gram=self.gram, rows=self.rows)

    def __contains__(self, name: object) -> bool:
        return name in self.held

    def __iter__(self) -> Iterator[str]:
        return iter(self.held)

    def __len__(self) -> int:
        return len(self.held)


class StoredStatistics(Mapping[str, LayerStatistics]):
    """Statistics on disk; the last layer's tensors are kept, so that q, k and v have one object."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._entries: dict[str, tuple[Path, dict[str, Any]]] = {}
        self._last: dict[tuple[Path, str], Tensor] = {}
        self.forwards = 0
        for folder in folders:
            manifest = read_manifest(folder, kind=KIND)
            self._entries |= {n: (folder, manifest["layers"][n]) for n in manifest["order"]}
            self.forwards += manifest["forwards"]

    def __getitem__(self, name: str) -> LayerStatistics:
        folder, entry = self._entries[name]
        keys = {key: entry[key] for key in TENSOR_KEYS if key in entry}
        # opened anew: what is mapped of an open file counts as this process's memory
        with safe_open(folder / TENSORS_FILE, framework="pt") as opened:
            tensors = {key: self._tensor(opened, folder, stored) for key, stored in keys.items()}
        self._last = {(folder, stored): tensors[key] for key, stored in keys.items()}
        return LayerStatistics(
            low_I=tensors["low_I"],
            high_I=tensors["high_I"],
            sample_TI=tensors["sample_TI"],
            rows=entry["rows"],
            calls=entry["calls"],
            gram_II=tensors.get("gram_II"),
            part_low_PI=tensors.get("part_low_PI"),
            part_high_PI=tensors.get("part_high_PI"),
            sample_part_T=tensors.get("sample_part_T"),
            priority_T=tensors.get("priority_T"),
            parts=tuple(entry["parts"]),
            shared_with=tuple(entry["shared_with"]),
        )

    def _tensor(self, opened: Any, folder: Path, stored: str) -> Tensor:
        kept = self._last.get((folder, stored))
        if kept is not None:
            return kept
        tensor: Tensor = opened.get_tensor(stored)
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
