"""Does an exported denoiser give what the simulation gives, and are its products of integers?

    python -m experiments.studies.onnx_agreement

At every step of a run of the simulated denoiser the runtime gets the same arguments. The yardstick
is the simulation itself with its inputs moved by a millionth: a value on the border of two codes
goes to the other one, here as there. Images are whole runs from the same noise.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from evaluation.report.markdown import pipe_table
from experiments.cell.cell import Cell
from experiments.cell.onnx_files import FILE
from experiments.cell.read_quantized import read_quantized
from experiments.cell.sweep import open_sweep
from experiments.config.request import read_request
from experiments.sampling.sample import sample
from experiments.store.folders import write_text
from experiments.store.paths import RESULTS
from experiments.studies.csv_text import csv_text
from segquant.core.linear import QuantLinear
from segquant.core.several import named_arguments
from segquant.deploy.agreement import nudge, relative_difference
from segquant.deploy.onnx_profile import profiled_products
from segquant.deploy.onnx_running import RUNTIMES, Session, feed_of, open_session, run_elsewhere

log = logging.getLogger(__name__)

_MODULE = "experiments.studies.onnx_agreement"
MODELS = ("tiny_mmdit", "tiny_flux", "tiny_unet")
BITS = ("w8a8_int8", "w8a8_int8_token", "w4a8_int")
METHOD, PROMPTS = "segquant_a", 4
# A difference counts as the yardstick's own up to so many times its largest one of the run.
TOLERANCE = 2.0


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """A model at some bits in a runtime; differences are relative, PSNR in dB."""

    model: str
    bits: str
    runtime: str
    layers: int  # quantized
    segmented: int  # of them with more than one segment of inputs or outputs
    dual: int  # with DualScale
    products: int  # that the layers are written as
    integer_products: int  # that the runtime executed
    difference_median: float  # over steps
    difference_largest: float
    nudged_median: float
    nudged_largest: float
    psnr_runtime: float  # images of the runtime to the simulation's
    psnr_nudged: float  # images of the nudged simulation to the simulation's
    psnr_quantized: float  # images of the simulation to the unquantized model's

    @property
    def agrees(self) -> bool:
        """No step is further off than the yardstick allows, and all products are of integers."""
        near = self.difference_largest <= TOLERANCE * self.nudged_largest
        return near and self.integer_products == self.products


def measure_cell(cell: Cell, *, prompts: int = PROMPTS) -> list[Agreement]:
    """The cell's file in each runtime; the cell's `execution` must be onnx."""
    path = cell.onnx.build().path / FILE
    denoiser, _ = read_quantized(cell.onnx.quantized)
    around, config = cell.around, cell.config.model
    chosen = around.dataset.evaluation[:prompts]

    def images(module: nn.Module | None) -> np.ndarray[Any, Any]:
        with around.model.running(module, num_threads=around.num_threads) as pipeline:
            made = sample(pipeline, chosen, config=config, seed=0)
        return np.asarray(made, np.float64)

    calls: list[Mapping[str, Any]] = []
    outputs: list[Tensor] = []
    with _watched(denoiser, calls, outputs):
        simulated = images(denoiser)
    unquantized = images(None)
    nudged = [
        relative_difference(
            _call(denoiser, nudge(call, generator=torch.Generator().manual_seed(at))), out
        )
        for at, (call, out) in enumerate(zip(calls, outputs, strict=True))
    ]
    with _nudged(denoiser):
        moved = images(denoiser)
    found = []
    for runtime in RUNTIMES:
        session = open_session(path, runtime=runtime, num_threads=around.num_threads)
        differences = [
            relative_difference(_run(session, call), out)
            for call, out in zip(calls, outputs, strict=True)
        ]
        products = profiled_products(path, feed_of(session.said, calls[0]), runtime=runtime)
        made = images(run_elsewhere(around.model.denoiser, session))
        found.append(
            Agreement(
                model=cell.config.model.name,
                bits=cell.config.bits.name,
                runtime=runtime,
                **_structure(denoiser),
                products=session.said.integer_products,
                integer_products=products.integer,
                difference_median=float(np.median(differences)),
                difference_largest=max(differences),
                nudged_median=float(np.median(nudged)),
                nudged_largest=max(nudged),
                psnr_runtime=_psnr(made, simulated),
                psnr_nudged=_psnr(moved, simulated),
                psnr_quantized=_psnr(simulated, unquantized),
            )
        )
    return found


def _structure(denoiser: nn.Module) -> dict[str, int]:
    specs = [module.spec for module in denoiser.modules() if isinstance(module, QuantLinear)]
    return {
        "layers": len(specs),
        "segmented": sum(
            len(spec.output_segments) > 1 or len(spec.activation_blocks) > 1 for spec in specs
        ),
        "dual": sum(any(spec.dual) for spec in specs),
    }


@contextmanager
def _watched(
    denoiser: nn.Module, calls: list[Mapping[str, Any]], outputs: list[Tensor]
) -> Iterator[None]:
    """Keeps every call's arguments and output."""

    def keep(module: nn.Module, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        calls.append(named_arguments(module, args, kwargs))
        outputs.append(out[0].clone())

    handle = denoiser.register_forward_hook(keep, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _nudged(denoiser: nn.Module) -> Iterator[None]:
    """Moves the arguments of every call by a millionth."""
    generator = torch.Generator().manual_seed(0)

    def move(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return (), nudge(named_arguments(module, args, kwargs), generator=generator)

    handle = denoiser.register_forward_pre_hook(move, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _call(denoiser: nn.Module, call: Mapping[str, Any]) -> Tensor:
    with torch.no_grad():
        out: Tensor = denoiser(**call)[0]
    return out


def _run(session: Session, call: Mapping[str, Any]) -> Tensor:
    return session.run(feed_of(session.said, call))


def _psnr(found: Any, wanted: Any) -> float:
    """Over all pixels of all images."""
    error = float(((found - wanted) ** 2).mean())
    return float("inf") if error == 0 else -10 * float(np.log10(error))


def as_csv(found: list[Agreement]) -> str:
    body = [
        [f"{v:.6g}" if isinstance(v, float) else v for v in asdict(item).values()] for item in found
    ]
    return csv_text([item.name for item in fields(Agreement)], body)


def render(found: list[Agreement]) -> str:
    """The page for a person."""
    head = ["model", "bits", "runtime", "layers", "segmented", "DualScale", "integer products"]
    head += ["difference", "nudged", "PSNR dB", "nudged", "to float", "agrees"]
    body = [
        [
            item.model,
            item.bits,
            item.runtime,
            str(item.layers),
            str(item.segmented),
            str(item.dual),
            f"{item.integer_products} of {item.products}",
            f"{item.difference_median:.1e} ({item.difference_largest:.1e})",
            f"{item.nudged_median:.1e} ({item.nudged_largest:.1e})",
            f"{item.psnr_runtime:.1f}",
            f"{item.psnr_nudged:.1f}",
            f"{item.psnr_quantized:.1f}",
            "yes" if item.agrees else "no",
        ]
        for item in found
    ]
    table = pipe_table(head, body, numeric=[False] * 3 + [True] * 9 + [False])
    packages = ", ".join(f"{n} {version(n)}" for n in ("torch", "onnx", *RUNTIMES))
    return (
        "# Exported denoisers against the simulation\n\n"
        f"`python -m {_MODULE}`; `{METHOD}`, {PROMPTS} prompts, all steps; {packages}.\n\n"
        "`difference`: of the runtime's output to the simulation's on the same arguments, "
        "relative, median over steps (largest). `nudged`: of the simulation to itself with its "
        "arguments moved by a millionth. `agrees`: no step is off by more than "
        f"{TOLERANCE:g} times the largest nudged one, and the runtime executed every product that "
        "the layers are written as in integers, as its own profile says. PSNR of images: the "
        "runtime's to the simulation's, the nudged simulation's to the simulation's, and the "
        f"simulation's to the unquantized model's.\n\n{table}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {_MODULE}")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument(
        "--store", type=Path, help="where cells are, or go; default: a temporary one"
    )
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    found: list[Agreement] = []
    with tempfile.TemporaryDirectory() as temporary:
        for model in MODELS:
            words = [f"model={model}", f"method={METHOD}", f"bits={','.join(BITS)}"]
            words += [
                "execution=onnx",
                "device=cpu",
                "logger=none",
                f"out={given.store or temporary}",
            ]
            for cell in open_sweep(read_request(words, multirun=True)).cells:
                found += measure_cell(cell)
                log.info("%s", "\n".join(map(str, found[-len(RUNTIMES) :])))
    given.out.mkdir(parents=True, exist_ok=True)
    write_text(given.out / "onnx_agreement.csv", as_csv(found))
    write_text(given.out / "onnx_agreement.md", render(found))


if __name__ == "__main__":
    main()
