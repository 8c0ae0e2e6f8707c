"""A quantized denoiser as files: a checkpoint, or of a library's modules a report alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from segquant.core.checkpoint import save_quantized

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from segquant.core.method_interface import QuantizationReport

REPORT = "report.json"
CHECKPOINT = "denoiser"


def write_quantized(denoiser: nn.Module, folder: Path, report: QuantizationReport) -> None:
    """What `read_quantized` takes up again; a library's modules cannot be saved."""
    if report.by_library:
        (folder / REPORT).write_text(json.dumps(report.to_dict()))
    else:
        save_quantized(denoiser, folder / CHECKPOINT, report)
