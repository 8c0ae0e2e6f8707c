"""Stage: the quantized denoiser as a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.cell.calibration_inputs import CalibrationInputs
from experiments.cell.calibration_pass import CalibrationStatistics, calibration_of
from experiments.cell.quantized_files import write_quantized
from experiments.cell.stage import Stage
from experiments.config.plain import method_fields, plain
from experiments.sampling.threads import threads
from experiments.store.sources import package_versions
from segquant.core.method_interface import QuantizationReport
from segquant.core.plain_linears import linear_layers

if TYPE_CHECKING:
    from segquant.core.calibration import Calibration
    from segquant.core.method_interface import Method
    from segquant.core.schemes import Bits

_GRAPH = "experiments.sampling.static_graph"


@dataclass(frozen=True, kw_only=True)
class QuantizedDenoiser(Stage):
    """What a method makes of a denoiser, given a calibration and bits."""

    kind = "quantized"
    method: Method
    bits: Bits

    def fields(self) -> dict[str, Any]:
        needs = self.method.needs()
        # of what this method needs: what a sweep's calibration holds beyond it changes nothing
        own = CalibrationStatistics(around=self.around, needs=needs)
        return {
            "calibration": own.hash,
            "inputs": self.inputs().hash if needs.replay else None,
            "method": method_fields(self.method),
            "bits": plain(asdict(self.bits)),
            "packages": package_versions(type(self.method).__module__),
        }

    def code(self) -> tuple[str, ...]:
        graph = (_GRAPH,) if self.method.needs().graph else ()
        return (type(self.method).__module__, *graph)

    def calibration(self) -> CalibrationStatistics:
        """Of what the sweep needs."""
        return calibration_of(self.around)

    def inputs(self) -> CalibrationInputs:
        return CalibrationInputs(around=self.around)

    def read(self) -> Calibration:
        """The sweep's calibration, as far as this method asked for it."""
        needs = self.method.needs()
        held = self.calibration().read()
        held.draw = self.around.prompts_hash.calibration
        if needs.graph:
            held.graph = self.around.graph
        if needs.replay:
            held.replay = self.inputs().replay()
        return needs.of(held)

    def make(self, folder: Path) -> dict[str, Any]:
        around, needs = self.around, self.method.needs()
        cost = self.calibration().build()
        forwards, seconds = cost.notes["forwards"], cost.seconds
        if needs.replay:
            cost = self.inputs().build()
            forwards, seconds = forwards + cost.notes["forwards"], seconds + cost.seconds
        calibration, model = self.read(), around.model
        if model.offloads:  # the denoiser waits on the host, a layer at a time is on the device
            calibration.device = around.device
        denoiser = model.take()  # after the calibration, whose graph may need the pipeline's own
        sizes = {name: layer.weight.numel() for name, layer in linear_layers(denoiser).items()}
        with threads(around.num_threads):
            report = self.method.quantize(denoiser, calibration=calibration, bits=self.bits)
        if not isinstance(report, QuantizationReport):
            raise TypeError(
                f"{type(self.method).__name__}.quantize returned {type(report).__name__}; it must "
                "return a QuantizationReport, as segquant.core.layer_pass.quantize_layers does"
            )
        if needs.graph and around.graph.fallback:
            report.left_out.append(
                f"a static graph: it is of one run of the denoiser, since {around.graph.fallback}"
            )
        write_quantized(denoiser, folder, report)
        rows = {name: seen.rows for name, seen in calibration.statistics.items()}
        return {
            "forwards": forwards + report.replay_forwards,
            "calibration_seconds": seconds,
            "linear_flops_quantized_fraction": flops_fraction(report, sizes=sizes, rows=rows),
        }


def flops_fraction(
    report: QuantizationReport, *, sizes: Mapping[str, int], rows: Mapping[str, int]
) -> float | None:
    """The quantized Linears' part of the products of all Linears that the calibration called.

    None where the calibration says of no Linear how many rows it saw.

    Args:
        sizes: weights of each Linear.
        rows: that the calibration sent through it.
    """
    products = {name: size * rows.get(name, 0) for name, size in sizes.items()}
    quantized = sum(products.get(str(layer["name"]), 0) for layer in report.layers_quantized)
    total = sum(products.values())
    return quantized / total if total else None
