"""Whether a cell's denoiser can be an ONNX file that a runtime runs on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from experiments.config.choices import RUNTIMES
from segquant.core.grids import IntGrid
from segquant.core.method_interface import OfThisMachine
from segquant.deploy.onnx_running import why_not_installed

if TYPE_CHECKING:
    from experiments.config.run_config import RunConfig


def why_not_exported(config: RunConfig) -> str | None:
    """Why `execution=onnx` or `openvino` makes no row of it, or None."""
    asked = f"execution={config.execution}"
    for scheme in (config.bits.weight, config.bits.activation):
        if scheme.quantized and not isinstance(scheme.grid, IntGrid):
            return f"{asked}: runtimes have no product of {scheme.number_format.name} on a CPU"
    if type(config.method).__module__.startswith("baselines.peers."):
        return f"{asked}: a library's own modules are exported by that library alone"
    if config.device != "cpu" and not (config.device == "auto" and not torch.cuda.is_available()):
        return OfThisMachine(f"{asked} runs on a CPU; set device=cpu")
    if config.model.denoisers is not None and len(config.model.denoisers) > 1:
        return f"{asked}: a pipeline of several denoisers; name one in model.denoisers"
    missing = why_not_installed(RUNTIMES[config.execution])
    return None if missing is None else OfThisMachine(f"{asked}: {missing}")
