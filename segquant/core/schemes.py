"""What is quantized, and how finely: the bits of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from fnmatch import fnmatchcase

UNQUANTIZED_BITS = 16
QUANTIZED_BITS = tuple(range(2, 9))


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
    """How one kind of tensor (weights or activations) is put on integers; 16 bits: not at all."""

    num_bits: int
    granularity: Granularity = Granularity.per_tensor
    group_size: int | None = None
    symmetric: bool = True
    dynamic: bool = False  # scales are taken from each tensor at run time

    def __post_init__(self) -> None:
        self.granularity = Granularity(self.granularity)
        if self.num_bits != UNQUANTIZED_BITS and self.num_bits not in QUANTIZED_BITS:
            raise ValueError(
                f"num_bits={self.num_bits}; use one of {list(QUANTIZED_BITS)}, "
                f"or {UNQUANTIZED_BITS} for not quantized"
            )
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

    @property
    def quantized(self) -> bool:
        return self.num_bits != UNQUANTIZED_BITS

    def describe(self) -> str:
        """A short name for tables, such as `int8 per_tensor static`."""
        if not self.quantized:
            return "16 bit"
        parts = [f"int{self.num_bits}", self.granularity.name]
        if self.group_size is not None:
            parts.append(str(self.group_size))
        if not self.symmetric:
            parts.append("asymmetric")
        return " ".join([*parts, "dynamic" if self.dynamic else "static"])


@dataclass(kw_only=True)
class Bits:
    """The weights' and activations' schemes of a run, and the layers that no method touches."""

    name: str
    weight: TensorScheme
    activation: TensorScheme
    keep: list[str] = field(default_factory=list)  # fnmatch patterns of layers left in 16 bit

    def __post_init__(self) -> None:
        self._validate_weight()
        self._validate_activation()

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
