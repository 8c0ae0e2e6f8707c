"""What the rows of quantization libraries share: the layers, the report, and being absent.

A library is imported when its row is quantized, never before. Its modules are its own: they are not
saved but made again from the float denoiser whenever a cell is continued.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Protocol

from torch import Tensor, nn

from segquant.core import Bits, Calibration, Granularity, NumberFormat, QuantizationReport
from segquant.core.quantize import BITS_OF_BYTE
from segquant.core.schemes import BITS_OF_FLOAT32, UNQUANTIZED_BITS
from segquant.core.sensitivity import reason_to_keep
from segquant.core.statistics import linear_layers

LIBRARY = "library"  # how such a row is executed: by the library's own modules


class Replace(Protocol):
    """Puts a library's modules in the place of the chosen Linears."""

    def __call__(
        self, denoiser: nn.Module, chosen: dict[str, nn.Linear], *, bits: Bits
    ) -> None: ...


def not_installed(module: str, *, extra: str) -> str | None:
    """Why a library's row cannot be made here, or None."""
    try:
        found = find_spec(module) is not None
    except ModuleNotFoundError:  # of a package around it
        found = False
    if found:
        return None
    return f"{extra} is not installed; pip install 'segquant-bench[{extra}]' and run again"


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


def _plain(scheme: Any, *, num_bits: int, granularity: Granularity) -> bool:
    return bool(
        scheme.number_format is NumberFormat.integer
        and scheme.num_bits == num_bits
        and scheme.granularity is granularity
        and scheme.symmetric
    )


def no_such_bits(library: str, bits: Bits, *, allowed: str) -> str:
    return (
        f"{library} has no {bits.weight.describe()} weights with {bits.activation.describe()} "
        f"inputs through the interface used here ({bits.name}); use {allowed}"
    )


def split_layers(
    denoiser: nn.Module, *, calibration: Calibration, bits: Bits
) -> tuple[dict[str, nn.Linear], dict[str, str]]:
    """The Linears that every method of these bits quantizes, and those kept with the reason."""
    chosen: dict[str, nn.Linear] = {}
    kept: dict[str, str] = {}
    for name, linear in linear_layers(denoiser).items():
        reason = reason_to_keep(name, calibration=calibration, bits=bits)
        if reason is None:
            chosen[name] = linear
        else:
            kept[name] = reason
    return chosen, kept


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
) -> QuantizationReport:
    """Lets a library replace the Linears that every method of these bits quantizes.

    Raises:
        ValueError: the library does not do these bits, or is not installed.
    """
    if unsupported:
        raise ValueError(unsupported)
    chosen, kept = split_layers(denoiser, calibration=calibration, bits=bits)
    every = sum(one.weight.numel() for one in linear_layers(denoiser).values())
    replace_layers(denoiser, chosen, bits=bits)
    sizes = taken(denoiser, chosen, kept=kept)
    return library_report(
        sizes,
        kept=kept,
        kept_weights=every - sum(i * o for i, o in sizes.values()),
        bits=bits,
        elements=elements,
        left_out=left_out,
    )


def library_report(
    sizes: dict[str, tuple[int, int]],
    *,
    kept: dict[str, str],
    kept_weights: int,
    bits: Bits,
    elements: list[str],
    left_out: list[str],
) -> QuantizationReport:
    """Bits are counted from the scheme (codes, one scale per output), not from the library.

    Args:
        sizes: in_features and out_features of each layer that the library took.
    """
    weights = sum(i * o for i, o in sizes.values())
    stored = sum(i * o * bits.weight.num_bits + o * BITS_OF_FLOAT32 for i, o in sizes.values())
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
        execution=LIBRARY,
    )
