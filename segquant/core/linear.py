"""QuantLinear: what takes the place of an nn.Linear.

Execution is simulated: the input is put on its grid and back in float32, and multiplied with the
dequantized weight in the layer's own type. What is stored are codes (integers, or the bit patterns
of small floats) and float32 scales;
the dequantized weight is derived from them when the layer is first run, and again whenever they,
or the layer's type, change. A layer needs one of the two: `release` lets go of the derived weight,
`drop_codes` of what it is derived from.

Legend: O output features, I input features, P output segments, G distinct smoothing vectors,
N blocks of input features, R rows of weight scales, K rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from segquant.core.activation import ActivationGrid, ActivationScales, fake_quantize
from segquant.core.declared_type import TypeDeclared, declare_type, declared_type
from segquant.core.grids import pack_int4, unpack_int4
from segquant.core.schemes import TensorScheme
from segquant.core.transforms import InputTransform, inverse_permutation, rotate
from segquant.core.weights import WeightGrid, WeightScales, dequantize_weight

PACKED_BITS = 4
WIDEST_BYTE = 8
# Buffers that keep their type when the module's changes (.half(), .to(dtype)).
EXACT_BUFFERS = (
    "codes",
    "weight_scale",
    "weight_zero_point",
    "smoothing",
    "activation_scale",
    "activation_negative_scale",
    "activation_zero_point",
    "low_rank_up",
    "low_rank_down",
    "input_shift",
    "input_scale",
    "input_permutation",
    "input_rotation",
    "input_power",
    "step_timesteps",
    "row_factors",
)


@dataclass(frozen=True, kw_only=True)
class LinearSpec:
    """The structure of a QuantLinear: all but its tensors."""

    weight: TensorScheme
    activation: TensorScheme
    output_segments: tuple[int, ...]
    weight_blocks: tuple[int, ...]
    activation_blocks: tuple[int, ...]
    dual: tuple[bool, ...]  # per activation block
    smoothing_groups: tuple[int, ...]  # the smoothing vector of each output segment; () for none
    rank: int
    rank_dtype: torch.dtype
    bias: bool
    # What precedes smoothing (see `segquant.core.transforms`), and scales per sampling step.
    input_shift: bool = False
    input_scale: bool = False
    input_permuted: bool = False  # channels are read in another order
    rotation_blocks: int = 0  # blocks of the rotation; 0 for none
    rotation_hadamard: bool = False  # done by additions, and not stored
    input_power: bool = False  # steps of input channels are powers of two of the common one
    steps: int = 0  # static activation scales, one set for each of so many steps; 0 for one set
    row_scaled: bool = False  # a factor per output feature: another layer's smoothing, folded

    @property
    def in_features(self) -> int:
        return sum(self.activation_blocks)

    @property
    def out_features(self) -> int:
        return sum(self.output_segments)

    @property
    def weight_grid(self) -> WeightGrid:
        return WeightGrid(
            scheme=self.weight, row_blocks=self.output_segments, blocks=self.weight_blocks
        )

    @property
    def activation_grid(self) -> ActivationGrid | None:
        if not self.activation.quantized:
            return None
        return ActivationGrid(scheme=self.activation, blocks=self.activation_blocks, dual=self.dual)

    @property
    def smoothing_count(self) -> int:
        return max(self.smoothing_groups, default=-1) + 1

    def runs(self) -> tuple[tuple[int, int, int], ...]:
        """(smoothing group, first row, last row + 1) of neighbouring rows that share a group."""
        groups = self.smoothing_groups or (0,) * len(self.output_segments)
        runs: list[tuple[int, int, int]] = []
        start = 0
        for group, size in zip(groups, self.output_segments, strict=True):
            if runs and runs[-1][0] == group:
                runs[-1] = (group, runs[-1][1], start + size)
            else:
                runs.append((group, start, start + size))
            start += size
        return tuple(runs)


class QuantLinear(TypeDeclared):
    """A quantized Linear, made empty; `fill` or a state dict gives it its tensors."""

    codes: Tensor | None
    weight_scale: Tensor
    weight_zero_point: Tensor | None
    smoothing: Tensor | None
    activation_scale: Tensor | None
    activation_negative_scale: Tensor | None
    activation_zero_point: Tensor | None
    low_rank_up: Tensor | None
    low_rank_down: Tensor | None
    input_shift: Tensor | None
    input_scale: Tensor | None
    input_permutation: Tensor | None
    input_rotation: Tensor | None
    input_power: Tensor | None
    step_timesteps: Tensor | None
    row_factors: Tensor | None
    bias: Tensor | None
    _dense_OI: Tensor | None  # what `dense_OI` has derived

    def __init__(self, spec: LinearSpec, *, device: torch.device | str, dtype: torch.dtype) -> None:
        super().__init__()
        self.spec = spec
        self.in_features, self.out_features = spec.in_features, spec.out_features
        self._runs = spec.runs()
        self._grid = spec.activation_grid
        # of the sampler, (): the denoiser's hook sets it (see segquant.core.stepwise)
        self.step: Tensor | None = None
        packed = spec.weight.num_bits <= PACKED_BITS
        width = (self.in_features + 1) // 2 if packed else self.in_features
        wide = spec.weight.num_bits > WIDEST_BYTE
        code_dtype = torch.uint8 if packed else torch.int16 if wide else torch.int8
        self._make("codes", (self.out_features, width), code_dtype, device)
        scales = (len(spec.weight_grid.scale_rows), len(spec.weight_blocks))
        self._make("weight_scale", scales, torch.float32, device)
        asymmetric = not spec.weight.symmetric
        self._make("weight_zero_point", scales if asymmetric else None, torch.float32, device)
        self._make_activation(device)
        self._make_transform(device)
        rank = spec.rank
        up, down = (self.out_features, rank), (rank, self.in_features)
        self._make("low_rank_up", up if rank else None, spec.rank_dtype, device)
        self._make("low_rank_down", down if rank else None, spec.rank_dtype, device)
        row_factors = (self.out_features,) if spec.row_scaled else None
        self._make("row_factors", row_factors, torch.float32, device)
        self._make("bias", (self.out_features,) if spec.bias else None, dtype, device)
        self.register_buffer("_dense_OI", None, persistent=False)
        declare_type(self, dtype, device=device)

    @property
    def dtype(self) -> torch.dtype:
        """The layer's own type: its weight's, its bias's, its output's."""
        return declared_type(self).dtype

    @property
    def device(self) -> torch.device:
        return declared_type(self).device

    @property
    def dense_OI(self) -> Tensor:  # noqa: N802 - a tensor with its shape
        """The dequantized weight of the smoothed input; derived when it is asked for, and kept."""
        if self._dense_OI is None:
            self._dense_OI = self._derived()
        return self._dense_OI

    def _make_activation(self, device: torch.device | str) -> None:
        spec, count = self.spec, self.spec.smoothing_count
        self._make("smoothing", (count, self.in_features) if count else None, torch.float32, device)
        static = self._grid is not None and spec.activation.calibrated
        scales = 0 if self._grid is None else self._grid.static_count
        shape = (spec.steps or max(count, 1), scales) if static else None
        self._make("activation_scale", shape, torch.float32, device)
        dual = shape if any(spec.dual) else None
        self._make("activation_negative_scale", dual, torch.float32, device)
        shifted = None if spec.activation.symmetric else shape
        self._make("activation_zero_point", shifted, torch.float32, device)

    def _make_transform(self, device: torch.device | str) -> None:
        spec, wide = self.spec, (self.in_features,)
        blocks = spec.rotation_blocks
        size = self.in_features // blocks if blocks else 0
        self._make("input_shift", wide if spec.input_shift else None, torch.float32, device)
        self._make("input_scale", wide if spec.input_scale else None, torch.float32, device)
        permutation = wide if spec.input_permuted else None
        self._make("input_permutation", permutation, torch.int32, device)
        rotation = (blocks, size, size) if blocks else None
        self._make("input_rotation", rotation, torch.float32, device)
        self._make("input_power", wide if spec.input_power else None, torch.float32, device)
        steps = (spec.steps,) if spec.steps else None
        self._make("step_timesteps", steps, torch.float32, device)

    def _make(
        self,
        name: str,
        shape: tuple[int, ...] | None,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        empty = None if shape is None else torch.zeros(shape, dtype=dtype, device=device)
        self.register_buffer(name, empty)

    def fill(self, *, codes_OI: Tensor, tensors: dict[str, Tensor | None]) -> QuantLinear:
        """Takes codes (values on the weight's grid) and the other buffers by name."""
        packed = self.spec.weight.num_bits <= PACKED_BITS
        # Contiguous: another layout is another product, with other last bits than a loaded layer's.
        whole = self.spec.weight.grid.store(codes_OI.contiguous())
        self.codes = pack_int4(whole) if packed else whole
        for name, value in tensors.items():
            own = self._buffers[name]
            assert (own is None) == (value is None), name
            if own is not None and value is not None:
                assert own.shape == value.shape, (name, own.shape, value.shape)
                copied = value.detach().to(own.dtype).clone(memory_format=torch.contiguous_format)
                self._buffers[name] = copied
        self.release()
        return self

    def tensors(self) -> dict[str, Tensor | None]:
        """All but the codes, by name, as `fill` takes them."""
        return {k: v for k, v in self._buffers.items() if k not in ("codes", "_dense_OI")}

    def add_row_factors(self) -> None:
        """Gives every output feature a factor, 1 until it is changed; see `release`."""
        if self.row_factors is None:
            self.spec = replace(self.spec, row_scaled=True)
            device = self.weight_scale.device
            self.row_factors = torch.ones(self.out_features, dtype=torch.float32, device=device)

    def drop_smoothing(self, *, power: Tensor) -> None:
        """Makes the layer read its input divided by smoothing / `power`, a power of two, already.

        Codes stay as they are: the power goes from the activation's steps to the weight's.
        """
        assert self.spec.smoothing_count == 1
        self.spec = replace(self.spec, smoothing_groups=())
        self._runs, self.smoothing = self.spec.runs(), None
        self.weight_scale = self.weight_scale / power
        if self.low_rank_down is not None:
            self.low_rank_down = (self.low_rank_down.float() / power).to(self.low_rank_down.dtype)
        for name in ("activation_scale", "activation_negative_scale"):
            scale = getattr(self, name)
            setattr(self, name, None if scale is None else scale * power)
        self.release()

    def integer_codes(self) -> Tensor:
        """The weight's codes as they are stored, one element each [O, I]: integers or patterns.

        Raises:
            RuntimeError: `drop_codes` has let go of them.
        """
        if self.codes is None:
            raise RuntimeError("this layer has no codes any more: drop_codes() was called")
        if self.spec.weight.num_bits <= PACKED_BITS:
            return unpack_int4(self.codes, in_features=self.in_features)
        return self.codes

    def forward(self, input: Tensor) -> Tensor:
        dense_OI, bias_O = self.dense_OI, self.bias
        outputs: list[Tensor] = []
        read: dict[int, tuple[Tensor, Tensor]] = {}
        for group, start, stop in self._runs:
            if group not in read:
                smooth = self.smooth_input(input, group)
                quantized = self.on_grid(smooth, group)
                read[group] = smooth.to(dense_OI.dtype), quantized.to(dense_OI.dtype)
            smooth_I, quantized_I = read[group]
            bias = None if bias_O is None else bias_O[start:stop]
            output = F.linear(quantized_I, dense_OI[start:stop], bias)
            up_OK, down_KI = self.low_rank_up, self.low_rank_down
            if up_OK is not None and down_KI is not None:
                inner_K = F.linear(smooth_I, down_KI.to(dense_OI.dtype))
                up = self._scaled_rows(up_OK)[start:stop].to(dense_OI.dtype)
                output = output + F.linear(inner_K, up)
            outputs.append(output)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)

    def _scaled_rows(self, w: Tensor) -> Tensor:
        """Rows times the factors that other layers' smoothing left here."""
        return w if self.row_factors is None else w * self.row_factors[:, None]

    def smooth_input(self, x: Tensor, group: int) -> Tensor:
        """The input of a smoothing group before it is put on its grid. `x` is left as it is."""
        transform = self.transform
        x = x if transform is None else transform.of_input(x)
        factors_GI = self.smoothing
        return x if factors_GI is None else x.float() / factors_GI[group]

    def on_grid(self, smooth: Tensor, group: int) -> Tensor:
        """The nearest values on the input's grid, float32; as it is where there is none."""
        if self._grid is None:
            return smooth
        power_I = self.input_power
        units = smooth if power_I is None else smooth / power_I
        quantized = fake_quantize(units, grid=self._grid, static=self.static_scales(group))
        return quantized if power_I is None else quantized * power_I

    def static_scales(self, group: int) -> ActivationScales | None:
        """The calibration's scales for a smoothing group, at the step that runs; None for none."""
        scale_GN = self.activation_scale
        if scale_GN is None:
            return None
        negative_GN = self.activation_negative_scale
        zero_GN = self.activation_zero_point
        if self.spec.steps:
            group = 0
        if self.spec.steps and self.step is not None:  # a tensor: a compiled graph has no number
            at = self.step.reshape(1)
            scale_GN = scale_GN.index_select(0, at)
            negative_GN = None if negative_GN is None else negative_GN.index_select(0, at)
            zero_GN = None if zero_GN is None else zero_GN.index_select(0, at)
        return ActivationScales(
            scale=scale_GN[group],
            negative=None if negative_GN is None else negative_GN[group],
            zero_point=None if zero_GN is None else zero_GN[group],
        )

    @property
    def transform(self) -> InputTransform | None:
        """What is done to the input before smoothing, or None."""
        parts = (self.input_shift, self.input_scale, self.input_permutation, self.input_rotation)
        if all(part is None for part in parts):
            return None
        return InputTransform(
            shift_I=self.input_shift,
            scale_I=self.input_scale,
            permutation_I=self.input_permutation,
            rotation_NBB=self.input_rotation,
            hadamard=self.spec.rotation_hadamard,
        )

    @property
    def weight(self) -> Tensor:
        """The weight that the layer amounts to on an input that quantization does not change."""
        dense_OI = self.dense_OI
        up_OK, down_KI = self.low_rank_up, self.low_rank_down
        factors_GI = self.smoothing
        total_OI = dense_OI.float()
        if up_OK is not None and down_KI is not None:
            total_OI = total_OI + self._scaled_rows(up_OK).float() @ down_KI.float()
        if factors_GI is not None:
            rows = [total_OI[a:b] / factors_GI[group] for group, a, b in self._runs]
            total_OI = torch.cat(rows)
        if self.input_rotation is not None:
            total_OI = rotate(total_OI, self.input_rotation.transpose(1, 2))
        if self.input_permutation is not None:
            total_OI = total_OI.index_select(-1, inverse_permutation(self.input_permutation))
        if self.input_scale is not None:
            total_OI = total_OI / self.input_scale
        return total_OI.to(dense_OI.dtype)

    def release(self) -> None:
        """Lets go of the dense weight; the next call derives it from codes, scales and factors."""
        if self.codes is not None:
            self._dense_OI = None

    def settle(self, device: torch.device) -> None:
        """Says where the layer is, after one made on the meta device was given its tensors."""
        declare_type(self, self.dtype, device=device)

    def drop_codes(self) -> None:
        """Keeps the dense weight alone: the layer runs as before, and is neither saved nor cast."""
        _ = self.dense_OI
        self.codes = None

    @torch.inference_mode(mode=False)
    @torch.no_grad()
    def _derived(self) -> Tensor:
        scales = WeightScales(scale=self.weight_scale, zero_point=self.weight_zero_point)
        codes_OI = self.spec.weight.grid.restore(self.integer_codes())
        values = dequantize_weight(codes_OI, scales=scales, grid=self.spec.weight_grid)
        return self._scaled_rows(values).to(self.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantLinear:
        before = {name: self._buffers[name] for name in EXACT_BUFFERS if name in self._buffers}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, exact in before.items():
            moved = self._buffers[name]
            if exact is not None and moved is not None and moved.dtype != exact.dtype:
                self._buffers[name] = exact.to(moved.device)
        self.release()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.release()

    def extra_repr(self) -> str:
        spec = self.spec
        parts = [
            f"{self.in_features} -> {self.out_features}",
            f"weight {spec.weight.describe()}",
            f"activation {spec.activation.describe()}",
        ]
        if len(spec.output_segments) > 1:
            parts.append(f"output segments {spec.output_segments}")
        if len(spec.activation_blocks) > 1 and spec.activation.group_size is None:
            parts.append(f"input segments {spec.activation_blocks}")
        if any(spec.dual):
            parts.append("dual scale")
        if spec.rank:
            parts.append(f"rank {spec.rank}")
        if spec.input_permuted:
            parts.append("channels reordered")
        if spec.rotation_blocks:
            parts.append(f"rotated in {spec.rotation_blocks} blocks")
        if spec.steps:
            parts.append(f"scales of {spec.steps} steps")
        return ", ".join(parts)
