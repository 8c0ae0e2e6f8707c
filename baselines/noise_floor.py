"""The unquantized model again, sampled in another way: what no method can be told from."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from baselines.fp import FullPrecision
from segquant.core import Bits, Calibration, QuantizationReport, StatisticsNeeds


@dataclass(kw_only=True)
class NoiseFloor:
    """fp against fp: another batch size and another number of threads, nothing quantized.

    Floating-point sums then run in another order, which moves the last bits and, through the
    sampler, now and then an image. A difference below that of this row is no difference.
    Source: ours. Left out: nothing. Cost: the reference's images once more.
    """

    batch_size: int = 5  # prompts per call; must differ from the model's own
    num_threads: int = 1  # CPU threads; the other rows use `num_threads` of the run

    def needs(self) -> StatisticsNeeds:
        return FullPrecision().needs()

    def unsupported(self, bits: Bits) -> str | None:
        if bits.quantized:
            return f"noise_floor quantizes nothing, {bits.name} does; use bits=w16a16"
        return None

    def quantize(
        self, denoiser: nn.Module, *, calibration: Calibration, bits: Bits
    ) -> QuantizationReport:
        return FullPrecision().quantize(denoiser, calibration=calibration, bits=bits)
