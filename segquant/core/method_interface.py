"""What a method may say to the harness, and what it hands back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Protocol, runtime_checkable

from torch import nn

from segquant.core.calibration import Calibration, NarrowedStatistics
from segquant.core.correction import Corrector
from segquant.core.input_statistics import DEFAULT_SAMPLE_ROWS
from segquant.core.schemes import Bits

SIMULATED = "simulated"


class OfThisMachine(str):
    """A reason not to quantize that another machine may not have: no GPU, no such library."""

    __slots__ = ()


@dataclass(frozen=True, kw_only=True)
class StatisticsNeeds:
    """What one pass over the calibration set has to record for a method."""

    gram: bool = False
    rows: int = DEFAULT_SAMPLE_ROWS
    graph: bool = False
    steps: bool = False  # extremes and rows per sampling step (segquant.core.stepwise)
    capture_bytes: int = 0  # of the denoiser's calls on disk, for reconstruction; 0 for none
    prompts: int = 1  # with fewer calibration prompts, static ranges do harm; a warning says so
    replay: bool = False  # the denoiser's inputs, to run it on again while it is quantized

    def union(self, other: StatisticsNeeds) -> StatisticsNeeds:
        """What serves both, for one calibration of a whole sweep."""
        return StatisticsNeeds(
            gram=self.gram or other.gram,
            rows=max(self.rows, other.rows),
            graph=self.graph or other.graph,
            steps=self.steps or other.steps,
            capture_bytes=max(self.capture_bytes, other.capture_bytes),
            replay=self.replay or other.replay,
            prompts=max(self.prompts, other.prompts),
        )

    def of(self, calibration: Calibration) -> Calibration:
        """What was asked for, and no more, of a calibration that others may have asked more of.

        So a method makes the same of a sweep's calibration as of one of its own.
        """
        held = calibration.captured
        within = None
        if self.capture_bytes and held is not None:
            within = held.within(self.capture_bytes)
        return Calibration(
            statistics=NarrowedStatistics(
                held=calibration.statistics, gram=self.gram, rows=self.rows
            ),
            forwards=calibration.forwards,
            graph=calibration.graph if self.graph else None,
            replay=calibration.replay if self.replay else None,
            steps=calibration.steps if self.steps else None,
            captured=within,
            device=calibration.device,
            draw=calibration.draw,
        )


@dataclass(kw_only=True)
class QuantizationReport:
    """What was done to a denoiser, for the record. All of it is JSON."""

    bits: str
    layers_quantized: list[dict[str, Any]] = field(default_factory=list)  # QuantizedLayer each
    layers_kept: list[dict[str, str]] = field(default_factory=list)  # name, reason
    effective_bits_per_weight: float  # quantized layers; scales, smoothing and low rank counted
    effective_bits_per_weight_all: float  # all weights of products, as kept
    extra_macs_fraction: float  # DualScale and low rank, over the products of all called Linears
    weight_bytes: int  # of all weights of products as stored
    search_candidates: int  # smoothing candidates tried per segment; 0 if none is searched
    replay_forwards: int = 0  # of the partly quantized denoiser, beyond the calibration's
    elements: list[str] = field(default_factory=list)  # of the published method: done
    left_out: list[str] = field(default_factory=list)  # and not done, or done otherwise
    execution: str = SIMULATED
    over_fit: dict[str, Any] | None = None  # OverFit of a search for alpha; None: not known

    @property
    def by_library(self) -> bool:
        """Whether a quantization library did it, whose modules are not ours to save."""
        return self.execution.startswith("library")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> QuantizationReport:
        known = {known_field.name for known_field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"report: unknown fields {unknown}; known are {sorted(known)}")
        return cls(**values)


@runtime_checkable
class Method(Protocol):
    """A way to quantize a denoiser. Implemented by dataclasses whose fields are its settings."""

    def needs(self) -> StatisticsNeeds:
        """What it reads of the calibration."""
        ...

    def unsupported(self, bits: Bits) -> str | None:
        """Why these bits are not for it, or None."""
        ...

    def quantize(
        self, denoiser: nn.Module, *, calibration: Calibration, bits: Bits
    ) -> QuantizationReport:
        """Replaces Linears in place."""
        ...


@runtime_checkable
class CorrectingMethod(Method, Protocol):
    """A method that also corrects the quantized denoiser's output, step by step."""

    def corrector(self, *, calibration: Calibration) -> Corrector | None:
        """The correction, yet to learn; None where the method's settings ask for none."""
        ...


def corrector_of(method: Method, *, calibration: Calibration) -> Corrector | None:
    """The method's correction of the quantized denoiser, yet to learn; None where it has none."""
    if isinstance(method, CorrectingMethod):
        return method.corrector(calibration=calibration)
    return None
