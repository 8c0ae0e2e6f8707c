"""What a step-wise corrector stands on: the method that quantizes the layers."""

from __future__ import annotations

from enum import Enum

from baselines.adaround import AdaRound
from baselines.gptq import Gptq
from baselines.rtn import RoundToNearest
from baselines.smooth_search import SmoothSearch
from baselines.smoothquant import SmoothQuant
from segquant.core import Method


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
