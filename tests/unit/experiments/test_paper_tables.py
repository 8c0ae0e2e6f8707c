"""Our cells beside a paper's, and the committed tables: what is kept says what they say."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evaluation.records import Metric, Record
from evaluation.report.chart_files import chart_stamp, read_stamp
from evaluation.report.render import to_csv, to_latex, to_markdown
from evaluation.report.rows import Scored
from experiments import cli
from experiments.config.compose import build_cell
from experiments.config.places import options
from experiments.config.run_config import RunConfig
from experiments.errors import UserError
from experiments.paper import draws_apart
from experiments.paper.checked_findings import README, found_text, read_topics, with_findings
from experiments.paper.claims import CONFIRMED, CONTRADICTED, claims_table, find_claims
from experiments.paper.joined_table import Asked, experiment_table
from experiments.paper.keep_results import KEPT_RESULTS, charts_of, kept_stamp, rendered
from experiments.paper.kept_cells import KEPT, kept_text, missing_of, read_kept
from experiments.paper.paper_charts import FIGURES, write_charts
from experiments.paper.paper_setup import PaperSetup, config_of, paper_setup
from experiments.paper.published_numbers import (
    PROTOCOL_FIELDS,
    UNKNOWN,
    Provenance,
    PublishedRow,
    PublishedTable,
)
from experiments.paper.studies_of_stages import Measured

PROMPTS = [f"p{number}" for number in range(8)]
NAMES = ("fp", "rtn", "segquant_a")


def config(method: str, *, draw: int = 0) -> RunConfig:
    bits = "w16a16" if method == "fp" else "w8a8_int8"
    line = [f"method={method}", f"bits={bits}", f"dataset.calibration_seed={draw}"]
    return build_cell(line, method_name=method)


def cell(method: str, psnr: float, *, draw: int = 0, **changed: Any) -> Scored:
    scores = {name: psnr + 0.01 * number for number, name in enumerate(PROMPTS)}
    metric = Metric(
        value=psnr,
        higher_is_better=True,
        n=len(PROMPTS),
        against="reference",
        interval=[psnr - 1, psnr + 1],
        interval_kind="bootstrap95",
    )
    record = Record(
        run_id=f"{method}{draw}",
        status="ok",
        model="tiny_mmdit",
        method=method,
        bits="w16a16" if method == "fp" else "w8a8_int8",
        dataset="shapes",
        seed=0,
        metrics={"psnr": metric},
        protocol={
            "calibration_prompts_hash": str(draw),
            "calibration_prompts": 32,
            "calibration_seed": draw,
        },
    )
    return Scored(record=replace(record, **changed), scores={"psnr": scores})


def published(**values: float) -> PaperSetup:
    provenance = Provenance(source="a paper", read_by="us", verified=False)
    rows = tuple(
        PublishedRow(
            at={"model": "large", "method": method},
            name=method.upper(),
            values={"psnr": value},
            protocol=dict.fromkeys(PROTOCOL_FIELDS, UNKNOWN),
            provenance=provenance,
        )
        for method, value in values.items()
    )
    table = PublishedTable(
        key="a/t", paper="A", title="T", about="x", columns={"psnr": "psnr"}, rows=rows
    )
    return PaperSetup(table=table, stands_for={"tiny_mmdit": "large"})


ASKED = Asked(name="demo", words=(), configs=tuple(config(name) for name in NAMES))


def joined(cells: list[Scored], setup: PaperSetup) -> str:
    missing = missing_of(cells, ASKED.configs)
    return to_markdown(experiment_table(cells, ASKED, setup=setup, missing=missing))


def test_a_row_has_both_numbers_their_difference_and_the_protocols_distance() -> None:
    text = joined(
        [cell("fp", 50), cell("rtn", 30), cell("segquant_a", 33)],
        published(fp=50.5, rtn=28.0, segquant_a=34.0),
    )
    line = next(line for line in text.splitlines() if "| SEGQUANT_A" in line)
    assert "34.0 unverified" in line
    assert "| -1.0 0/1/" in " ".join(line.split())
    assert "0 agree, 1 differ" in line
    assert "differ: model tiny_mmdit (paper: large)" in text
    assert "may be compared" not in text.splitlines()[0]


def test_an_unquantized_row_that_is_off_forbids_every_comparison() -> None:
    text = joined(
        [cell("fp", 50), cell("rtn", 30), cell("segquant_a", 33)],
        published(fp=60.0, rtn=28.0, segquant_a=34.0),
    )
    assert "nothing below it may be compared" in text.splitlines()[0]
    assert "(-1.0)" in text
    text = joined([cell("rtn", 30)], published(fp=60.0, rtn=28.0))
    assert "is not known" in text.splitlines()[0]
    assert "(+2.0)" in text


def test_missing_failed_and_skipped_cells_are_printed_and_their_command_too() -> None:
    failed = cell("rtn", 30, status="failed", reason="broke <b>")
    skipped = cell("segquant_a", 30, status="skipped", reason="cannot")
    setup = published(fp=50.0, rtn=28.0, other=3.0)
    text = joined([failed, skipped], setup)
    for words in ("missing", "failed", "skipped", "not here"):
        assert f"| {words}" in text
    assert "Missing: 1 of 3 cells. This makes them: segbench run +experiment=demo" in text
    assert "This tries them again: segbench retry demo" in text
    assert "broke \\<b>" in text
    text = joined([], setup)
    assert "Missing: 3 of 3 cells" in text
    table = experiment_table([failed], ASKED, setup=setup, missing=[])
    assert r"broke \textless{}b\textgreater{}" in to_latex(table)
    assert "broke <b>" in to_csv(table)


def test_a_claim_is_confirmed_or_contradicted_by_draws_and_prompts() -> None:
    cells = [cell("fp", 50)]
    for draw in range(3):
        cells += [cell("rtn", 30 + draw / 100, draw=draw), cell("segquant_a", 33, draw=draw)]
    for values, said in (
        ({"rtn": 20.0, "segquant_a": 21.0}, CONFIRMED),
        ({"rtn": 21.0, "segquant_a": 20.0}, CONTRADICTED),
    ):
        table = claims_table(find_claims(cells, ASKED, setup=published(**values)), title="demo")
        assert table is not None
        assert [row.cells[-1].text for row in table.rows] == [said]
        assert table.rows[0].cells[-2].text == "3"


def test_what_is_kept_is_read_back(tmp_path: Path) -> None:
    cells = [cell("rtn", 30.123456789), cell("fp", float("inf"))]
    path = tmp_path / KEPT
    path.write_text(kept_text(cells))
    back = read_kept(path)
    assert [one.record.metrics for one in back] == [one.record.metrics for one in cells]
    assert back[0].scores["psnr"]["p0"] == 30.1235
    configs = [*ASKED.configs, config("rtn", draw=1)]
    assert missing_of(back, configs) == [
        ("tiny_mmdit", "segquant_a", "w8a8_int8"),
        ("tiny_mmdit", "rtn", "w8a8_int8"),
    ]


def test_a_row_is_of_its_config_in_whatever_order_its_settings_are() -> None:
    line = ["method=segquant_a", "method.seg_linear=false", "method.dual_scale=false"]
    built = build_cell(line, method_name="segquant_a")
    settings = {"method.dual_scale": False, "method.seg_linear": False}
    assert config_of(cell("segquant_a", 1, settings=settings).record, [built]) is built
    assert config_of(cell("segquant_a", 1).record, [built]) is None


def test_a_table_of_nothing_yet_names_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = cli.main(["table", "paper_dci", f"out={tmp_path}"])
    said = capsys.readouterr().out
    assert status == 0
    assert "Missing: 5 of 5 cells" in said
    assert f"segbench run +experiment=paper_dci out={tmp_path}" in said
    assert "22.19 unverified" in said


def test_a_study_without_its_device_names_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert cli.main(["table", "paper_kernels", f"out={tmp_path}"]) == 0
    said = capsys.readouterr().out
    assert "missing (1): device='cuda', but torch sees no CUDA device" in said
    assert f"This makes them: segbench table paper_kernels out={tmp_path}" in said


def test_what_quantizing_took_stands_in_columns_when_asked_for() -> None:
    dear = cell("rtn", 30, extra_macs_fraction=0.25, calibration_forwards=49)
    coded = cell("segquant_a", 33, extra_macs_fraction=0.25, quantize_peak_memory_bytes=3 * 10**9)
    coded.record.protocol["extra_products_of_codes"] = 0.0
    setup = PaperSetup(costs=True)
    table = experiment_table([dear, coded], ASKED, setup=setup, missing=[])
    made = {
        column.key: [row.cells[at].text for row in table.rows]
        for at, column in enumerate(table.columns)
    }
    assert made["extra_macs_fraction"] == ["25.00", "0.00"]
    assert made["calibration_forwards"] == ["49", "-"]
    assert made["quantize_peak_memory_bytes"] == ["-", "3.00"]
    plain = experiment_table([dear, coded], ASKED, setup=None, missing=[])
    assert "extra_macs_fraction" not in {column.key for column in plain.columns}


def test_draws_are_set_against_methods() -> None:
    measured = Measured(head=draws_apart._HEAD)
    for method, values in {"rtn": (3.0, 5.0), "gptq": (4.0, 6.0), "mine": (4.5, 5.5)}.items():
        for draw, value in enumerate(values):
            measured.add(
                **{"model": "m", "method": method, "bits": "b", "draw": draw},
                **{"metric": "psnr", "better": "higher", "value": value},
            )
    measured.add(model="m", method="late", bits="b", draw=0, missing="no record in the store")
    text = to_markdown(draws_apart.table(measured, asked=ASKED, setup=PaperSetup()))
    rows = {line.split("|")[3].strip(): line for line in text.splitlines() if "| PSNR dB" in line}
    assert "1 of 2" in rows["gptq"], rows
    assert "1 of 2" in rows["mine"]
    assert "0 of 2" in rows["rtn"]
    assert "1.41" in rows["rtn"]  # between its draws
    assert "0.577" in rows["rtn"]  # between 4, 5 and 5
    assert "missing (1): no record in the store" in text


FOLDERS = sorted(path for path in KEPT_RESULTS.iterdir() if path.is_dir())


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_a_committed_table_is_what_its_records_say(folder: Path) -> None:
    assert folder.name in options("experiment")
    for file, text in rendered(folder.name, folder).items():
        assert (folder / file).read_text(encoding="utf-8") == text, file
        if file == "table.md":
            ways = (f"segbench run +experiment={folder.name}", f"segbench table {folder.name}")
            assert any(f"Made by: {way}" in text for way in ways)
    for stem, spec, values in charts_of(folder.name, folder):
        for suffix in (".png", ".pdf"):
            assert read_stamp(folder / f"{stem}{suffix}") == chart_stamp(spec, values)
    for sheet in folder.glob("contact_sheet_*.png"):
        assert read_stamp(sheet) == kept_stamp(folder / KEPT)


def test_a_stale_table_is_seen(tmp_path: Path) -> None:
    folder = tmp_path / FOLDERS[0].name
    shutil.copytree(FOLDERS[0], folder)
    kept = next(path for path in (folder / KEPT, folder / "measured.csv") if path.is_file())
    kept.write_text(kept.read_text().replace(": 5", ": 6").replace(",5", ",6"))
    made = rendered(folder.name, folder)
    assert any((folder / file).read_text() != text for file, text in made.items())


def test_every_tiny_experiment_has_its_result() -> None:
    tiny = {name for name in options("experiment") if name.startswith("tiny_")}
    on_tiny_models = {"baselines_2026", "baselines_2026_why"}  # which are no twins
    assert tiny | on_tiny_models == {folder.name for folder in FOLDERS}


def test_a_figure_is_asked_for_and_there() -> None:
    asked = {folder.name for folder in FOLDERS if (setup_of(folder).figure or "") in FIGURES}
    drawn = {folder.name for folder in FOLDERS if any(folder.glob("*.png"))}
    assert asked == drawn


def setup_of(folder: Path) -> PaperSetup:
    return paper_setup(folder.name) or PaperSetup()


def test_a_figure_of_other_numbers_is_stale(tmp_path: Path) -> None:
    folder = KEPT_RESULTS / "tiny_paper_error_over_time"
    ((stem, spec, values),) = charts_of(folder.name, folder)
    values[0]["error"] += 1
    assert read_stamp(folder / f"{stem}.png") != chart_stamp(spec, values)
    (one, two) = write_charts([(stem, spec, values)], tmp_path)
    assert {read_stamp(one), read_stamp(two)} == {chart_stamp(spec, values)}
    assert two.read_bytes().startswith(b"%PDF")


def test_the_readme_says_what_the_tables_say() -> None:
    readme = README.read_text(encoding="utf-8")
    assert with_findings(readme, found_text(read_topics())) == readme


def test_a_sentence_that_its_table_does_not_bear_out_is_refused() -> None:
    topics = read_topics()
    (topic, finding) = next(
        (topic, one) for topic in topics for one in topic.findings if one.relation == "above"
    )
    turned = replace(topic, findings=(replace(finding, a=finding.b, b=finding.a),))
    with pytest.raises(UserError, match="does not bear out"):
        found_text([turned])
    alike = replace(topic, findings=(replace(finding, relation="alike"),))
    with pytest.raises(UserError, match="is not alike"):
        found_text([alike])
    with pytest.raises(UserError, match="no row"):
        found_text([replace(topic, findings=(replace(finding, a={"model": "other"}),))])
