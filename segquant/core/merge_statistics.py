"""Statistics of shards of a calibration set, put together as if one pass had seen all of it.

Extremes, rows, calls, what shares an input and which rows are sampled come out exactly as in one
pass. Gram matrices are sums of the shards' float32 sums, in the shards' order: equal to those of
one pass but for the rounding of float32. One tensor is in memory at a time.

Legend: T rows, K sampled rows, I input features, P parts of the calibration set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from segquant.core.calibration import KIND, SCHEMA_VERSION
from segquant.core.files import TENSORS_FILE, Deferred, read_manifest, write_deferred


def merge_statistics(
    shards: Sequence[Path], folder: Path, *, rows: int, order: Sequence[str]
) -> None:
    """Writes to `folder` what `Calibration.load` reads.

    Args:
        shards: folders of calibrations (in passes or not) of disjoint batches, in their order.
        rows: kept of each layer, as each shard was told.
        order: all Linears of the denoiser, in its order; some shards may have called fewer.

    Raises:
        ValueError: a folder holds no calibration.
    """
    opened = [_Shard(path) for path in shards]
    tensors: dict[str, Deferred] = {}
    stored: dict[object, str] = {}
    layers: dict[str, dict[str, Any]] = {}
    for name in order:
        seen = [shard.layer(name) for shard in opened if name in shard.entries]
        if not seen:
            continue
        entry, own = _merged(seen, rows=rows)
        entry["shared_with"] = _shared_with(name, opened)
        for key, (identity, tensor) in own.items():
            entry[key] = stored.setdefault(identity, f"{name}.{key}")
            tensors.setdefault(entry[key], tensor)
        layers[name] = entry
    manifest = {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "forwards": sum(shard.forwards for shard in opened),
        "order": list(layers),
        "layers": layers,
    }
    write_deferred(folder, tensors=tensors, manifest=manifest)


@dataclass(frozen=True)
class _Seen:
    """A layer in one shard."""

    entry: dict[str, Any]
    file: Any  # safetensors' own; tensors are read when they are asked for
    where: Path

    def read(self, key: str) -> Tensor:
        tensor: Tensor = self.file.get_tensor(self.entry[key])
        return tensor

    def source(self, key: str) -> tuple[Path, str]:
        """Layers with the same one share the tensor."""
        return self.where, self.entry[key]

    def ends(self, end: str) -> dict[int, Tensor]:
        """Part -> the smallest (`low`) or largest (`high`) inputs (I,)."""
        parts = self.entry["parts"]
        stacked = f"part_{end}_PI"
        if stacked in self.entry:
            return dict(zip(parts, self.read(stacked), strict=True))
        return {parts[0]: self.read(f"{end}_I")}

    def sample_parts(self) -> Tensor:
        """Of every sampled row the part's own number."""
        if "sample_part_T" in self.entry:
            return torch.tensor(self.entry["parts"])[self.read("sample_part_T")]
        return torch.full_like(self.read("priority_T"), self.entry["parts"][0], dtype=torch.int64)


class _Shard:
    """What one shard left, in one folder or in passes below it."""

    def __init__(self, folder: Path) -> None:
        self.entries: dict[str, dict[str, Any]] = {}
        self._home: dict[str, Path] = {}
        self._files: dict[Path, Any] = {}
        self.forwards = 0
        for path in sorted(folder.glob("part*")) or [folder]:
            manifest = read_manifest(path, kind=KIND)
            self.entries |= manifest["layers"]
            self._home |= dict.fromkeys(manifest["layers"], path)
            self._files[path] = safe_open(path / TENSORS_FILE, framework="pt")
            self.forwards += manifest["forwards"]

    def layer(self, name: str) -> _Seen:
        where = self._home[name]
        return _Seen(self.entries[name], self._files[where], where)


def _shared_with(name: str, shards: Iterable[_Shard]) -> list[str]:
    """Layers that share their input at every call in every shard that called either."""
    sharing: dict[str, None] | None = None
    for shard in shards:
        if name not in shard.entries:
            continue
        own = shard.entries[name]["shared_with"]
        sharing = dict.fromkeys(own) if sharing is None else {o: None for o in sharing if o in own}
    without = [shard for shard in shards if name not in shard.entries]
    return [o for o in sharing or () if not any(o in shard.entries for shard in without)]


_Own = dict[str, tuple[object, Deferred]]  # key -> what tells the tensor from others, the tensor


def _merged(seen: Sequence[_Seen], *, rows: int) -> tuple[dict[str, Any], _Own]:
    parts = sorted({part for one in seen for part in one.entry["parts"]})
    entry: dict[str, Any] = {
        "rows": sum(one.entry["rows"] for one in seen),
        "calls": sum(one.entry["calls"] for one in seen),
        "parts": parts,
    }
    (features,) = seen[0].file.get_slice(seen[0].entry["low_I"]).get_shape()
    own = _extremes(seen, parts, features=features) | _sample(seen, parts, features, rows=rows)
    if all("gram_II" in one.entry for one in seen):
        identity = ("gram_II", *(one.source("gram_II") for one in seen))
        own["gram_II"] = (identity, _float32((features, features), partial(_sum, seen)))
    return entry, own


def _float32(shape: tuple[int, ...], make: Callable[[], Tensor]) -> Deferred:
    return Deferred(shape=shape, dtype=torch.float32, make=make)


def _sum(seen: Sequence[_Seen]) -> Tensor:
    total_II = seen[0].read("gram_II").clone()  # what is read lies in the file's own memory
    for one in seen[1:]:
        total_II += one.read("gram_II")
    return total_II


def _extremes(seen: Sequence[_Seen], parts: list[int], *, features: int) -> _Own:
    def by_part(end: str) -> Tensor:
        best = torch.minimum if end == "low" else torch.maximum
        found: dict[int, Tensor] = {}
        for one in seen:
            for part, end_I in one.ends(end).items():
                found[part] = best(found[part], end_I) if part in found else end_I
        return torch.stack([found[part] for part in parts])

    def overall(end: str) -> Tensor:
        found_PI = by_part(end)
        return found_PI.amin(0) if end == "low" else found_PI.amax(0)

    own: _Own = {}
    for end in ("low", "high"):
        own[f"{end}_I"] = (object(), _float32((features,), partial(overall, end)))
        if len(parts) > 1:
            shape = (len(parts), features)
            own[f"part_{end}_PI"] = (object(), _float32(shape, partial(by_part, end)))
    return own


def _sample(seen: Sequence[_Seen], parts: list[int], features: int, *, rows: int) -> _Own:
    """The rows with the smallest draws of all; of equal draws the earlier shard's."""
    priority_T = torch.cat([one.read("priority_T") for one in seen])
    chosen_K = priority_T.argsort(stable=True)[:rows]
    priority_K = priority_T[chosen_K]
    count = len(chosen_K)

    def rows_of() -> Tensor:
        sample_KI = torch.empty(count, features)
        begin = 0
        for one in seen:
            rows_TI = one.read("sample_TI")
            mine_K = (chosen_K >= begin) & (chosen_K < begin + len(rows_TI))
            sample_KI[mine_K] = rows_TI[chosen_K[mine_K] - begin]
            begin += len(rows_TI)
        return sample_KI

    identity = ("sample_TI", *(one.source("sample_TI") for one in seen), chosen_K.numpy().tobytes())
    own: _Own = {
        "sample_TI": (identity, _float32((count, features), rows_of)),
        "priority_T": (object(), _kept(priority_K)),
    }
    if len(parts) > 1:
        part_T = torch.cat([one.sample_parts() for one in seen])
        ranks_K = torch.searchsorted(torch.tensor(parts), part_T[chosen_K])
        own["sample_part_T"] = (object(), _kept(ranks_K))
    return own


def _kept(tensor: Tensor) -> Deferred:
    return Deferred(shape=tuple(tensor.shape), dtype=tensor.dtype, make=lambda: tensor)
