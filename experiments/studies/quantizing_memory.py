"""Does memory grow with methods or cells? `python -m experiments.studies.quantizing_memory`.

A sweep of 1, 2, 4 and 8 cells of one model runs in a process of its own, each on the same
calibration and reference images; compared are their peaks. The model is a FLUX of the true classes
with random weights, large enough not to be copied (`experiments.sampling.loaded.COPIED_BYTES`); in
the second column it is copied all the same, as every model was before. Results:
`experiments/results/quantizing_memory.{md,csv}`.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from evaluation.report.markdown import pipe_table
from evaluation.resources import peak_rss_bytes, reset_peak_memory, resident_bytes
from experiments.cell.sweep import open_sweep
from experiments.config.request import read_request
from experiments.sampling import loaded
from experiments.store.paths import RESULTS
from experiments.studies.csv_text import csv_text
from experiments.zoo.published import network
from experiments.zoo.twins import make_twin

log = logging.getLogger(__name__)

MODEL = "flux1_schnell"
LARGER = {"num_layers": 4, "num_single_layers": 8, "num_attention_heads": 48}
METHODS = ("smoothquant", "rtn")  # the cell that takes most is the first, and in every sweep
BITS = ("w4a8_int", "w8a8_int8", "w8a8_int8_channel", "w4a4_int")
COUNTS = (1, 2, 4, 8)
_MODULE = "experiments.studies.quantizing_memory"
_EVERYTHING = 2**62


@dataclass(frozen=True, kw_only=True)
class Peak:
    """The peak of one sweep."""

    cells: int
    copies: bool
    model_gigabytes: float
    resting_gigabytes: float  # Python and its libraries
    peak_gigabytes: float  # above that


def write_model(folder: Path) -> int:
    """A twin whose transformer has more and wider layers. Returns its transformer's bytes."""
    make_twin(MODEL, folder)
    part = folder / "transformer"
    config = json.loads((part / "config.json").read_text()) | LARGER
    shutil.rmtree(part)
    made = network(config, device="cpu").bfloat16()
    made.save_pretrained(part)  # type: ignore[operator]
    return sum(path.stat().st_size for path in part.glob("*.safetensors"))


def run_cells(model: Path, out: Path, *, cells: int, copies: bool) -> dict[str, int]:
    """One sweep in this process."""
    if copies:
        loaded.COPIED_BYTES = _EVERYTHING
    shared = [
        *(f"model={MODEL}", f"model.path={model}", "model.height=64", "model.width=64"),
        *("model.dtype=bfloat16", "model.num_inference_steps=1", "model.batch_size=2"),
        *("dataset.evaluation_prompts=2", "dataset.calibration_prompts=2", "logger=none"),
        *("metrics.teacher_forced_prompts=1", "metrics.bootstrap_resamples=100", f"out={out}"),
    ]
    resting = resident_bytes()
    reset_peak_memory()
    methods = METHODS[: min(cells, len(METHODS))]
    bits = BITS[: cells // len(methods)]
    swept = [f"method={','.join(methods)}", f"bits={','.join(bits)}"]
    sweep = open_sweep(read_request([*shared, *swept], multirun=True))
    assert len(sweep.cells) == cells
    records = sweep.run(finished=lambda *_: None)
    failed = [record.reason for record in records if record.status != "ok"]
    if failed:
        raise RuntimeError(failed[0])
    return {"resting": resting, "peak": peak_rss_bytes()}


def measure(work: Path) -> list[Peak]:
    """Every number of cells, with and without copies, each in a process of its own."""
    model = work / "flux"
    size = write_model(model)
    peaks = []
    for copies in (False, True):
        for cells in COUNTS:
            out = work / f"runs{cells}{copies}"
            words = [str(model), str(out), str(cells), str(int(copies))]
            done = subprocess.run(
                [sys.executable, "-m", _MODULE, "--of", *words],
                capture_output=True,
                text=True,
                check=True,
            )
            told = json.loads(done.stdout.splitlines()[-1])
            peaks.append(
                Peak(
                    cells=cells,
                    copies=copies,
                    model_gigabytes=size / 1e9,
                    resting_gigabytes=told["resting"] / 1e9,
                    peak_gigabytes=(told["peak"] - told["resting"]) / 1e9,
                )
            )
            log.info("%s", peaks[-1])
            shutil.rmtree(out, ignore_errors=True)
    return peaks


def as_csv(peaks: list[Peak]) -> str:
    """A line a sweep."""
    body = [
        [f"{value:.3f}" if isinstance(value, float) else value for value in asdict(peak).values()]
        for peak in peaks
    ]
    return csv_text([item.name for item in fields(Peak)], body)


def render(peaks: list[Peak]) -> str:
    """The table for a person."""
    by_count = {(peak.cells, peak.copies): peak.peak_gigabytes for peak in peaks}
    body = [
        [str(cells), f"{by_count[cells, False]:.2f}", f"{by_count[cells, True]:.2f}"]
        for cells in COUNTS
    ]
    size = peaks[0].model_gigabytes
    table = pipe_table(
        ["cells", "in place, peak GB", "copied, peak GB"], body, numeric=[True, True, True]
    )
    return (
        "# Memory of a sweep against its number of cells\n\n"
        f"`python -m {_MODULE}`; a transformer of {size:.2f} GB in bfloat16, on a CPU. Peaks are "
        "of the whole sweep, above what Python and its libraries take.\n\n" + table + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {_MODULE}")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--of", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.of is not None:
        model, out, cells, copies = given.of
        told = run_cells(Path(model), Path(out), cells=int(cells), copies=copies == "1")
        sys.stdout.write(json.dumps(told) + "\n")
        return
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with tempfile.TemporaryDirectory() as work:
        peaks = measure(Path(work))
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "quantizing_memory.csv").write_text(as_csv(peaks))
    (given.out / "quantizing_memory.md").write_text(render(peaks))


if __name__ == "__main__":
    main()
