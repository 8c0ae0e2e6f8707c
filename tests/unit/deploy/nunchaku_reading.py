"""nunchaku's tensors read as its kernels read them, lane by lane, and the product that they make.

An independent writing of `nunchaku_layout`, from the figures of the PTX ISA: of a fragment B of
mma.m16n8k64 (int4) lane i holds column i // 4 and rows 8 (i % 4) + 0..7, then the same 32 further;
of mma.m16n8k16 (16 bit) column i // 4 and rows 2 (i % 4) + 0..1, then the same 8 further; a lane's
results are of columns 2 (i % 4) + 0..1. A "column" there is an output feature, a "row" an input.
"""

from __future__ import annotations

import torch
from torch import Tensor

LANES = range(32)


def read_codes(qweight: Tensor, *, rows: int, columns: int) -> Tensor:
    """int4 codes [O, I]."""
    nibbles = qweight.contiguous().view(torch.uint8).reshape(-1)
    flat = torch.stack([nibbles & 0xF, nibbles >> 4], -1).reshape(-1).to(torch.int32)
    flat = torch.where(flat > 7, flat - 16, flat)
    codes = torch.full((rows, columns), 99, dtype=torch.int32)
    at = 0
    for tile in range(rows // 128):
        for step in range(columns // 64):
            for sixteen in range(8):
                for lane in LANES:
                    for eight, half in ((0, 0), (0, 1), (1, 0), (1, 1)):
                        row = 128 * tile + 16 * sixteen + 8 * eight + lane // 4
                        column = 64 * step + 32 * half + 8 * (lane % 4)
                        codes[row, column : column + 8] = flat[at : at + 8]
                        at += 8
    return codes


def read_scales(wscales: Tensor, *, rows: int) -> Tensor:
    """[O, G]."""
    groups = wscales.numel() // rows
    flat = wscales.reshape(-1)
    scales = torch.full((rows, groups), torch.nan)
    at = 0
    for tile in range(rows // 128):
        for group in range(groups):
            for lane in LANES:
                for eight in range(2):
                    row = 128 * tile + 16 * (lane // 4) + 8 * eight + 2 * (lane % 4)
                    scales[row : row + 2, group] = flat[at : at + 2].float()
                    at += 2
    return scales


def read_factor(factor: Tensor, *, outer: int, inner: int, transposed: bool) -> Tensor:
    """A low-rank factor [outer, inner]; `transposed`: the first, whose tiles go along the input."""
    flat = factor.reshape(-1)
    read = torch.full((outer, inner), torch.nan)
    tiles = [(o, i) for o in range(outer // 16) for i in range(inner // 16)]
    tiles = sorted(tiles, key=lambda tile: tile[::-1]) if transposed else tiles
    at = 0
    for o, i in tiles:
        for lane in LANES:
            for eight in range(2):
                for half in range(2):
                    row = 16 * o + 8 * eight + lane // 4
                    column = 16 * i + 8 * half + 2 * (lane % 4)
                    read[row, column : column + 2] = flat[at : at + 2].float()
                    at += 2
    return read


def product(x: Tensor, tensors: dict[str, Tensor], *, rows: int, rank: int) -> Tensor:
    """A layer's output, in x's type, with every rounding that the kernels document."""
    columns, own = x.shape[-1], x.dtype
    smooth_I = read_scales(tensors["smooth_factor"], rows=columns)[:, 0]
    codes = read_codes(tensors["qweight"], rows=rows, columns=columns)
    scales = read_scales(tensors["wscales"], rows=rows)
    down = read_factor(tensors["proj_down"], outer=rank, inner=columns, transposed=True)
    up = read_factor(tensors["proj_up"], outer=rows, inner=rank, transposed=False)
    smooth = (x.float() / smooth_I).to(own).float()
    groups = smooth.reshape(*smooth.shape[:-1], columns // 64, 64)
    step = groups.abs().amax(-1, keepdim=True) / 7
    units = torch.where(step > 0, groups / step, 0.0).round().clamp(-8, 7)
    dense = (codes.reshape(rows, -1, 64) * scales[..., None]).reshape(rows, columns)
    quantized = (units * step.to(own).float()).reshape(smooth.shape)
    inner = (x.float() @ down.T).to(own).float()
    out = quantized @ dense.T + inner @ up.T
    if "bias" in tensors:
        out = out + read_scales(tensors["bias"], rows=rows)[:, 0]
    return out.to(own)
