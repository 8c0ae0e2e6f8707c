"""A quantized denoiser from a checkpoint's folder, wherever that was made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.resources import own_mappings
from experiments.cell.denoiser import LoadedDenoiser
from segquant.core.checkpoint import load_quantized
from segquant.core.linear import QuantLinear

if TYPE_CHECKING:
    from experiments.cell.surroundings import Surroundings


@dataclass(frozen=True, kw_only=True)
class CheckpointDenoiser:
    """Simulated: the numerics of the checkpoint without a kernel.

    Args:
        contents: what its files' contents are filed under.
    """

    around: Surroundings
    folder: Path
    contents: str

    @property
    def name(self) -> str:
        return f"checkpoint {self.contents}"

    def code(self) -> tuple[str, ...]:
        return (__name__,)

    def load(self) -> LoadedDenoiser:
        with own_mappings():
            module, report = load_quantized(self.around.model.take(), self.folder)
            for layer in module.modules():
                if isinstance(layer, QuantLinear):
                    layer.drop_codes()  # the dense weight is all that runs
        return LoadedDenoiser(module=module, report=report, execution=report.execution)
