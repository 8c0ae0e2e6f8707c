"""What is quantized, and how finely: the bits of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from fnmatch import fnmatchcase

from segquant.core.floats import FloatGrid, FloatKind, ScaleRounding, ScaleRule
from segquant.core.grids import Grid, int_grid
from segquant.core.lloyd_max import CodebookGrid
from segquant.core.ranges import RangeRule

UNQUANTIZED_BITS = 16
BITS_OF_BYTE = 8
QUANTIZED_BITS = tuple(range(2, 9))
BITS_OF_FLOAT32 = 32


class NumberFormat(Enum):
    """What the codes are. Member names are what a yaml says."""

    integer = "integer"  # of 2 to 8 bits; num_bits=16 is not quantized
    int16 = "int16"
    fp8_e4m3 = "fp8_e4m3"
    fp8_e5m2 = "fp8_e5m2"
    nvfp4 = "nvfp4"  # e2m1 in blocks of 16 with e4m3 scales, and one float32 scale per tensor
    mxfp4 = "mxfp4"  # e2m1 in blocks of 32 with power-of-two scales
    mxfp8 = "mxfp8"  # e4m3 in blocks of 32 with power-of-two scales
    lloyd_max = "lloyd_max"  # 2 to 8 bits: a codebook for normal values over their root mean square


@dataclass(frozen=True)
class _FormatRule:
    """What a number format fixes."""

    num_bits: int
    element: FloatKind | None  # None: integers
    block_size: int | None = None  # of a microscaled format
    scale_bits: int = BITS_OF_FLOAT32  # of each stored scale


_RULES = {
    NumberFormat.int16: _FormatRule(16, None),
    NumberFormat.fp8_e4m3: _FormatRule(8, FloatKind.e4m3),
    NumberFormat.fp8_e5m2: _FormatRule(8, FloatKind.e5m2),
    NumberFormat.nvfp4: _FormatRule(4, FloatKind.e2m1, 16, 8),
    NumberFormat.mxfp4: _FormatRule(4, FloatKind.e2m1, 32, 8),
    NumberFormat.mxfp8: _FormatRule(8, FloatKind.e4m3, 32, 8),
}
_MX = (NumberFormat.mxfp4, NumberFormat.mxfp8)


class Granularity(Enum):
    """Which values share one scale. Member names are what a yaml says."""

    per_tensor = "per_tensor"
    per_channel = "per_channel"  # weight: one scale per output feature
    per_token = "per_token"  # activation: one scale per row, taken from the row itself
    per_group = "per_group"  # one scale per row and `group_size` input features


WEIGHT_GRANULARITIES = (Granularity.per_tensor, Granularity.per_channel, Granularity.per_group)
ACTIVATION_GRANULARITIES = (Granularity.per_tensor, Granularity.per_token, Granularity.per_group)


@dataclass(kw_only=True)
class TensorScheme:
    """How one kind of tensor (weights or activations) is put on a grid; 16 bits: not at all."""

    num_bits: int
    number_format: NumberFormat = NumberFormat.integer
    granularity: Granularity = Granularity.per_tensor
    group_size: int | None = None
    symmetric: bool = True
    dynamic: bool = False  # scales are taken from each tensor at run time
    range_rule: RangeRule = RangeRule.amax
    range_percentile: float = 99.9  # with range_rule=percentile
    scale_rounding: ScaleRounding = ScaleRounding.floor  # of the MX formats' powers of two
    scale_rule: ScaleRule = ScaleRule.amax  # of nvfp4's blocks

    def __post_init__(self) -> None:
        self.granularity = Granularity(self.granularity)
        self.number_format = NumberFormat(self.number_format)
        self.range_rule = RangeRule(self.range_rule)
        self.scale_rounding = ScaleRounding(self.scale_rounding)
        self.scale_rule = ScaleRule(self.scale_rule)
        self._check_range()
        self._check_block_scales()
        if self._rule is not None:
            self._check_format(self._rule)
        elif self.num_bits != UNQUANTIZED_BITS and self.num_bits not in QUANTIZED_BITS:
            raise ValueError(
                f"num_bits={self.num_bits}; use one of {list(QUANTIZED_BITS)}, "
                f"or {UNQUANTIZED_BITS} for not quantized"
            )
        if self.by_power:
            self._check_codebook()
        grouped = self.granularity is Granularity.per_group
        if grouped and (self.group_size is None or self.group_size < 1):
            raise ValueError(
                f"granularity=per_group with group_size={self.group_size}; "
                "give group_size, for example 64 or 128"
            )
        if not grouped and self.group_size is not None:
            raise ValueError(
                f"group_size={self.group_size} with granularity={self.granularity.name}; "
                "set group_size to null or granularity to per_group"
            )

    def _check_range(self) -> None:
        if not 50 < self.range_percentile <= 100:
            raise ValueError(f"range_percentile={self.range_percentile}; give one in (50, 100]")
        if self.range_rule is RangeRule.amax:
            return
        if self.dynamic or self.microscaled or self.by_power:
            what = "dynamic=true" if self.dynamic else f"number_format={self.number_format.name}"
            raise ValueError(
                f"range_rule={self.range_rule.name} with {what}; such scales reach the largest "
                "value of their own rows or blocks: set range_rule=amax"
            )

    def _check_block_scales(self) -> None:
        if self.scale_rounding is not ScaleRounding.floor and self.number_format not in _MX:
            raise ValueError(
                f"scale_rounding={self.scale_rounding.name} with "
                f"number_format={self.number_format.name}; only the scales of "
                f"{' and '.join(mx.name for mx in _MX)} are powers of two: set it to floor"
            )
        nvfp4 = self.number_format is NumberFormat.nvfp4
        if self.scale_rule is not ScaleRule.amax and not nvfp4:
            raise ValueError(
                f"scale_rule={self.scale_rule.name} with number_format={self.number_format.name}; "
                "only a block of nvfp4 has a choice of scales: set it to amax"
            )

    def _check_format(self, rule: _FormatRule) -> None:
        name = f"number_format={self.number_format.name}"
        if self.num_bits != rule.num_bits:
            raise ValueError(f"{name} with num_bits={self.num_bits}; set num_bits={rule.num_bits}")
        if rule.element is not None and not self.symmetric:
            raise ValueError(f"{name} with symmetric=false; floats have no zero point: set it true")
        given = (self.granularity, self.group_size)
        if rule.block_size is not None and given != (Granularity.per_group, rule.block_size):
            raise ValueError(
                f"{name} with granularity={self.granularity.name}, group_size={self.group_size}; "
                f"its blocks are fixed: set per_group and {rule.block_size}"
            )

    def _check_codebook(self) -> None:
        name = f"number_format={self.number_format.name}"
        if not self.quantized:
            raise ValueError(
                f"{name} with num_bits={self.num_bits}; use one of {list(QUANTIZED_BITS)}"
            )
        if not self.symmetric:
            raise ValueError(f"{name} with symmetric=false; its levels are symmetric: set it true")
        if self.granularity is Granularity.per_tensor:
            raise ValueError(
                f"{name} with granularity=per_tensor; its scale is the root mean square of a row: "
                "set per_channel (weights), per_token (activations) or per_group"
            )

    @property
    def _rule(self) -> _FormatRule | None:
        return _RULES.get(self.number_format)

    @property
    def quantized(self) -> bool:
        return self._rule is not None or self.num_bits != UNQUANTIZED_BITS

    @property
    def grid(self) -> Grid:
        """The values that an element may take, in units of its scale."""
        if self.by_power:
            return CodebookGrid(self.num_bits)
        if self._rule is None or self._rule.element is None:
            return int_grid(self.num_bits)
        return FloatGrid(self._rule.element)

    @property
    def microscaled(self) -> bool:
        """Whether scales are themselves on a grid, in blocks of a fixed size."""
        return self._rule is not None and self._rule.block_size is not None

    @property
    def by_power(self) -> bool:
        """Whether a scale is a root mean square, and not what reaches the largest value."""
        return self.number_format is NumberFormat.lloyd_max

    @property
    def calibrated(self) -> bool:
        """Whether an activation's scales, or the tensor's own of nvfp4, come from calibration."""
        fixed = not self.dynamic or self.number_format is NumberFormat.nvfp4
        return self.quantized and fixed

    @property
    def scale_bits(self) -> int:
        """Bits in which each scale would be stored."""
        return BITS_OF_FLOAT32 if self._rule is None else self._rule.scale_bits

    @property
    def tensor_scale_bits(self) -> int:
        """Bits of a second scale for the whole tensor; 0 where there is none."""
        return BITS_OF_FLOAT32 if self.number_format is NumberFormat.nvfp4 else 0

    def describe(self) -> str:
        """A short name for tables, such as `int8 per_tensor static`."""
        if not self.quantized:
            return "16 bit"
        plain = self.number_format is NumberFormat.integer
        parts = [f"int{self.num_bits}" if plain else self.number_format.name]
        parts[0] += str(self.num_bits) if self.by_power else ""
        parts.append(self.granularity.name)
        if self.group_size is not None:
            parts.append(str(self.group_size))
        if not self.symmetric:
            parts.append("asymmetric")
        parts.append("dynamic" if self.dynamic else "static")
        if self.range_rule is RangeRule.percentile:
            parts.append(f"percentile {self.range_percentile:g}")
        elif self.range_rule is RangeRule.mse:
            parts.append("mse")
        if self.scale_rounding is ScaleRounding.ceil:
            parts.append("scales up")
        if self.scale_rule is ScaleRule.four_over_six:
            parts.append("4/6")
        return " ".join(parts)


@dataclass(kw_only=True)
class Bits:
    """The weights' and activations' schemes of a run, and the layers that no method touches."""

    name: str
    weight: TensorScheme
    activation: TensorScheme
    keep: list[str] = field(default_factory=list)  # fnmatch patterns of layers left in 16 bit
    # Bits per weight over all Linears up to which the most sensitive layers are kept; None: no more
    keep_budget: float | None = None
    # Widths that a layer's weight may get instead of weight.num_bits, which is the least of them;
    # the most sensitive layers get them, up to mixed_budget bits per weight over all Linears.
    mixed_bits: list[int] = field(default_factory=list)
    mixed_budget: float | None = None

    def __post_init__(self) -> None:
        if self.keep_budget is not None and not 0 < self.keep_budget <= UNQUANTIZED_BITS:
            raise ValueError(
                f"bits {self.name}: keep_budget={self.keep_budget}; give bits per weight up to "
                f"{UNQUANTIZED_BITS}, or null to keep no layer but those in keep"
            )
        self._validate_weight()
        self._validate_activation()
        self._validate_mixed()

    def _validate_weight(self) -> None:
        if not self.weight.quantized:
            if self.activation.quantized:
                raise ValueError(
                    f"bits {self.name}: activations in {self.activation.num_bits} bits with "
                    "weights in 16; quantize the weights too, or neither"
                )
            return
        self._check_granularity("weight", self.weight, allowed=WEIGHT_GRANULARITIES)
        if self.weight.dynamic:
            raise ValueError(f"bits {self.name}: weight.dynamic=true; weights are always static")

    def _validate_activation(self) -> None:
        if not self.activation.quantized:
            return
        self._check_granularity("activation", self.activation, allowed=ACTIVATION_GRANULARITIES)
        if (
            self.activation.granularity is not Granularity.per_tensor
            and not self.activation.dynamic
        ):
            raise ValueError(
                f"bits {self.name}: activation.granularity={self.activation.granularity.name} with "
                "dynamic=false; a static scale per row would tie the model to the calibration's "
                "batch and length, so set dynamic=true or granularity=per_tensor"
            )

    def _validate_mixed(self) -> None:
        if not self.mixed_bits and self.mixed_budget is None:
            return
        given = f"bits {self.name}: mixed_bits={self.mixed_bits}, mixed_budget={self.mixed_budget}"
        if not self.mixed_bits or self.mixed_budget is None:
            raise ValueError(f"{given}; give both, or [] and null")
        if self.keep_budget is not None:
            raise ValueError(f"{given} and keep_budget={self.keep_budget}; give one budget")
        if self.weight.number_format is not NumberFormat.integer or not self.weight.quantized:
            raise ValueError(f"{given} with weights {self.weight.describe()}; integers only")
        least = self.weight.num_bits
        wrong = [n for n in self.mixed_bits if n not in QUANTIZED_BITS or n <= least]
        if wrong:
            raise ValueError(
                f"{given}; widths go from above weight.num_bits={least} to {QUANTIZED_BITS[-1]}, "
                f"and {wrong} do not"
            )

    def _check_granularity(
        self, what: str, scheme: TensorScheme, *, allowed: tuple[Granularity, ...]
    ) -> None:
        if scheme.granularity not in allowed:
            names = ", ".join(item.name for item in allowed)
            raise ValueError(
                f"bits {self.name}: {what}.granularity={scheme.granularity.name}; "
                f"use one of {names}"
            )

    @property
    def quantized(self) -> bool:
        return self.weight.quantized or self.activation.quantized

    def kept_by(self, layer: str) -> str | None:
        """The first `keep` pattern that names the layer, or None."""
        return next((pattern for pattern in self.keep if fnmatchcase(layer, pattern)), None)
