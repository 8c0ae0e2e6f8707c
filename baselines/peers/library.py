"""What the rows of quantization libraries share: the layers, the report, and being absent.

A library is imported when its row is quantized, never before. Its modules are its own: they are not
saved but made again from the float denoiser whenever a cell is continued.
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from segquant.core import (
    Bits,
    Calibration,
    Granularity,
    NumberFormat,
    QuantizationReport,
    RangeRule,
    ScaleRule,
    StatisticsNeeds,
    TensorScheme,
)
from segquant.core.layer_pass import reasons_to_keep
from segquant.core.method_interface import OfThisMachine
from segquant.core.other_weights import other_weights
from segquant.core.plain_linears import linear_layers
from segquant.core.schemes import BITS_OF_BYTE, BITS_OF_FLOAT32, UNQUANTIZED_BITS

# How such a row is executed: by the library's own modules, which may themselves only simulate.
LIBRARY = "library"
LIBRARY_SIMULATED = "library_simulated"
LIBRARIES = (LIBRARY, LIBRARY_SIMULATED)


class Replace(Protocol):
    """Puts a library's modules in the place of the chosen Linears."""

    def __call__(
        self, denoiser: nn.Module, chosen: dict[str, nn.Linear], *, bits: Bits
    ) -> None: ...


def not_installed(module: str, *, extra: str) -> str | None:
    """Why a library's row cannot be made here, or None."""
    try:
        present = find_spec(module) is not None
    except ModuleNotFoundError:  # of a package around it
        present = False
    if present:
        return None
    return OfThisMachine(
        f"{extra} is not installed; pip install -e '.[{extra}]' here and run again"
    )


def on_cpu(denoiser: nn.Module) -> bool:
    """Whether the denoiser lies on a CPU, whatever else the machine has."""
    return next(denoiser.parameters()).device.type == "cpu"


def is_int8_token(bits: Bits) -> bool:
    """int8 weights per channel, int8 inputs per token and dynamic; both symmetric."""
    weight, activation = bits.weight, bits.activation
    return (
        _plain(weight, num_bits=8, granularity=Granularity.per_channel)
        and _plain(activation, num_bits=8, granularity=Granularity.per_token)
        and activation.dynamic
    )


def is_int8_weight_only(bits: Bits) -> bool:
    """int8 weights per channel, symmetric, and inputs in 16 bit."""
    weight_only = not bits.activation.quantized
    return weight_only and _plain(bits.weight, num_bits=8, granularity=Granularity.per_channel)


def is_int8_tensor_static(bits: Bits) -> bool:
    """int8 weights and inputs, each with one scale per tensor, that of the inputs static."""
    return not bits.activation.dynamic and all(
        _plain(scheme, num_bits=8, granularity=Granularity.per_tensor)
        for scheme in (bits.weight, bits.activation)
    )


def is_int8_channel_static(bits: Bits) -> bool:
    """int8 weights per channel, int8 inputs per tensor and static; both symmetric."""
    weight, activation = bits.weight, bits.activation
    return (
        _plain(weight, num_bits=8, granularity=Granularity.per_channel)
        and _plain(activation, num_bits=8, granularity=Granularity.per_tensor)
        and not activation.dynamic
    )


def is_fp8_static(bits: Bits) -> bool:
    """e4m3 weights and inputs, each with one scale per tensor, that of the inputs static."""
    return not bits.activation.dynamic and all(
        scheme.number_format is NumberFormat.fp8_e4m3
        and scheme.granularity is Granularity.per_tensor
        and scheme.range_rule is RangeRule.amax
        for scheme in (bits.weight, bits.activation)
    )


def is_nvfp4(bits: Bits) -> bool:
    """NVFP4 weights and inputs, every block's largest value at 6."""
    weight, activation = bits.weight, bits.activation
    plain = weight.scale_rule is activation.scale_rule is ScaleRule.amax
    return plain and weight.number_format is activation.number_format is NumberFormat.nvfp4


def _plain(scheme: TensorScheme, *, num_bits: int, granularity: Granularity) -> bool:
    return (
        scheme.number_format is NumberFormat.integer
        and scheme.num_bits == num_bits
        and scheme.granularity is granularity
        and scheme.symmetric
        and scheme.range_rule is RangeRule.amax
    )


def no_such_bits(library: str, bits: Bits, *, allowed: str) -> str:
    return (
        f"{library} has no {bits.weight.describe()} weights with {bits.activation.describe()} "
        f"inputs through the interface used here ({bits.name}); use {allowed}"
    )


class Int8WeightsOnly:
    """The row of a library whose int8 weights, per output channel, are all that it does here."""

    library: ClassVar[str]  # its name, for messages
    module: ClassVar[str]  # that is looked for
    extra: ClassVar[str]  # of this project, that installs it
    replace_layers: ClassVar[Replace]
    elements: ClassVar[tuple[str, ...]]
    left_out: ClassVar[tuple[str, ...]]

    def needs(self) -> StatisticsNeeds:
        return StatisticsNeeds()

    def unsupported(self, bits: Bits) -> str | None:
        if is_int8_weight_only(bits):
            return not_installed(self.module, extra=self.extra)
        return no_such_bits(self.library, bits, allowed="w8a16_int")

    def quantize(
        self, denoiser: nn.Module, *, calibration: Calibration, bits: Bits
    ) -> QuantizationReport:
        return quantize_with(
            self.replace_layers,
            denoiser,
            calibration=calibration,
            bits=bits,
            unsupported=self.unsupported(bits),
            elements=list(self.elements),
            left_out=list(self.left_out),
        )


def split_layers(
    denoiser: nn.Module, *, calibration: Calibration, bits: Bits
) -> tuple[dict[str, nn.Linear], dict[str, str]]:
    """The Linears that every method of these bits quantizes, and those kept with the reason."""
    kept = reasons_to_keep(denoiser, calibration=calibration, bits=bits)
    linears = linear_layers(denoiser)
    return {name: linear for name, linear in linears.items() if name not in kept}, kept


def taken(
    denoiser: nn.Module, chosen: dict[str, nn.Linear], *, kept: dict[str, str]
) -> dict[str, tuple[int, int]]:
    """Sizes of the chosen layers that the library did take; the others are added to `kept`."""
    sizes: dict[str, tuple[int, int]] = {}
    for name, linear in chosen.items():
        now = denoiser.get_submodule(name)
        if type(now) is nn.Linear and type(now.weight.data) is Tensor:
            kept[name] = "left alone by the library"
        else:
            sizes[name] = (linear.in_features, linear.out_features)
    return sizes


def quantize_with(
    replace_layers: Replace,
    denoiser: nn.Module,
    *,
    calibration: Calibration,
    bits: Bits,
    unsupported: str | None,
    elements: list[str],
    left_out: list[str],
    smoothed: bool = False,
    rank: int = 0,
    simulated: bool = False,
) -> QuantizationReport:
    """Lets a library replace the Linears that every method of these bits quantizes.

    Args:
        smoothed: whether each layer's input is divided by a factor per channel at run time.
        rank: of the 16-bit branch that each layer gets; 0 for none.
        simulated: whether the library multiplies floats, so that its speed says nothing.

    Raises:
        ValueError: the library does not do these bits, or is not installed.
    """
    if unsupported:
        raise ValueError(unsupported)
    chosen, kept = split_layers(denoiser, calibration=calibration, bits=bits)
    linears, others = linear_layers(denoiser), other_weights(denoiser)
    replace_layers(denoiser, chosen, bits=bits)
    sizes = taken(denoiser, chosen, kept=kept)
    report = library_report(
        sizes,
        kept=kept,
        kept_weights=sum(n.weight.numel() for name, n in linears.items() if name not in sizes)
        + sum(other.weights for other in others.values()),
        bits=bits,
        elements=elements,
        left_out=left_out,
        smoothed=smoothed,
        rank=rank,
        execution=LIBRARY_SIMULATED if simulated else LIBRARY,
    )
    if rank:
        rows = {name: seen.rows for name, seen in calibration.statistics.items()}
        macs = sum(rows.get(name, 0) * linear.weight.numel() for name, linear in linears.items())
        extra = sum(rows[name] * _branch(i, o, rank) for name, (i, o) in sizes.items())
        report.extra_macs_fraction = extra / macs if macs else 0.0
    return report


def _branch(in_features: int, out_features: int, rank: int) -> int:
    """Parameters of a layer's low-rank branch, and its products per row."""
    return min(rank, in_features, out_features) * (in_features + out_features)


def _scales(scheme: TensorScheme, *, in_features: int, out_features: int) -> int:
    """How many scales a weight stores."""
    if scheme.granularity is Granularity.per_tensor:
        return 1
    if scheme.group_size is None:
        return out_features
    return out_features * math.ceil(in_features / scheme.group_size)


def _stored_bits(
    bits: Bits, *, in_features: int, out_features: int, smoothed: bool, rank: int
) -> int:
    """As `segquant.core.costs` counts this project's own layers."""
    weight, activation = bits.weight, bits.activation
    stored = in_features * out_features * weight.num_bits + weight.tensor_scale_bits
    count = _scales(weight, in_features=in_features, out_features=out_features)
    stored += count * weight.scale_bits
    stored += BITS_OF_FLOAT32 if activation.calibrated else 0
    stored += in_features * BITS_OF_FLOAT32 if smoothed else 0
    return stored + _branch(in_features, out_features, rank) * UNQUANTIZED_BITS


def library_report(
    sizes: dict[str, tuple[int, int]],
    *,
    kept: dict[str, str],
    kept_weights: int,
    bits: Bits,
    elements: list[str],
    left_out: list[str],
    smoothed: bool,
    rank: int,
    execution: str,
) -> QuantizationReport:
    """Bits are counted from the scheme (codes and scales), not from the library.

    Args:
        sizes: in_features and out_features of each layer that the library took.
    """
    weights = sum(i * o for i, o in sizes.values())
    stored = sum(
        _stored_bits(bits, in_features=i, out_features=o, smoothed=smoothed, rank=rank)
        for i, o in sizes.values()
    )
    every = stored + kept_weights * UNQUANTIZED_BITS
    entries: list[dict[str, Any]] = [
        {
            "name": name,
            "in_features": i,
            "out_features": o,
            "weight": bits.weight.describe(),
            "activation": bits.activation.describe(),
        }
        for name, (i, o) in sizes.items()
    ]
    return QuantizationReport(
        bits=bits.name,
        layers_quantized=entries,
        layers_kept=[{"name": name, "reason": reason} for name, reason in kept.items()],
        effective_bits_per_weight=stored / weights if weights else float(UNQUANTIZED_BITS),
        effective_bits_per_weight_all=every / (weights + kept_weights),
        extra_macs_fraction=0.0,
        weight_bytes=(every + BITS_OF_BYTE - 1) // BITS_OF_BYTE,
        search_candidates=0,
        elements=elements,
        left_out=left_out,
        execution=execution,
    )
