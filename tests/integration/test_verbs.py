"""The verbs other than run."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from experiments.config.places import options
from tests import micro
from tests.conftest import Answer

Segbench = Callable[..., Answer]
Small = Callable[..., list[str]]


def test_methods_lists_every_yaml_with_its_bits(segbench: Segbench) -> None:
    answer = segbench("methods", "--json")
    assert answer.status == 0
    rows = {row["method"]: row for row in json.loads(answer.out)}
    assert {"fp", "rtn", "smoothquant", "smooth_search", "gptq", "segquant_g"} <= set(rows)
    assert rows["fp"]["bits"] == ["w16a16"]
    assert {"w8a8_int8", "w4a8_int", "w4a4_int"} <= set(rows["segquant_a"]["bits"])
    assert rows["gptq"]["needs"]["gram"]
    untold = [
        (n, k) for n, row in rows.items() for k in ("source", "left_out", "cost") if not row[k]
    ]
    assert not untold
    table = segbench("methods").out
    assert max(map(len, table.splitlines())) < 140
    for row in rows.values():
        assert sum(line.startswith(f"| {row['method']} ") for line in table.splitlines()) == 2
    torchao = "o" if importlib.util.find_spec("torchao") is None else "x"
    for name, wanted in (("gptq", "x"), ("peer_torchao", torchao)):
        (line,) = (
            x for x in table.splitlines() if x.startswith(f"| {name} ") and x.count("|") > 10
        )
        assert line.split("|").count(f" {wanted} ") + line.split("|").count(f" {wanted}  ") >= 2


def test_a_named_method_is_told_whole(segbench: Segbench) -> None:
    whole = segbench("methods", "svdquant").out
    for words in ("2411.05007", "left out:", "cost:", "rank=32", "w4a4_int_group64"):
        assert words in whole
    every = segbench("methods", "all").out
    assert every.count("  source:") == len(json.loads(segbench("methods", "--json").out))
    refused = segbench("methods", "svdqant")
    assert (refused.status, refused.out) == (2, "")
    assert "'svdqant' is no method; there are adaround" in refused.err


def test_models_lists_every_yaml(segbench: Segbench) -> None:
    answer = segbench("models")
    assert answer.status == 0
    rows = {line.split("|")[1].strip(): line for line in answer.out.splitlines() if "|" in line}
    assert set(rows) >= set(options("model"))
    assert "| StableDiffusion3Pipeline " in rows["tiny_mmdit"]
    assert "| yes " in rows["tiny_mmdit"]
    assert "model.path=" in rows["folder"]
    flux = ("| FluxPipeline ", "| no ", "| 33.7 ", "-license, gated |", "/FLUX.1-dev ")
    assert all(word in rows["flux1_dev"] for word in flux), rows["flux1_dev"]


def test_inspect_shows_segments_of_a_model_by_name(segbench: Segbench) -> None:
    answer = segbench("inspect", "model=tiny_flux")
    assert answer.status == 0
    assert "proj_out" in answer.out
    assert json.loads(segbench("inspect", "model=tiny_flux", "--json").out)


def test_inspect_captures_the_inputs_of_a_denoiser_that_it_does_not_know(
    segbench: Segbench, tmp_path: Path
) -> None:
    words = ("model.height=16", "model.width=16")
    folder = micro.save_z_image(tmp_path / "z_image")
    answer = segbench("inspect", f"model.path={folder}", *words, "--json")
    assert answer.status == 0, answer.err
    layers = {one["name"]: one for one in json.loads(answer.out)["layers"]}
    assert layers["layers.0.adaLN_modulation.0"]["output_segments"] == [64] * 4
    assert layers["layers.0.adaLN_modulation.0"]["conditioning"] == "modulation"
    assert "modulation: 3" in segbench("inspect", f"model.path={folder}", *words).out


def test_inspect_of_nothing_is_refused_in_one_line(segbench: Segbench) -> None:
    answer = segbench("inspect", "model=tiny_fluks")
    assert answer.status == 2
    assert len(answer.err.strip().splitlines()) == 1
    assert "tiny_fluks" in answer.err


def test_overrides_may_follow_an_option(segbench: Segbench, tmp_path: Path) -> None:
    arguments = ("run", "+experiment=demo", "--dry-run", f"out={tmp_path}", "method=rtn", "--json")
    answer = segbench(*arguments)
    assert answer.status == 0, answer.err
    assert {row["method"] for row in json.loads(answer.out)["cells"]} == {"rtn"}


def test_a_dry_run_says_what_it_would_cost_and_does_nothing(
    segbench: Segbench, small: Small, tmp_path: Path
) -> None:
    arguments = small("tiny_mmdit", "method=fp,rtn,gptq", f"out={tmp_path}")
    answer = segbench("run", "-m", "--dry-run", "--json", *arguments)
    plan = json.loads(answer.out)
    assert [cell["state"] for cell in plan["cells"]] == ["skip", "run", "run"]
    assert plan["prompts"] == 6 * 3 + 4  # reference, two methods, one calibration for both
    assert not list(tmp_path.rglob("*.png"))


def test_the_table_comes_back_from_records_and_names_missing_cells(
    segbench: Segbench, small: Small, tmp_path: Path
) -> None:
    shared = small("tiny_mmdit", "bits=w8a8_int8", f"out={tmp_path}", "group=demo")
    assert segbench("run", "+experiment=demo", *shared, "method=rtn").status == 0
    answer = segbench("table", "demo", *shared, "method=rtn,gptq")
    assert answer.status == 0
    rows = [line for line in answer.out.splitlines() if line.startswith("| tiny_mmdit")]
    assert len(rows) == 2
    assert "ok" in rows[0]
    assert "missing" in rows[1]
    tex = segbench("table", "demo", *shared, "method=rtn,gptq", "--format", "tex")
    assert "tabular" in tex.out
    assert (tmp_path / "reports" / "demo" / "table.csv").is_file()


def test_the_version_is_the_packages(segbench: Segbench) -> None:
    answer = segbench("--version")
    assert (answer.status, answer.out.strip()) == (0, version("segquant-bench"))


def test_a_sweep_without_a_name_is_read_by_its_own_words(
    segbench: Segbench, small: Small, tmp_path: Path
) -> None:
    """Two sweeps lie beside each other, and no table of nothing is written over a real one."""
    shared = small("tiny_mmdit", "bits=w4a4_int_tensor", f"out={tmp_path}", "logger=none")
    both = [*shared, "method=rtn,smooth_search"]
    nothing = segbench("table", "-m", *both)
    assert (nothing.status, nothing.out) == (2, "")
    assert "no finished cell" in nothing.err
    assert not (tmp_path / "reports").exists()
    assert segbench("run", "-m", *both).status == 0
    alone = segbench("run", *shared, "method=rtn")
    assert alone.status == 0
    assert "1 cell in" in alone.err
    assert len(list((tmp_path / "reports").glob("sweep_*/table.md"))) == 2
    table = segbench("table", "-m", *both)
    rows = [line for line in table.out.splitlines() if line.startswith("| tiny_mmdit")]
    assert len(rows) == 2
    compared = segbench("compare", "-m", *both, "--against", "rtn")
    assert compared.status == 0, compared.err
    (row,) = (line for line in compared.out.splitlines() if line.startswith("| tiny_mmdit"))
    assert "smooth_search" in row
    assert len(list((tmp_path / "reports").glob("sweep_*/compare_rtn.csv"))) == 1


def test_compare_holds_rows_against_one_and_asks_for_reasons(
    segbench: Segbench, small: Small, tmp_path: Path
) -> None:
    shared = small(
        "tiny_mmdit",
        "bits=w4a4_int_tensor",
        f"out={tmp_path}",
        "group=demo",
        "metrics.teacher_forced_prompts=4",
    )
    nothing = segbench("compare", "demo", *shared, "method=rtn")
    assert (nothing.status, nothing.out) == (2, "")
    assert "no finished cell" in nothing.err
    both = [*shared, "method=rtn,smooth_search"]
    assert segbench("run", "+experiment=demo", *both).status == 0
    answer = segbench("compare", "demo", *both)
    assert answer.status == 0
    (row,) = (line for line in answer.out.splitlines() if line.startswith("| tiny_mmdit"))
    assert "smooth_search" in row
    assert (tmp_path / "reports" / "demo" / "compare_rtn.csv").is_file()
    assert (tmp_path / "reports" / "demo" / "compare_rtn_tiny_mmdit.png").is_file()
    absent = segbench("compare", "demo", *both, "--against", "gptq")
    assert absent.status == 2
    assert "no row of gptq; there are rtn, smooth_search" in absent.err

    (data,) = json.loads(segbench("compare", "demo", *both, "--json").out)
    better = data["step_error_ratio"]["value"] < 1
    worst = "rtn" if better else "smooth_search"
    other = "smooth_search" if better else "rtn"
    reasons = tmp_path / "reasons.yaml"
    reasons.write_text("- {methods: nobody, reason: none}\n")
    checked = segbench("compare", "demo", *both, "--against", other, "--reasons", str(reasons))
    if data["verdict"] != "not told apart":
        assert checked.status == 1
        assert f"worse than {other}, and no reason given: tiny_mmdit {worst}" in checked.err
        reasons.write_text(f"- {{methods: {worst}, reason: known}}\n")
        again = segbench("compare", "demo", *both, "--against", other, "--reasons", str(reasons))
        assert again.status == 0
        assert "- (1) known" in again.out
    for text in ("reason: no list\n", "- {methods: rtn}\n", "- [\n"):
        reasons.write_text(text)
        refused = segbench("compare", "demo", *both, "--reasons", str(reasons))
        assert refused.status == 2
        assert str(reasons) in refused.err
