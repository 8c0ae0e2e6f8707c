"""Stages that are made of batches of prompts, in shards that several processes may make.

A shard is some of the batches, cut as they are without shards: it lies in the store like a stage,
found, locked, checked and gone on with by itself. The stage puts the shards together, whoever made
them; how many there were is not in its key, and nothing of it depends on that. Once it is there,
its shards are removed.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from experiments.store.digests import digest

if TYPE_CHECKING:
    from pathlib import Path

    from experiments.cell.surroundings import Surroundings
    from experiments.store.folders import Finished


class Sharded(Protocol):
    """A stage that can be made batch by batch."""

    @property
    def around(self) -> Surroundings: ...
    @property
    def kind(self) -> str: ...
    @property
    def hash(self) -> str: ...

    def find(self) -> Finished | None: ...

    def batch_count(self) -> int:
        """How many batches there are."""
        ...

    def make_some(self, folder: Path, some: range | None) -> dict[str, Any]:
        """Makes the batches with these numbers; None is the whole stage. Notes to keep."""
        ...

    def merge(self, folder: Path, shards: Sequence[Finished]) -> dict[str, Any]:
        """Puts the shards together, which come in the order of their batches. Notes to keep."""
        ...


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Some batches of a stage."""

    whole: Sharded
    batches: range
    number: int  # from 0
    count: int  # of shards

    @property
    def label(self) -> str:
        return f"shard {self.number + 1} of {self.count}"

    def key(self) -> dict[str, Any]:
        batches = [self.batches.start, self.batches.stop]
        return {"stage": self.whole.kind, "whole": self.whole.hash, "batches": batches}

    @cached_property
    def hash(self) -> str:
        return digest(self.key())

    def find(self) -> Finished | None:
        """The finished shard, or None; looks at sizes and changes nothing."""
        return self.whole.around.store.find(_kind(self.whole), self.hash)

    def build(self) -> Finished:
        """The finished shard, made if it is not there or damaged."""
        return self.whole.around.store.build(_kind(self.whole), self.key(), self._make)

    def _make(self, folder: Path) -> dict[str, Any]:
        return self.whole.make_some(folder, self.batches)


def shards_of(stage: Sharded) -> tuple[Shard, ...]:
    """As many as the cluster's settings say, but none without a batch; empty for a single one."""
    wanted, batches = stage.around.config.cluster.shards, stage.batch_count()
    cuts = sorted({batches * number // wanted for number in range(wanted + 1)})
    pairs = list(itertools.pairwise(cuts))
    if len(pairs) < 2:
        return ()
    return tuple(
        Shard(whole=stage, batches=range(*pair), number=number, count=len(pairs))
        for number, pair in enumerate(pairs)
    )


def make_in_shards(stage: Sharded, folder: Path) -> dict[str, Any]:
    """Makes a stage: of its shards, those that are not there first, where it has shards.

    Its seconds are the sum of theirs and of putting them together.
    """
    shards = shards_of(stage)
    if not shards:
        return stage.make_some(folder, None)
    made = [shard.build() for shard in shards]
    begun = time.perf_counter()
    notes = stage.merge(folder, made)
    seconds = sum(one.seconds for one in made) + time.perf_counter() - begun
    peaks = [one.peak_memory_bytes for one in made if one.peak_memory_bytes is not None]
    cost = {"seconds": seconds, "peak_memory_bytes": max(peaks, default=None)}
    return {**notes, "shards": [list(shard.key()["batches"]) for shard in shards], **cost}


def remove_shards(stage: Sharded) -> None:
    """Of a finished stage: its shards, whatever their number."""
    stage.around.store.discard(_kind(stage))


def _kind(stage: Sharded) -> str:
    return f"{stage.kind}_shards_{stage.hash}"
