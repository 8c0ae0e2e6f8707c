"""A quantized denoiser that another runtime runs from its ONNX file."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

from experiments.cell.denoiser import KernelUse, LoadedDenoiser
from experiments.cell.onnx_files import FILE
from experiments.errors import UserError
from experiments.sampling.execution import kernel_left_out
from segquant.core.method_interface import QuantizationReport
from segquant.deploy.onnx_export import OnnxFile
from segquant.deploy.onnx_running import open_session, products_are_exact, run_elsewhere

if TYPE_CHECKING:
    from experiments.cell.onnx_files import OnnxFiles


@dataclass(frozen=True, kw_only=True)
class OnnxDenoiser:
    """ONNX Runtime or OpenVINO on the CPU, in float32 but for the products of codes."""

    files: OnnxFiles
    runtime: str  # one of segquant.deploy.onnx_running.RUNTIMES

    @property
    def name(self) -> str:
        return f"{self.files.hash}-{self.runtime}-{version(self.runtime)}"

    def code(self) -> tuple[str, ...]:
        return (__name__,)

    def load(self) -> LoadedDenoiser:
        if not products_are_exact(self.runtime):
            raise UserError(
                f"{self.runtime} on this CPU stops sums of 8-bit products at 16 bits (no VNNI), so "
                "that its images would be another method's; use a CPU with VNNI, or "
                "execution=simulated"
            )
        stage, around = self.files.build(), self.files.around
        said = OnnxFile(**stage.notes["said"])
        report = QuantizationReport.from_dict(stage.notes["report"])
        session = open_session(
            stage.path / FILE, runtime=self.runtime, num_threads=around.num_threads
        )
        module = run_elsewhere(around.model.denoiser, session)
        use = KernelUse(
            any=True,
            by_layer_class=_by_layer_class(said, self.runtime),
            left_out=kernel_left_out(report.left_out, ran=True),
            protocol={"runtime": {"name": self.runtime, "version": version(self.runtime)}},
        )
        return LoadedDenoiser(module=module, report=report, execution=self.runtime, kernels=use)


def _by_layer_class(said: OnnxFile, runtime: str) -> dict[str, str]:
    found = {}
    if said.integer_layers:
        count = len(said.integer_layers)
        found["quantized Linear"] = f"{runtime}: {count} layers, written as products of integers"
    reasons = sorted(set(said.float_layers.values()))
    for reason in reasons:
        count = sum(because == reason for because in said.float_layers.values())
        found[f"quantized Linear, {reason}"] = f"{runtime}: {count} layers, products of floats"
    return found
