"""The ground that every method stands on: grids, statistics, smoothing, rounding, QuantLinear."""

from segquant.core import elements
from segquant.core.calibration import Calibration, Replay
from segquant.core.checkpoint import load_quantized, save_quantized
from segquant.core.correction import Corrector
from segquant.core.cuts import Boundaries, moved_boundaries
from segquant.core.elements import BY_GPTQ, TO_NEAREST, Element, rounded_by, smoothing_by
from segquant.core.floats import ScaleRule
from segquant.core.input_statistics import LayerStatistics, StatisticsRecorder
from segquant.core.layer_pass import quantize_layers
from segquant.core.linear import QuantLinear
from segquant.core.lowrank import LowRankBudget, LowRankSettings
from segquant.core.method_interface import (
    CorrectingMethod,
    Method,
    QuantizationReport,
    StatisticsNeeds,
    corrector_of,
)
from segquant.core.over_fit import ENOUGH_PROMPTS
from segquant.core.plain_linears import linear_layers
from segquant.core.ranges import RangeRule
from segquant.core.recipe import LayerRecipe
from segquant.core.rounding import GptqSettings, GptqVariant, Rounding
from segquant.core.schemes import Bits, Granularity, NumberFormat, TensorScheme
from segquant.core.segments import LayerShape, shape_from_graph, whole
from segquant.core.sensitivity import choose_kept_layers, layer_sensitivities
from segquant.core.sequential import Sequential
from segquant.core.shared import FOLDING, NOT_FOLDED
from segquant.core.signed_rounding import SignRoundSettings
from segquant.core.smoothing import AlphaGrid, SmoothingMode, SmoothingSettings

__all__ = [
    "BY_GPTQ",
    "ENOUGH_PROMPTS",
    "FOLDING",
    "NOT_FOLDED",
    "TO_NEAREST",
    "AlphaGrid",
    "Bits",
    "Boundaries",
    "Calibration",
    "CorrectingMethod",
    "Corrector",
    "Element",
    "GptqSettings",
    "GptqVariant",
    "Granularity",
    "LayerRecipe",
    "LayerShape",
    "LayerStatistics",
    "LowRankBudget",
    "LowRankSettings",
    "Method",
    "NumberFormat",
    "QuantLinear",
    "QuantizationReport",
    "RangeRule",
    "Replay",
    "Rounding",
    "ScaleRule",
    "Sequential",
    "SignRoundSettings",
    "SmoothingMode",
    "SmoothingSettings",
    "StatisticsNeeds",
    "StatisticsRecorder",
    "TensorScheme",
    "choose_kept_layers",
    "corrector_of",
    "elements",
    "layer_sensitivities",
    "linear_layers",
    "load_quantized",
    "moved_boundaries",
    "quantize_layers",
    "rounded_by",
    "save_quantized",
    "shape_from_graph",
    "smoothing_by",
    "whole",
]
