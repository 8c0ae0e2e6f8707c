"""A quantized denoiser that multiplies codes, wherever there is a kernel for a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from experiments.cell.denoiser import KernelUse, LoadedDenoiser
from experiments.cell.read_quantized import read_quantized
from experiments.config.choices import METHODS_OWN
from experiments.sampling.execution import (
    extra_products,
    kernel_left_out,
    prepare,
    runs_on_kernels,
)
from segquant.kernels import summarize
from segquant.kernels.fuse import fuse_activations, summarize_fused

if TYPE_CHECKING:
    from experiments.cell.quantized_denoiser import QuantizedDenoiser


@dataclass(frozen=True, kw_only=True)
class KernelDenoiser:
    """Products of codes: exact integers on a CPU, Triton kernels on CUDA."""

    quantized: QuantizedDenoiser
    execution: str  # kernel or auto
    activation_code: str
    fuse_activations: bool

    @property
    def name(self) -> str:
        own = self.activation_code == METHODS_OWN
        code = "" if own else f"-{self.activation_code}"
        return f"{self.quantized.hash}-{self.execution}{code}{'-fused' * self.fuse_activations}"

    def code(self) -> tuple[str, ...]:
        return (__name__,)

    def load(self) -> LoadedDenoiser:
        module, report = read_quantized(self.quantized)
        own_code = self.activation_code == METHODS_OWN
        calibration = None if own_code else self.quantized.calibration().read()
        entries = prepare(
            module, self.execution, code=self.activation_code, calibration=calibration
        )
        any_kernel = runs_on_kernels(entries)
        execution = "kernel" if any_kernel else report.execution
        use = KernelUse(
            any=any_kernel,
            by_layer_class=summarize(entries),
            left_out=kernel_left_out(report.left_out, ran=any_kernel),
        )
        if self.fuse_activations:
            use.protocol["fused_activations"] = summarize_fused(fuse_activations(module))
        if calibration is not None:
            use.protocol["activation_code"] = self.activation_code
            use.protocol["extra_products_of_codes"] = extra_products(
                entries, self.quantized.around.model.weights.linears, calibration
            )
        return LoadedDenoiser(module=module, report=report, execution=execution, kernels=use)
