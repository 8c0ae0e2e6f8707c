"""How weights land on their grid: to nearest (`rtn`), by GPTQ, or learned.

What is learned: `segquant.core.signed_rounding`.

GPTQ rounds column after column and lets the columns that are still free make up for the error,
which minimises tr(D H D^T), D = W - Q(W), H = X^T X. With U the upper Cholesky factor of the
inverse of the damped H (H^-1 = U^T U), column i's error e = (w_i - q_i) / U_ii is taken from the
later columns as w_j -= e U_ij. Source: GPTQ (arXiv 2210.17323), section 3.3 and algorithm 1.
The factor matters: the raw inverse in its place forgets that earlier columns are fixed.

With inputs X~ of a partly quantized denoiser and X of the unquantized one, what is to be minimised
is ||X W^T - X~ Q^T||^2: H = X~^T X~, and GPTQ starts from its unconstrained minimum
W + W M H^-1, M = (X - X~)^T X~, but for the first column, which is rounded as the best against the
others as they were: w_1 + (W M)_1 / H_11. Source: Qronos (arXiv 2505.11695), algorithm 1, whose
later columns are GPTQ's by its theorem. With X~ = X it is GPTQ.

Two departures from the authors' code: a dead input channel keeps its weights (rounded to nearest)
instead of having them set to zero, and a group's scale comes from the weights before rounding.

Legend: O output features, I input features, B columns of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from segquant.core.blocks import expand_blocks
from segquant.core.grids import Grid, dequantize, quantize
from segquant.core.weights import WeightGrid, WeightScales, quantize_weight

DAMPING_TRIES = 10
DAMPING_GROWTH = 10.0
SMALL_TRIANGLE = 128


class Rounding(Enum):
    rtn = "rtn"
    gptq = "gptq"
    signround = "signround"

    @property
    def reads_gram(self) -> bool:
        """Whether it needs the Gram matrix of a layer's input."""
        return self is not Rounding.rtn


class GptqVariant(Enum):
    """`released` replays the SegQuant authors' code: the raw inverse where its factor belongs."""

    cholesky = "cholesky"
    released = "released"


@dataclass(frozen=True, kw_only=True)
class GptqSettings:
    damping: float = 0.01  # of the mean diagonal of H, added to the diagonal
    block_size: int = 128
    act_order: bool = False  # columns with the largest inputs first
    segment_hessians: bool = False  # one H per input segment, cross terms dropped
    variant: GptqVariant = GptqVariant.cholesky
    corrected: bool = False  # for inputs that differ from the unquantized denoiser's (Qronos)

    def __post_init__(self) -> None:
        if self.damping <= 0:
            raise ValueError(f"damping={self.damping}; give a number above 0, usually 0.01")
        if self.block_size < 1:
            raise ValueError(f"block_size={self.block_size}; give at least 1, usually 128")
        if self.corrected and self.variant is not GptqVariant.cholesky:
            raise ValueError("corrected with variant=released; set variant=cholesky")


@dataclass(frozen=True, kw_only=True)
class Rounded:
    """Codes (float32), and why GPTQ was not done where it was asked for."""

    codes_OI: Tensor
    fallback: str | None = None


class FactorCache:
    """Remembers the last Gram matrix's factor: q, k and v share theirs and come in a row."""

    def __init__(self) -> None:
        self._key: tuple[Tensor, tuple[int, ...]] | None = None
        self._factor: Factor | None = None

    def get(
        self, gram_II: Tensor, segments: tuple[int, ...], make: Callable[[], Factor | None]
    ) -> Factor | None:
        if self._key is None or self._key[0] is not gram_II or self._key[1] != segments:
            self._key, self._factor = (gram_II, segments), make()
        return self._factor


@dataclass(frozen=True, kw_only=True)
class Factor:
    """The upper factor of the inverse (as released: the inverse), float32, of columns in `order_I`
    (None: as they are)."""

    factor_II: Tensor
    order_I: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Correction:
    """W M of the weight that meets the inputs, and the diagonal of H, before damping."""

    pull_OI: Tensor
    diagonal_I: Tensor

    def shift(self, factor: Factor) -> Tensor:
        """W M H^-1, with H damped as in the factor."""
        if factor.order_I is None:
            return (self.pull_OI @ factor.factor_II.T) @ factor.factor_II
        shift_OI = torch.empty_like(self.pull_OI)
        ordered_OI = self.pull_OI[:, factor.order_I]
        shift_OI[:, factor.order_I] = (ordered_OI @ factor.factor_II.T) @ factor.factor_II
        return shift_OI

    def first(self, w_OI: Tensor, column: int) -> Tensor:
        """The best value of a column with the others as they are; of a dead one its own."""
        power = float(self.diagonal_I[column])
        return w_OI[:, column] + (self.pull_OI[:, column] / power if power > 0 else 0)


def gptq_factor(gram_II: Tensor, *, settings: GptqSettings) -> Factor | None:
    """What `gptq` needs of a Gram matrix; None where no damping makes it positive definite."""
    order_I = None
    if settings.act_order:
        order_I = gram_II.diagonal().argsort(descending=True, stable=True)
        gram_II = gram_II[order_I][:, order_I]
    factor_II = inverse_factor(gram_II, damping=settings.damping)
    if factor_II is None:
        return None
    if settings.variant is GptqVariant.released:
        factor_II = factor_II.T @ factor_II
    return Factor(factor_II=factor_II.float(), order_I=order_I)


def gptq(
    w_OI: Tensor,
    factor: Factor | None,
    *,
    scales: WeightScales,
    grid: WeightGrid,
    block_size: int,
    correction: Correction | None = None,
) -> Rounded:
    """Codes by GPTQ on fixed scales; to nearest, with the reason, where there is no factor."""
    if factor is None:
        reason = f"no Cholesky factor of X^T X after {DAMPING_TRIES} dampings, or all inputs are 0"
        codes_OI = quantize_weight(w_OI, scales=scales, grid=grid)
        return Rounded(codes_OI=codes_OI, fallback=reason)
    order_I = factor.order_I
    w_OI, first_O = w_OI.float(), None
    if correction is not None:
        first_O = correction.first(w_OI, 0 if order_I is None else int(order_I[0]))
        w_OI = w_OI + correction.shift(factor)
    w_IO = w_OI.T
    codes_IO = _columns(
        # A copy: _columns writes its argument.
        w_IO.clone(memory_format=torch.contiguous_format) if order_I is None else w_IO[order_I],
        factor.factor_II,
        scales=_by_column(scales, grid=grid, order_I=order_I),
        grid=grid.codes,
        block_size=block_size,
        first_O=first_O,
    )
    if order_I is None:
        return Rounded(codes_OI=codes_IO.T)
    codes_OI = torch.empty_like(w_OI, dtype=torch.float32)
    codes_OI[:, order_I] = codes_IO.T
    return Rounded(codes_OI=codes_OI)


def inverse_factor(gram_II: Tensor, *, damping: float) -> Tensor | None:
    """U, upper triangular in float64, with U^T U the inverse of the damped Gram matrix; or None.

    From one Cholesky factor of H read backwards, H = V V^T with V upper: U = V^-1. That is the same
    U as inverting H first, at a third of the work. Where it fails, the damping grows.
    """
    h_II = gram_II.double().flip(0, 1)
    diagonal_I = h_II.diagonal()
    mean = float(diagonal_I.mean())
    if not mean > 0:
        return None
    diagonal_I.masked_fill_(diagonal_I <= 0, 1.0)  # dead: a column of its own
    added, damp = 0.0, damping * mean
    for _ in range(DAMPING_TRIES):
        diagonal_I += damp - added
        added = damp
        lower_II, failed = torch.linalg.cholesky_ex(h_II)
        if not int(failed):
            factor_II = lower_inverse(lower_II).flip(0, 1)
            if bool(factor_II.isfinite().all()):
                return factor_II
        damp *= DAMPING_GROWTH
    return None


def lower_inverse(lower_II: Tensor) -> Tensor:
    """Inverse of a lower triangular matrix, by halves: a third of a solve against the identity."""
    count = lower_II.shape[0]
    if count <= SMALL_TRIANGLE:
        eye_II = torch.eye(count, dtype=lower_II.dtype, device=lower_II.device)
        small: Tensor = torch.linalg.solve_triangular(lower_II, eye_II, upper=False)
        return small
    half = count // 2
    inverse_II = torch.zeros_like(lower_II)
    inverse_II[:half, :half] = lower_inverse(lower_II[:half, :half])
    inverse_II[half:, half:] = lower_inverse(lower_II[half:, half:])
    corner = lower_II[half:, :half] @ inverse_II[:half, :half]
    inverse_II[half:, :half] = -(inverse_II[half:, half:] @ corner)
    return inverse_II


def segment_gram(gram_II: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """The Gram matrix without its cross terms between input segments."""
    kept = torch.zeros_like(gram_II)
    start = 0
    for size in sizes:
        at = slice(start, start + size)
        kept[at, at] = gram_II[at, at]
        start += size
    return kept


def _columns(
    w_IO: Tensor,
    factor_II: Tensor,
    *,
    scales: WeightScales,
    grid: Grid,
    block_size: int,
    first_O: Tensor | None = None,
) -> Tensor:
    """Algorithm 1 on the transposed weight, whose columns are contiguous rows here.

    Args:
        first_O: what is rounded in the first column's place.
    """
    codes_IO = torch.empty_like(w_IO)
    count = w_IO.shape[0]
    for start in range(0, count, block_size):
        stop = min(start + block_size, count)
        w_BO = w_IO[start:stop]
        factor_BB = factor_II[start:stop, start:stop]
        errors_BO = torch.empty_like(w_BO)
        for i in range(stop - start):
            scale_O = scales.scale[start + i]
            zero_O = None if scales.zero_point is None else scales.zero_point[start + i]
            wanted_O = w_BO[i] if first_O is None or start + i else first_O
            code_O = quantize(wanted_O, scale=scale_O, grid=grid, zero_point=zero_O)
            value_O = dequantize(code_O, scale=scale_O, zero_point=zero_O)
            codes_IO[start + i] = code_O
            errors_BO[i] = (w_BO[i] - value_O) / factor_BB[i, i]
            w_BO[i + 1 :].addr_(factor_BB[i, i + 1 :], errors_BO[i], alpha=-1)
        w_IO[stop:].addmm_(factor_II[start:stop, stop:].T, errors_BO, alpha=-1)
    return codes_IO


def _by_column(scales: WeightScales, *, grid: WeightGrid, order_I: Tensor | None) -> WeightScales:
    """Scales and zero points as [I, O] (or [I, 1]), in the order in which columns are rounded."""
    rows = scales.per_row(grid)

    def spread(value_ON: Tensor) -> Tensor:
        value_OI = expand_blocks(value_ON, grid.blocks)
        if len(grid.blocks) == 1:
            value_OI = value_OI.expand(-1, grid.blocks[0])
        return value_OI.T if order_I is None else value_OI.T[order_I]

    zero_point = None if rows.zero_point is None else spread(rows.zero_point)
    return WeightScales(scale=spread(rows.scale), zero_point=zero_point)
