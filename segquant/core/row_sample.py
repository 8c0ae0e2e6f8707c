"""A bounded uniform sample of rows: those with the smallest of independent draws.

The draws of a batch depend on the seed, on the batch's number and on the order of the rows within
it alone. So whoever sees a batch draws the same, and the smallest of several samples' draws are
those that one sample of all batches would have kept.

Legend: T rows, K kept rows, I features.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256

import torch
from torch import Tensor


def draw_seed(seed: int, *, batch: int) -> int:
    """The seed of a batch's draws; no other pair of seed and batch has the same stream."""
    raw = sha256(f"rows|{seed}|{batch}".encode()).digest()
    return int.from_bytes(raw[:8], "little") >> 1  # torch takes 63 bits


@dataclass
class RowSample:
    """The rows with the smallest draws so far, by their draws. Tensors are on the CPU."""

    keep: int
    seed: int
    rows_KI: Tensor | None = None  # float32
    priority_K: Tensor | None = None  # float64 in [0, 1)
    part_K: Tensor | None = None  # what `add` was told of them
    _batch: int | None = None
    _generator: torch.Generator = field(default_factory=torch.Generator)

    def add(self, x_TI: Tensor, *, batch: int, part: int = 0) -> None:
        """Draws for every row; a batch is given in one go, in one or more calls."""
        if batch != self._batch:
            self._generator.manual_seed(draw_seed(self.seed, batch=batch))
            self._batch = batch
        draw_T = torch.rand(x_TI.shape[0], generator=self._generator, dtype=torch.float64)
        if self.rows_KI is None or self.priority_K is None or self.part_K is None:
            best = draw_T.argsort(stable=True)[: self.keep]
            self.rows_KI = x_TI[best.to(x_TI.device)].float().cpu()
            self.priority_K = draw_T[best]
            self.part_K = torch.full_like(best, part)
            return
        if self.priority_K.shape[0] >= self.keep:
            best = (draw_T < self.priority_K[-1]).nonzero().flatten()
        else:
            best = torch.arange(x_TI.shape[0])
        if not best.numel():
            return
        rows_KI = torch.cat([self.rows_KI, x_TI[best.to(x_TI.device)].float().cpu()])
        priority_K = torch.cat([self.priority_K, draw_T[best]])
        part_K = torch.cat([self.part_K, torch.full_like(best, part)])
        order = priority_K.argsort(stable=True)[: self.keep]
        self.rows_KI, self.priority_K = rows_KI[order], priority_K[order]
        self.part_K = part_K[order]
