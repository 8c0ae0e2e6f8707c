"""A quantized denoiser from its stage's folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from experiments.cell.quantized_files import CHECKPOINT, REPORT
from experiments.sampling.threads import threads
from segquant.core.checkpoint import load_quantized

if TYPE_CHECKING:
    from torch import nn

    from experiments.cell.quantized_denoiser import QuantizedDenoiser
    from segquant.core.method_interface import QuantizationReport


def read_quantized(quantized: QuantizedDenoiser) -> tuple[nn.Module, QuantizationReport]:
    """The denoiser of the stage; a library's is made again, since it cannot be saved."""
    folder = quantized.build().path
    around = quantized.around
    if not (folder / REPORT).exists():
        return load_quantized(around.model.take(), folder / CHECKPOINT)
    calibration = quantized.read()
    denoiser = around.model.take()
    with threads(around.num_threads):
        report = quantized.method.quantize(denoiser, calibration=calibration, bits=quantized.bits)
    return denoiser, report
