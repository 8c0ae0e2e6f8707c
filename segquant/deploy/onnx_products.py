"""Products of a quantized layer in ONNX's standard operators.

Legend: T rows, O output features, I input features, N blocks of input features; a piece is a run of
input features with one activation scale and one weight scale for each output feature.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from segquant.core.activation import ActivationGrid, ActivationScales, dynamic_scales
from segquant.core.blocks import expand_blocks, expand_rows
from segquant.core.grids import IntGrid
from segquant.core.linear import LinearSpec, QuantLinear
from segquant.core.schemes import TensorScheme

MOST_PIECES = 16  # of one product: more launches than that cost more than integers save
CODE_MIDDLE = 128  # the zero point of uint8 codes: the integers are those of int8 with zero point 0
WIDEST = 8  # bits of an operand of an integer product
NIBBLES = "nibbles"  # in the names of codes that four bits hold: the file packs them


def why_float(spec: LinearSpec) -> str | None:
    """Why the layer's product is one of floats in ONNX; None where it is one of integers."""
    if not spec.activation.quantized:
        return "activations are not quantized"
    if max(spec.weight.num_bits, spec.activation.num_bits) > WIDEST:
        return f"more than {WIDEST} bits"
    if spec.input_power:
        return "input channels have steps of their own"
    if not spec.activation.symmetric and not _fixed(spec.activation, steps=spec.steps):
        return "zero points are known at run time alone"
    if len(cut(spec.activation_blocks, spec.weight_blocks)) > MOST_PIECES:
        return f"more than {MOST_PIECES} runs of input features have scales of their own"
    return None


def _fixed(scheme: TensorScheme, *, steps: int) -> bool:
    """Whether the input's scales are constants of the file."""
    return scheme.calibrated and not steps


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A run of input features, and the blocks of activations and of weights that it lies in."""

    start: int
    stop: int
    activation: int
    weight: int


def cut(activation: tuple[int, ...], weight: tuple[int, ...]) -> tuple[Piece, ...]:
    """The runs between all boundaries of two ways to cut the input features."""
    pieces, start, at, of = [], 0, [0, 0], (activation, weight)
    ends = [activation[0], weight[0]]
    while True:
        stop = min(ends)
        pieces.append(Piece(start=start, stop=stop, activation=at[0], weight=at[1]))
        for side, sizes in enumerate(of):
            if ends[side] == stop:
                at[side] += 1
                if at[side] == len(sizes):
                    return tuple(pieces)
                ends[side] += sizes[at[side]]
        start = stop


@dataclass(frozen=True, kw_only=True)
class RowScales:
    """Steps and zero points (float32, or None) of each output feature, [O, N]."""

    scale_ON: Tensor
    zero_ON: Tensor | None


def row_scales(layer: QuantLinear) -> RowScales:
    """A layer's, with what other layers' smoothing left in its rows."""
    rows, wide = layer.spec.weight_grid.scale_rows, (layer.out_features, -1)
    scale_ON = expand_rows(layer.weight_scale, rows).expand(wide)
    if layer.row_factors is not None:
        scale_ON = scale_ON * layer.row_factors[:, None]
    zero = layer.weight_zero_point
    zero_ON = None if zero is None else expand_rows(zero, rows).expand(wide)
    return RowScales(scale_ON=scale_ON, zero_ON=zero_ON)


class FloatProduct(nn.Module):
    """The rounded input times the weight of some rows, which a session derives when it is made."""

    codes_IO: Tensor
    scale_NO: Tensor
    zero_NO: Tensor | None

    def __init__(self, layer: QuantLinear, *, rows: slice) -> None:
        super().__init__()
        scales = row_scales(layer)
        self._blocks = layer.spec.weight_blocks
        zero_ON = scales.zero_ON
        codes_IO = layer.integer_codes()[rows].T.contiguous()
        self.register_buffer("codes_IO", codes_IO)
        self.register_buffer("scale_NO", scales.scale_ON[rows].T.contiguous())
        self.register_buffer("zero_NO", None if zero_ON is None else zero_ON[rows].T.contiguous())

    def forward(self, smooth: Tensor, *, reading: QuantLinear, group: int) -> Tensor:
        quantized = reading.on_grid(smooth, group)
        w_IO = self.codes_IO.float()
        if self.zero_NO is not None:
            w_IO = w_IO - self._wide(self.zero_NO)
        return quantized @ (w_IO * self._wide(self.scale_NO))

    def _wide(self, value_NO: Tensor) -> Tensor:
        return expand_blocks(value_NO.T, self._blocks).T


class IntegerProduct(nn.Module):
    """Q, DQ and MatMul of each piece with the weight of some rows, and their sum."""

    middle: Tensor
    one: Tensor

    def __init__(self, layer: QuantLinear, *, rows: slice) -> None:
        super().__init__()
        spec = layer.spec
        assert spec.activation_grid is not None
        self._spec, self._grid = spec, spec.activation_grid
        self._pieces = cut(spec.activation_blocks, spec.weight_blocks)
        self._codes = NIBBLES if spec.weight.num_bits <= WIDEST // 2 else "codes"
        scales, codes_OI = row_scales(layer), layer.integer_codes()[rows]
        for at, piece in enumerate(self._pieces):
            scale_O = scales.scale_ON[rows, piece.weight]
            zero_O = torch.zeros_like(scale_O)
            if scales.zero_ON is not None:
                zero_O = scales.zero_ON[rows, piece.weight]
            if bool((scale_O == scale_O[0]).all() and (zero_O == zero_O[0]).all()):
                scale_O, zero_O = scale_O[0], zero_O[0]  # one for all rows is a third faster
            codes_IO = codes_OI[:, piece.start : piece.stop].T.contiguous()
            self.register_buffer(f"{self._codes}_{at}", codes_IO)
            self.register_buffer(f"scale_{at}", scale_O.clone())
            self.register_buffer(f"zero_{at}", zero_O.to(torch.int8))
        self.register_buffer("one", torch.ones(()))
        self.register_buffer("middle", torch.tensor(CODE_MIDDLE, dtype=torch.uint8))

    @property
    def count(self) -> int:
        """Products that a call makes: two of a piece with DualScale."""
        return sum(2 if self._grid.dual[piece.activation] else 1 for piece in self._pieces)

    def forward(self, smooth: Tensor, *, reading: QuantLinear, group: int) -> Tensor:
        scales = self._scales(smooth, reading=reading, group=group)
        sizes = [piece.stop - piece.start for piece in self._pieces]
        parts = [smooth] if len(sizes) == 1 else torch.split(smooth, sizes, -1)
        total: Tensor | None = None
        for at, (piece, part) in enumerate(zip(self._pieces, parts, strict=True)):
            w_IO = _dequantize(
                getattr(self, f"{self._codes}_{at}"),
                getattr(self, f"scale_{at}"),
                getattr(self, f"zero_{at}"),
                axis=1,
            )
            for x, step in self._operands(part, scales=scales, block=piece.activation):
                product = x @ w_IO if step is None else (x @ w_IO) * step
                total = product if total is None else total + product
        assert total is not None
        return total

    def _scales(self, x: Tensor, *, reading: QuantLinear, group: int) -> ActivationScales:
        static = reading.static_scales(group)
        return dynamic_scales(x, grid=self._grid) if static is None else static

    def _operands(
        self, x: Tensor, *, scales: ActivationScales, block: int
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """What is multiplied and, where that has no scale in it, the scale; two with DualScale."""
        scale, zero = scales.scale[..., block], scales.zero_point
        if scales.negative is None or not self._grid.dual[block]:
            yield self._operand(x, scale, zero_point=None if zero is None else zero[..., block])
            return
        yield self._operand(torch.relu(x), scale)
        yield self._operand(x.clamp(max=0.0), scales.negative[..., block])

    def _operand(
        self, x: Tensor, scale: Tensor, *, zero_point: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        grid: ActivationGrid = self._grid
        codes = grid.scheme.grid
        assert isinstance(codes, IntGrid)
        step: Tensor | None = None
        middle = self.middle
        if zero_point is not None:
            middle = (zero_point + CODE_MIDDLE).to(torch.uint8)
        if not _fixed(self._spec.activation, steps=self._spec.steps):
            step = scale[..., None] if scale.dim() else scale
            x, scale = x / step, self.one
        if grid.scheme.num_bits < WIDEST:  # QuantizeLinear alone goes on to 8 bits
            shift = 0.0 if zero_point is None else zero_point
            low, high = (codes.quant_min - shift) * scale, (codes.quant_max - shift) * scale
            x = torch.minimum(torch.maximum(x, low), high)
        return _dequantize(_quantize(x, scale, middle), scale, middle), step


def _quantize(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """uint8; ties to even, as everywhere here."""
    if torch.compiler.is_exporting():
        return torch.onnx.ops.symbolic(
            "QuantizeLinear", [x, scale, zero_point], dtype=torch.uint8, shape=x.shape
        )
    units = (x / scale).round() + zero_point.float()
    return units.clamp(0, 2**WIDEST - 1).to(torch.uint8)


def _dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor, *, axis: int = -1) -> Tensor:
    if torch.compiler.is_exporting():
        return torch.onnx.ops.symbolic(
            "DequantizeLinear",
            [codes, scale, zero_point],
            attrs={"axis": axis} if scale.dim() else None,
            dtype=torch.float32,
            shape=codes.shape,
        )
    return (codes.float() - zero_point.float()) * scale
