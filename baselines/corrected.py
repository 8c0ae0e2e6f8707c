"""What methods with a step-wise corrector share: another method quantizes the layers."""

from __future__ import annotations

from enum import Enum
from typing import ClassVar

from torch import nn

from baselines.adaround import AdaRound
from baselines.gptq import Gptq
from baselines.rtn import RoundToNearest
from baselines.smooth_search import SmoothSearch
from baselines.smoothquant import SmoothQuant
from segquant.core import Bits, Calibration, Method, QuantizationReport, StatisticsNeeds


class CorrectedBase(Enum):
    """Member names are what a yaml says: methods of the same names, at their defaults."""

    rtn = "rtn"
    smoothquant = "smoothquant"
    smooth_search = "smooth_search"
    gptq = "gptq"
    adaround = "adaround"


def base_method(base: CorrectedBase) -> Method:
    made: dict[CorrectedBase, Method] = {
        CorrectedBase.rtn: RoundToNearest(),
        CorrectedBase.smoothquant: SmoothQuant(),
        CorrectedBase.smooth_search: SmoothSearch(),
        CorrectedBase.gptq: Gptq(),
        CorrectedBase.adaround: AdaRound(),
    }
    return made[base]


def base_left_out(base: CorrectedBase) -> list[str]:
    """What the row lacks because of its base."""
    if base is CorrectedBase.adaround:
        return []
    return [f"block reconstruction of the quantized model: {base.name} quantizes the layers"]


class CorrectedMethod:
    """The half of such a method that is its base's; the corrector is its own."""

    key: ClassVar[str]  # its name in conf/method
    base: CorrectedBase
    rounds: int

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds={self.rounds}; give at least 1")

    def elements(self) -> list[str]:
        """What it does beyond its base."""
        raise NotImplementedError

    def left_out(self) -> list[str]:
        """What of the published method it lacks, whatever its base."""
        raise NotImplementedError

    def needs(self) -> StatisticsNeeds:
        return base_method(self.base).needs()

    def unsupported(self, bits: Bits) -> str | None:
        if not bits.quantized:
            return f"{self.key} corrects a quantized model and {bits.name} quantizes nothing"
        return base_method(self.base).unsupported(bits)

    def quantize(
        self, denoiser: nn.Module, *, calibration: Calibration, bits: Bits
    ) -> QuantizationReport:
        if reason := self.unsupported(bits):
            raise ValueError(reason)
        report = base_method(self.base).quantize(denoiser, calibration=calibration, bits=bits)
        report.elements += self.elements()
        report.left_out += [*base_left_out(self.base), *self.left_out()]
        return report
