"""nunchaku's tensors read as its kernels read them, lane by lane, and the product that they make.

An independent writing of `nunchaku_layout`, from the figures of the PTX ISA: of a fragment B of
mma.m16n8k64 (int4) lane i holds column i // 4 and rows 8 (i % 4) + 0..7, then the same 32 further;
of mma.m16n8k16 (16 bit) column i // 4 and rows 2 (i % 4) + 0..1, then the same 8 further; a lane's
results are of columns 2 (i % 4) + 0..1. A "column" there is an output feature, a "row" an input.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

LANES = range(32)


def read_codes(qweight: Tensor, *, rows: int, columns: int) -> Tensor:
    """int4 codes [O, I]."""
    nibbles = qweight.contiguous().view(torch.uint8).reshape(-1)
    flat = torch.stack([nibbles & 0xF, nibbles >> 4], -1).reshape(-1).to(torch.int32)
    return torch.where(flat > 7, flat - 16, flat)[_places_of_codes(rows, columns)]


@cache
def _places_of_codes(rows: int, columns: int) -> Tensor:
    """Where in the file each code lies, [O, I]."""
    places = torch.full((rows, columns), -1)
    at = 0
    for tile in range(rows // 128):
        for step in range(columns // 64):
            for sixteen in range(8):
                for lane in LANES:
                    for eight, half in ((0, 0), (0, 1), (1, 0), (1, 1)):
                        row = 128 * tile + 16 * sixteen + 8 * eight + lane // 4
                        column = 64 * step + 32 * half + 8 * (lane % 4)
                        places[row, column : column + 8] = torch.arange(at, at + 8)
                        at += 8
    return _each_once(places)


def read_scales(wscales: Tensor, *, rows: int) -> Tensor:
    """[O, G]."""
    return wscales.reshape(-1).float()[_places_of_scales(rows, wscales.numel() // rows)]


@cache
def _places_of_scales(rows: int, groups: int) -> Tensor:
    places = torch.full((rows, groups), -1)
    at = 0
    for tile in range(rows // 128):
        for group in range(groups):
            for lane in LANES:
                for eight in range(2):
                    row = 128 * tile + 16 * (lane // 4) + 8 * eight + 2 * (lane % 4)
                    places[row : row + 2, group] = torch.arange(at, at + 2)
                    at += 2
    return _each_once(places)


def read_factor(factor: Tensor, *, outer: int, inner: int, transposed: bool) -> Tensor:
    """A low-rank factor [outer, inner]; `transposed`: the first, whose tiles go along the input."""
    return factor.reshape(-1).float()[_places_of_factor(outer, inner, transposed)]


@cache
def _places_of_factor(outer: int, inner: int, transposed: bool) -> Tensor:
    places = torch.full((outer, inner), -1)
    tiles = [(o, i) for o in range(outer // 16) for i in range(inner // 16)]
    tiles = sorted(tiles, key=lambda tile: tile[::-1]) if transposed else tiles
    at = 0
    for o, i in tiles:
        for lane in LANES:
            for eight in range(2):
                for half in range(2):
                    row = 16 * o + 8 * eight + lane // 4
                    column = 16 * i + 8 * half + 2 * (lane % 4)
                    places[row, column : column + 2] = torch.arange(at, at + 2)
                    at += 2
    return _each_once(places)


def _each_once(places: Tensor) -> Tensor:
    assert torch.equal(places.flatten().sort().values, torch.arange(places.numel()))
    return places


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
