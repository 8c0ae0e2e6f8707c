"""Blocks of real widths on this CPU: floats against int8, in torch, ONNX Runtime and OpenVINO.

    python -m experiments.speed.runtimes

All variants of a block are in memory at once and are called in turn, round after round, in random
order: a ratio is the median of the rounds' ratios, so that whatever else the machine does weighs on
both sides. The best float is the fastest 16-bit or 32-bit variant of the block.
"""

from __future__ import annotations

import argparse
import copy
import logging
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evaluation.report.markdown import pipe_table
from experiments.sampling.threads import threads
from experiments.speed.compiling import why_not_compiled
from experiments.speed.latency import deciles
from experiments.speed.machine_state import machine_state, state_text, why_not_calm
from experiments.speed.width_blocks import BLOCKS, Block
from experiments.store.paths import RESULTS
from experiments.studies.csv_text import csv_text
from segquant.core.calibration import Calibration
from segquant.core.input_statistics import StatisticsRecorder
from segquant.core.schemes import Bits, TensorScheme
from segquant.core.smoothing import SmoothingMode
from segquant.deploy.agreement import relative_difference
from segquant.deploy.onnx_export import OnnxFile, export_denoiser, export_network
from segquant.deploy.onnx_profile import Products, profiled_products
from segquant.deploy.onnx_running import feed_of, open_session, read_said
from segquant.graph import analyze_calls
from segquant.method import SegQuant

log = logging.getLogger(__name__)

_MODULE = "experiments.speed.runtimes"
ROUNDS, WARMUPS = 15, 2
GOAL = 2.0  # int8 against the best float
BITS = Bits(name="w8a8_int8", weight=TensorScheme(num_bits=8), activation=TensorScheme(num_bits=8))
INT8, BEST_FLOAT = "int8", "best float"
PLAIN, SEGMENTED = "int8, per tensor", "int8, segments and DualScale"
REST = ", all else in bf16"  # of OpenVINO: attention, norms and sums
Call = Callable[[], Any]


@dataclass(kw_only=True)
class Variant:
    """One way to run a block."""

    runtime: str
    bits: str  # of the products of Linears
    what: str
    call: Call
    difference: float  # of the output, relative to float32 in torch eager
    file: str | None = None  # of the block's; None: torch's own
    seconds: list[float] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.runtime}, {self.what}"


@dataclass(kw_only=True)
class Row:
    """A line of the table; the fields are those of the csv."""

    block: str
    runtime: str
    bits: str
    what: str
    milliseconds: float
    p10: float
    p90: float
    best_float_over_this: float
    low: float  # of that ratio, the tenth percentile over rounds
    high: float
    integer_products: int | None
    file_megabytes: float | None
    difference: float


def _quantized(network: nn.Module, block: Block, *, whole: bool) -> nn.Module:
    """Rounded to nearest on the ranges of two calls; with DualScale and segments, or not."""
    batches = [block.inputs(network, seed) for seed in (1, 2)]
    with torch.no_grad(), StatisticsRecorder(network, gram=False, sample_rows=64) as recorder:
        for batch in batches:
            network(**batch)
    graph = analyze_calls(network, {"": batches[0]}) if whole else None
    calibration = Calibration(statistics=recorder.statistics(), forwards=len(batches), graph=graph)
    method = SegQuant(seg_linear=whole, dual_scale=whole, smoothing=SmoothingMode.none)
    method.quantize(network, calibration=calibration, bits=BITS)
    return network


def _in_torch(network: Any, inputs: dict[str, Any]) -> tuple[Call, torch.Tensor]:
    def call() -> Any:
        with torch.no_grad():
            return network(**inputs)[0]

    return call, call().float()


def _cast(inputs: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {
        name: value.to(dtype) if isinstance(value, torch.Tensor) else value
        for name, value in inputs.items()
    }


@dataclass(kw_only=True)
class Files:
    """A block's files and what was told of their products."""

    paths: dict[str, Path]
    products: dict[tuple[str, str], Products] = field(default_factory=dict)


def variants_of(
    block: Block, folder: Path, *, small: bool, num_threads: int
) -> tuple[list[Variant], Files]:
    """All variants in memory, warm, with what each one's output differs by."""
    torch.manual_seed(0)
    network = block.build(small).eval().requires_grad_(False)
    inputs = block.inputs(network, 0)
    call, wanted = _in_torch(network, inputs)

    difference = partial(relative_difference, wanted=wanted)

    made = [Variant(runtime="torch", bits="fp32", what="eager fp32", call=call, difference=0.0)]
    if not why_not_compiled(torch.device("cpu")):
        for dtype, bits in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
            compiled = torch.compile(copy.deepcopy(network).to(dtype), dynamic=False)
            call, found = _in_torch(compiled, _cast(inputs, dtype))
            what = f"compiled {bits}"
            made.append(
                Variant(
                    runtime="torch",
                    bits=bits,
                    what=what,
                    call=call,
                    difference=difference(found),
                )
            )
    files = Files(paths={})
    for what, whole in ((PLAIN, False), (SEGMENTED, True)):
        log.info("%s: %s is quantized and exported", block.name, what)
        files.paths[what] = folder / f"{block.name}_{'segquant' if whole else 'plain'}.onnx"
        own = _quantized(copy.deepcopy(network), block, whole=whole)
        export_denoiser(own, [inputs], files.paths[what])
        del own
    files.paths["fp32"] = folder / f"{block.name}_float.onnx"
    said = OnnxFile(inputs={}, types={})
    export_network(network, [inputs], files.paths["fp32"], said=said)
    choices = [("onnxruntime", "fp32", "f32"), ("openvino", "fp32", "f32")]
    choices += [("openvino", "fp32", "bf16")]
    for what in (PLAIN, SEGMENTED):
        choices += [("onnxruntime", what, "f32"), ("openvino", what, "f32")]
        choices += [("openvino", what, "bf16")]
    for runtime, what, precision in choices:
        path = files.paths[what]
        feed = feed_of(read_said(path), inputs)
        session = open_session(path, runtime=runtime, num_threads=num_threads, precision=precision)
        bits = INT8 if what != "fp32" else "bf16" if precision == "bf16" else "fp32"
        if bits == INT8:
            files.products[runtime, what] = profiled_products(path, feed, runtime=runtime)
        made.append(
            Variant(
                runtime=runtime,
                bits=bits,
                what=_label(what, bits=bits, precision=precision),
                file=what,
                call=partial(session.run, feed),
                difference=difference(session.run(feed)),
            )
        )
    return made, files


def measure(variants: list[Variant], *, rounds: int, seed: int = 0) -> None:
    """Fills in the seconds: each round calls all variants once, in an order of its own."""
    order = random.Random(seed)
    for done in range(-WARMUPS, rounds):
        for variant in order.sample(variants, len(variants)):
            begun = time.perf_counter()
            variant.call()
            if done >= 0:
                variant.seconds.append(time.perf_counter() - begun)


def rows_of(block: str, variants: list[Variant], files: Files) -> list[Row]:
    """A row a variant, against the fastest of floats."""
    floats = [variant for variant in variants if variant.bits != INT8]
    best = min(floats, key=lambda variant: statistics.median(variant.seconds))
    rows = []
    for variant in variants:
        ratios = [a / b for a, b in zip(best.seconds, variant.seconds, strict=True)]
        times, spread = deciles(variant.seconds), deciles(ratios)
        path = None if variant.file is None else files.paths[variant.file]
        products = files.products.get((variant.runtime, variant.file or ""))
        rows.append(
            Row(
                block=block,
                runtime=variant.runtime,
                bits=variant.bits,
                what=variant.what,
                milliseconds=1e3 * statistics.median(variant.seconds),
                p10=1e3 * times[0],
                p90=1e3 * times[1],
                best_float_over_this=statistics.median(ratios),
                low=spread[0],
                high=spread[1],
                integer_products=None if products is None else products.integer,
                file_megabytes=None if path is None else _megabytes(path),
                difference=variant.difference,
            )
        )
    return rows


def _megabytes(path: Path) -> float:
    return sum(f.stat().st_size for f in path.parent.glob(f"{path.name}*")) / 1e6


def as_csv(rows: list[Row]) -> str:
    names = list(Row.__dataclass_fields__)
    return csv_text(names, [[_csv(getattr(row, name)) for name in names] for row in rows])


def _csv(value: Any) -> Any:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else value


def render(rows: list[Row], *, told: list[str], files: dict[str, Files]) -> str:
    """The page for a person."""
    parts = ["# int8 against floats on a CPU, blocks of real widths", "", *told, ""]
    for name in dict.fromkeys(row.block for row in rows):
        own = [row for row in rows if row.block == name]
        parts += [f"## {name}", "", f"{BLOCKS[name].what[0].upper()}{BLOCKS[name].what[1:]}.", ""]
        parts += [_table(own), "", *verdict(own), ""]
        for (runtime, what), products in files[name].products.items():
            longest = list(products.seconds.items())[:6]
            total = sum(products.seconds.values())
            shares = ", ".join(f"{op} {100 * taken / total:.0f} %" for op, taken in longest)
            parts.append(
                f"- {runtime}, {what}: {products.integer} products of integers, "
                f"{products.floating} of floats (attention's); time by operator, one thread: "
                f"{shares}."
            )
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def _table(rows: list[Row]) -> str:
    body = [
        [
            row.runtime,
            row.what,
            f"{row.milliseconds:.0f} [{row.p10:.0f}, {row.p90:.0f}]",
            f"{row.best_float_over_this:.2f} [{row.low:.2f}, {row.high:.2f}]",
            "-" if row.file_megabytes is None else f"{row.file_megabytes:.0f}",
            f"{row.difference:.1e}",
        ]
        for row in sorted(rows, key=lambda row: row.milliseconds)
    ]
    head = ["runtime", "", "ms [p10, p90]", "best float / this", "file MB", "difference to fp32"]
    return pipe_table(head, body, numeric=[False, False, True, True, True, True])


def verdict(rows: list[Row]) -> list[str]:
    """What int8 gains, and what DualScale and segments cost, in words."""
    floats = [row for row in rows if row.bits != INT8]
    best = min(floats, key=lambda row: row.milliseconds)
    plain, whole = (
        min((row for row in rows if row.what.startswith(what)), key=lambda row: row.milliseconds)
        for what in (PLAIN, SEGMENTED)
    )
    met = "met" if plain.best_float_over_this >= GOAL else "missed"
    like = next(row for row in rows if (row.runtime, row.what) == (whole.runtime, _plain(whole)))
    price = whole.milliseconds / like.milliseconds - 1
    more = (whole.integer_products or 0) - (like.integer_products or 0)
    cost = (
        f"Segments and DualScale are {more} products more and cost {100 * price:.0f} % of the "
        f"same block without ({whole.runtime}{whole.what.removeprefix(SEGMENTED)})."
        if more
        else "No layer of it has DualScale or segments of its input."
    )
    return [
        f"The best float is {best.runtime}, {best.what}; the fastest int8 ({plain.runtime}"
        f"{plain.what.removeprefix(PLAIN)}) is {plain.best_float_over_this:.2f} times as fast "
        f"[{plain.low:.2f}, {plain.high:.2f}]: the goal of {GOAL:g} is {met}. {cost}"
    ]


def _plain(row: Row) -> str:
    return PLAIN + row.what.removeprefix(SEGMENTED)


def _label(what: str, *, bits: str, precision: str) -> str:
    if bits != INT8:
        return bits
    return what + (REST if precision == "bf16" else "")


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {_MODULE}", description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS / "speed")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--small", action="store_true", help="tiny blocks, to try the command")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    before, rows, files = machine_state(torch.device("cpu")), [], {}
    with threads(given.threads):
        for block in BLOCKS.values():
            with tempfile.TemporaryDirectory() as folder:
                variants, files[block.name] = variants_of(
                    block, Path(folder), small=given.small, num_threads=given.threads
                )
                log.info("%s: %d variants, %d rounds", block.name, len(variants), given.rounds)
                measure(variants, rounds=given.rounds)
                rows += rows_of(block.name, variants, files[block.name])
    after = machine_state(torch.device("cpu"))
    told = _told(given, before=before, after=after)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "runtimes.csv").write_text(as_csv(rows))
    (given.out / "runtimes.md").write_text(render(rows, told=told, files=files))


def _told(given: argparse.Namespace, *, before: Any, after: Any) -> list[str]:
    packages = ("torch", "onnxruntime", "openvino", "onnx")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    small = " --small" if given.small else ""
    told = [
        f"`python -m {_MODULE} --rounds {given.rounds} --threads {given.threads}{small}`; "
        f"{versions}; {_processor()}.",
        "",
        f"Batch 1, {given.threads} threads, {given.rounds} rounds after {WARMUPS}; all variants of "
        "a block in one process, each round calls each once in random order, and ratios are "
        "medians of the rounds' own. Random weights; int8 per tensor, static, no smoothing. What "
        "is no Linear stays in float32.",
        f"Before: {state_text(before)}; after: {state_text(after)}.",
    ]
    reasons = why_not_calm(before, after)
    return told + ([f"**Not calm: {'; '.join(reasons)}.**"] if reasons else [])


def _processor() -> str:
    """The processor's name and what it multiplies with."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "an unknown processor"
    entries = {
        key.strip(): value.strip()
        for key, _, value in (line.partition(":") for line in text.splitlines())
    }
    flags = set(entries.get("flags", "").split())
    known = ("avx2", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
    has = [name for name in known if name in flags]
    return f"{entries.get('model name', 'an unknown processor')} ({', '.join(has) or 'none'})"


if __name__ == "__main__":
    main()
