"""What the committed table of the baselines holds: every cell, and a reason for every worse row."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from evaluation.records import Record
from evaluation.report.comparison import Verdict, compare_rows
from experiments.config.places import options
from experiments.config.request import read_request
from experiments.paper.keep_results import KEPT_RESULTS
from experiments.paper.kept_cells import KEPT, missing_of, read_kept
from experiments.store.paths import RESULTS
from experiments.studies import alpha_check
from experiments.tiny import quality
from experiments.verbs.compare import read_reasons

BASELINES = RESULTS / "baselines"
NEWER = KEPT_RESULTS / "baselines_2026"
MODELS = {"tiny_mmdit", "tiny_flux", "tiny_unet"}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def experiment(name: str = "baselines") -> tuple[set[str], set[str], set[str]]:
    """Models, methods and bits of the sweep's quantized cells."""
    content = OmegaConf.load(Path(f"conf/experiment/{name}.yaml"))
    block = content.sweep[1]
    methods = {method for one in content.sweep[1:] for method in one.method}
    return set(block.model), methods, set(block.bits)


def test_the_sweep_has_every_method_at_every_bits() -> None:
    models, methods, bits = experiment()
    newer_models, newer, _ = experiment("baselines_2026")
    assert models == newer_models == MODELS
    too_wide = {"w4a4_int_group64"}  # for layers of 160 features
    of_one_method = {"w4a4_lloyd", "w4a4_nvfp4_46"}  # what orbitquant and four_over_six impose
    assert bits == set(options("bits")) - {"w16a16"} - too_wide - of_one_method
    apart = {"fp", "noise_floor", "segquant_seg_only", "segquant_dual_only", "composed"}
    peers = {name for name in options("method") if name.startswith("peer_")}
    assert methods | newer == set(options("method")) - apart - peers


def test_the_table_has_every_cell_and_a_reason_for_each_that_was_not_done() -> None:
    models, methods, bits = experiment()
    found = {(r["model"], r["method"], r["bits"]): r for r in rows(BASELINES / "table.csv")}
    wanted = {(m, n, b) for m in models for n in methods for b in bits}
    assert wanted <= set(found)
    for row in found.values():
        assert row["status"] in ("ok", "skipped"), row
        assert (row["status"] == "skipped") == bool(row["reason"])


def test_every_row_that_is_worse_than_rtn_has_its_reason() -> None:
    reasons = read_reasons(BASELINES / "reasons.yaml")
    compared = rows(BASELINES / "compare_rtn.csv")
    assert {row["model"] for row in compared} == MODELS
    worse = [row for row in compared if row["verdict"].startswith(Verdict.worse.value)]
    for row in worse:
        assert any(_covers(reason, row) for reason in reasons), row
    used = [any(_covers(reason, row) for row in worse) for reason in reasons]
    assert all(used), "a reason that no row needs"


@pytest.mark.parametrize("against", ["rtn", "svdquant"])
def test_verdicts_on_the_rows_of_2026_are_those_of_what_is_kept(against: str) -> None:
    """Ratios and verdicts made again from the kept scores."""
    cells = read_kept(NEWER / KEPT)
    found = rows(NEWER / f"compare_{against}.csv")
    again = {
        (c.record.model, c.record.bits_label, c.record.method_label): c
        for c in compare_rows(cells, against=against, descriptions=[])
    }
    assert set(again) == {(r["model"], r["bits"], r["method"]) for r in found}
    for row in found:
        compared = again[row["model"], row["bits"], row["method"]]
        assert row["verdict"] == compared.said, row
        if compared.ratio is not None:
            ratio = float(row["step_error_ratio"])
            assert ratio == pytest.approx(compared.ratio.value, rel=1e-4)


@pytest.mark.parametrize("against", ["rtn", "svdquant"])
def test_every_row_of_2026_that_is_worse_has_its_reason(against: str) -> None:
    reasons = read_reasons(NEWER / f"reasons_{against}.yaml")
    found = rows(NEWER / f"compare_{against}.csv")
    worse = [row for row in found if row["verdict"].startswith(Verdict.worse.value)]
    for row in worse:
        assert any(_covers(reason, row) for reason in reasons), row
    assert all(any(_covers(reason, row) for row in worse) for reason in reasons), "one for no row"


def test_the_rows_of_2026_are_there_for_every_draw() -> None:
    """Every cell of the sweep, done or skipped with its reason; verdicts hold for three draws."""
    request = read_request(["+experiment=baselines_2026"], multirun=True)
    cells = read_kept(NEWER / KEPT)
    assert not missing_of(cells, request.cells)
    assert {cell.record.status for cell in cells} == {"ok", "skipped"}
    assert all(cell.record.reason for cell in cells if cell.record.status == "skipped")
    models, methods, bits = experiment("baselines_2026")
    assert models == MODELS
    assert len(bits) == 6
    verdicts = rows(NEWER / "compare_rtn.csv")
    assert not [row for row in verdicts if "calibration draw" in row["verdict"]]
    assert methods - {"rtn"} <= {row["method"] for row in verdicts}


def _covers(reason, row) -> bool:
    record = Record(
        run_id="", status="ok", model=row["model"], method=row["method"], bits=row["bits"],
        dataset="", seed=0,
    )  # fmt: skip
    return reason.covers(record)


def test_the_pages_figures_of_mx_scales_are_the_results() -> None:
    page = " ".join(Path("docs/methods.md").read_text().split())
    said = page.split("rtn's step error at", 1)[1].split(": level", 1)[0]
    found = {
        (r["model"], r["bits"]): float(r["step_error"])
        for r in rows(RESULTS / "mx_scales" / "table.csv")
        if r["method"] == "rtn"
    }
    up = " weight.scale_rounding=ceil activation.scale_rounding=ceil"
    ratios = [
        f"{found[model, bits + up] / found[model, bits]:.2g}"
        for bits in ("w8a8_mxfp8", "w4a4_mxfp4")
        for model in ("tiny_mmdit", "tiny_flux", "tiny_unet")
    ]
    assert re.findall(r"\d+\.\d+", said) == ratios


def test_the_pages_figures_of_codes_are_the_results() -> None:
    page = Path("docs/kernels.md").read_text()
    paragraph = page.split("**What DualScale buys", 1)[1].split("\n\n", 1)[0]
    found = re.findall(r"[\d.]+ \[[\d.]+, [\d.]+\]", " ".join(paragraph.split()))
    assert len(found) >= 2
    result = (RESULTS / "activation_codes.md").read_text()
    for text in found:
        assert text in result, text


def test_the_tables_of_committed_numbers_are_what_the_code_writes() -> None:
    search = json.loads((RESULTS / "alpha_search.json").read_text())
    rows = [alpha_check.Excess(**row) for row in search["rows"]]
    text = alpha_check.render(rows, command=search["command"])
    assert text == (RESULTS / "alpha_search.md").read_text()
    results = json.loads((RESULTS / "tiny_quality.json").read_text())
    assert quality.table(results) == (RESULTS / "tiny_quality.md").read_text()
