"""Blocks of real widths on this CPU: floats against int8, in torch, ONNX Runtime and OpenVINO.

    python -m experiments.speed.runtimes

All variants of a block are in memory at once and are called in turn, round after round, in random
order: a ratio is the median of the rounds' ratios, so that whatever else the machine does weighs on
both sides. The best float is the fastest 16-bit or 32-bit variant of the block.
"""

from __future__ import annotations

import argparse
import logging
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evaluation.report.markdown import pipe_table
from experiments.config.catalogue import load_bits
from experiments.sampling.threads import threads
from experiments.speed.blocks import BLOCKS, Block
from experiments.speed.compiling import why_not_compiled
from experiments.speed.latency import deciles
from experiments.speed.machine_state import machine_state, state_text, why_not_calm
from experiments.store.paths import RESULTS
from experiments.studies.csv_text import csv_text
from segquant.core.calibration import Calibration
from segquant.core.input_statistics import StatisticsRecorder
from segquant.core.smoothing import SmoothingMode
from segquant.deploy.onnx_export import OnnxFile, export_denoiser, export_network
from segquant.deploy.onnx_profile import profiled_products
from segquant.deploy.onnx_running import Session, feed_of, open_session
from segquant.graph import analyze_calls
from segquant.method import SegQuant

log = logging.getLogger(__name__)

_MODULE = "experiments.speed.runtimes"
ROUNDS, WARMUPS = 15, 2
CALIBRATION_BATCHES = 2
BITS = "w8a8_int8"
Call = Callable[[], Any]


@dataclass(kw_only=True)
class Variant:
    """One way to run a block."""

    name: str
    bits: str  # of products: fp32, bf16 or int8
    call: Call
    note: str = ""
    seconds: list[float] = field(default_factory=list)


def _quantized(network: nn.Module, block: Block, *, dual_scale: bool) -> nn.Module:
    """Rounded to nearest on the static ranges of two calls; with DualScale and segments, or not."""
    batches = [block.inputs(network, seed) for seed in range(CALIBRATION_BATCHES)]
    with torch.no_grad(), StatisticsRecorder(network, sample_rows=64) as recorder:
        for batch in batches:
            network(**batch)
    graph = analyze_calls(network, {"": batches[0]}) if dual_scale else None
    calibration = Calibration(statistics=recorder.statistics(), forwards=len(batches), graph=graph)
    method = SegQuant(seg_linear=dual_scale, dual_scale=dual_scale, smoothing=SmoothingMode.none)
    method.quantize(network, calibration=calibration, bits=load_bits(BITS))
    return network
