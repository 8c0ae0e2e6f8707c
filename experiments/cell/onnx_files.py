"""Stage: a quantized denoiser as an ONNX file."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from experiments.cell.read_quantized import read_quantized
from experiments.cell.stage import Stage
from experiments.sampling.example_calls import example_calls
from experiments.store.sources import package_versions
from segquant.deploy.onnx_export import export_denoiser

if TYPE_CHECKING:
    from pathlib import Path

    from experiments.cell.quantized_denoiser import QuantizedDenoiser

FILE = "model.onnx"


@dataclass(frozen=True, kw_only=True)
class OnnxFiles(Stage):
    """For the sizes and arguments of this run's pipeline, and a batch of any size."""

    kind = "onnx"
    quantized: QuantizedDenoiser

    def fields(self) -> dict[str, Any]:
        return {
            "denoiser": self.quantized.hash,
            "sampler": self.around.sampler(batch_size=1, num_threads=1),
            "prompt": self.around.dataset.calibration[0].id,
            "packages": package_versions("segquant.deploy.onnx_export"),
        }

    def make(self, folder: Path) -> dict[str, Any]:
        around = self.around
        with around.model.running(None, num_threads=around.num_threads) as pipeline:
            prompt = around.dataset.calibration[0]
            calls = example_calls(pipeline, prompt, config=around.config.model)
        denoiser, report = read_quantized(self.quantized)
        said = export_denoiser(denoiser.to("cpu"), calls, folder / FILE)
        return {"said": asdict(said), "report": report.to_dict()}
