"""The ground that every method stands on: grids, statistics, smoothing, rounding, QuantLinear."""

from segquant.core.calibration import Calibration
from segquant.core.checkpoint import load_quantized, save_quantized
from segquant.core.linear import QuantLinear
from segquant.core.lowrank import LowRankSettings
from segquant.core.plan import LayerRecipe
from segquant.core.protocol import Corrector, Method, QuantizationReport, StatisticsNeeds
from segquant.core.quantize import quantize_layers
from segquant.core.ranges import RangeRule
from segquant.core.rounding import GptqSettings, Rounding
from segquant.core.schemes import Bits, Granularity, NumberFormat, TensorScheme
from segquant.core.segments import LayerShape, shape_from_graph, whole
from segquant.core.smoothing import SmoothingMode, SmoothingSettings
from segquant.core.statistics import LayerStatistics, StatisticsRecorder, linear_layers

__all__ = [
    "Bits",
    "Calibration",
    "Corrector",
    "GptqSettings",
    "Granularity",
    "LayerRecipe",
    "LayerShape",
    "LayerStatistics",
    "LowRankSettings",
    "Method",
    "NumberFormat",
    "QuantLinear",
    "QuantizationReport",
    "RangeRule",
    "Rounding",
    "SmoothingMode",
    "SmoothingSettings",
    "StatisticsNeeds",
    "StatisticsRecorder",
    "TensorScheme",
    "linear_layers",
    "load_quantized",
    "quantize_layers",
    "save_quantized",
    "shape_from_graph",
    "whole",
]
