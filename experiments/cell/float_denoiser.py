"""The unquantized denoiser."""

from __future__ import annotations

from dataclasses import dataclass

from experiments.cell.denoiser import LoadedDenoiser


@dataclass(frozen=True, kw_only=True)
class FloatDenoiser:
    """The pipeline's own denoiser; what runs is diffusers'."""

    @property
    def name(self) -> str:
        return "float"

    def code(self) -> tuple[str, ...]:
        return ()

    def load(self) -> LoadedDenoiser:
        return LoadedDenoiser(module=None, report=None, execution="float")
