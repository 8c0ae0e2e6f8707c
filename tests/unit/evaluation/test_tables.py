import csv
import io
import math
import re

import numpy as np
import pytest

from evaluation.records import Metric, Record
from evaluation.report.columns import Cell, format_number, metric_cell
from evaluation.report.render import escape_latex, to_csv, to_latex, to_markdown
from evaluation.report.rows import Scored, sample_size
from evaluation.report.tables import Table, make_table, sort_records

FID = "fid_shapes_dataset_same_prompts"
KID = "kid_shapes_dataset_same_prompts"
LPIPS_REASON = "LPIPS needs torchvision's AlexNet weights"


def metric(value: float | None, width: float = 0.0, **changes) -> Metric:
    interval = None if value is None else [value - width, value + width]
    fields = {
        "value": value, "higher_is_better": True, "n": 256, "against": "reference",
        "interval": interval, "interval_kind": "mean95",
    }  # fmt: skip
    return Metric(**{**fields, **changes})


def distance(value: float, sd: float = 0.1, *, against: str = "dataset", n: int = 256) -> Metric:
    return metric(
        value, sd, higher_is_better=False, against=against, standard_error=sd,
        interval_kind="sd", n=n,
    )  # fmt: skip


def make_record(method: str, bits: str = "w8a8_int8", *, psnr: float = 30.0, **changes) -> Record:
    metrics = {
        "psnr": metric(psnr, 0.5),
        FID: distance(5.0),
        "fid_shapes_reference": distance(1.0, against="reference"),
        KID: distance(0.0012, 0.0001),
        "clip_score": metric(61.234, 0.4, against="prompts"),
        "lpips": metric(None, n=0, note=LPIPS_REASON),
        "step_error": metric(0.0123, 0.001, higher_is_better=False, n=16),
    }
    metrics |= changes.pop("metrics", {})
    fields = {
        "run_id": method, "status": "ok", "model": "tiny_mmdit", "method": method, "bits": bits,
        "dataset": "shapes", "seed": 0, "execution": "simulated", "metrics": metrics,
        "protocol": {
            "weight_granularity": "per_channel", "activation_granularity": "per_token",
            "num_inference_steps": 8,
        },
        "effective_bits_per_weight": 8.25, "weight_bytes": 3_700_000,
    }  # fmt: skip
    return Record(**{**fields, **changes})


def make_records() -> list[Record]:
    return [
        make_record("rtn", psnr=20.0),
        make_record("segquant_a", psnr=28.0),
        make_record("noise_floor", "none", psnr=45.0, execution="float"),
        make_record(
            "fp", "none", psnr=math.inf, execution="float", seconds={"seconds_per_image": 0.25},
            metrics={"psnr": metric(math.inf, interval=[math.inf, math.inf])},
        ),
    ]  # fmt: skip


def table_of(records: list[Record], **arguments) -> Table:
    """Without scores image by image, unless they are given."""
    scores = arguments.pop("scores", {})
    cells = [Scored(record=record, scores=scores.get(record.run_id, {})) for record in records]
    return make_table(cells, **arguments)


def rows_of(records: list[Record], **arguments) -> dict[str, dict[str, str]]:
    table = table_of(records, **arguments)
    keys = [column.key for column in table.columns]
    return {
        row.pooled.record.method: {
            key: " ".join([cell.text, *cell.marks])
            for key, cell in zip(keys, row.cells, strict=True)
        }
        for row in table.rows
    }


def test_float_first_then_floor_then_methods_as_given() -> None:
    order = [record.method for record in sort_records(make_records())]
    assert order == ["fp", "noise_floor", "rtn", "segquant_a"]
    other = [make_record("gptq", model="other"), make_record("fp", model="other"), *make_records()]
    assert [(r.model, r.method) for r in sort_records(other)][:3] == [
        ("other", "fp"), ("other", "gptq"), ("tiny_mmdit", "fp"),
    ]  # fmt: skip


def test_values_come_with_their_uncertainty() -> None:
    rows = rows_of(make_records())
    assert rows["rtn"]["psnr"] == "20.00 [19.50, 20.50]"
    assert rows["rtn"]["clip_score"].startswith("61.23 [60.83, 61.63]")
    assert rows["rtn"][FID].startswith("5.00 ± 0.10")
    assert rows["rtn"][KID].startswith("1.20 ± 0.10")  # printed times 1000
    assert rows["rtn"]["step_error"].startswith("1.23 [1.13, 1.33]")  # printed in percent
    assert rows["fp"]["psnr"] == "∞"
    assert rows["rtn"]["granularity"] == "per_channel / per_token"


@pytest.mark.parametrize(
    ("value", "width", "text"),
    [
        (1234.5678, 45.6, "1235 [1189, 1280]"),
        (0.98765, 0.00123, "0.9877 [0.9864, 0.9889]"),
        (5.0, 0.0, "5.00"),
        (-0.001, 0.5, "0.00 [-0.50, 0.50]"),
    ],
)
def test_digits_follow_the_uncertainty(value: float, width: float, text: str) -> None:
    assert metric_cell(metric(value, width)).text == text


def test_format_number() -> None:
    assert format_number(math.nan, decimals=2) == "NaN"
    assert format_number(-math.inf, decimals=2) == "-∞"
    assert format_number(3e-9, decimals=6) == "3.0e-09"
    assert format_number(-0.0001, decimals=2) == "0.00"


def test_speed_of_a_simulated_row_is_not_applicable() -> None:
    records = make_records()
    records[0].seconds["seconds_per_image"] = 9.0
    rows = rows_of(records)
    assert rows["rtn"]["seconds_per_image"] == "n/a"
    assert rows["fp"]["seconds_per_image"] == "0.250"


PROMPTS = [f"p{n}" for n in range(24)]
BASE = {
    "psnr": 30 + 5 * np.random.default_rng(0).normal(size=24),
    "clip": 90 + 5 * np.random.default_rng(1).normal(size=24),
    FID: 5 + np.random.default_rng(2).normal(size=24),
}


def measured(
    method: str, bits: str = "w8a8_int8", *, draw: int = 0, seed: int = 0, noise: float = 0.05,
    **shifts: float,
) -> Scored:  # fmt: skip
    """A row whose scores lie `shifts` above what all rows share, prompt by prompt."""
    generator = np.random.default_rng([len(method), draw])
    scores = {
        name: base + shifts.get(name, 0.0) + noise * generator.normal(size=24)
        for name, base in BASE.items()
    }
    entries = {
        "psnr": metric(float(scores["psnr"].mean()), 1.0, n=24),
        "clip_score": metric(float(scores["clip"].mean()), 1.0, against="prompts", n=24),
        FID: distance(float(scores[FID].mean()), 0.3, n=24),
    }
    return Scored(
        record=Record(
            run_id=f"{method}{bits}{draw}{seed}", status="ok", model="m", method=method, bits=bits,
            dataset="d", seed=seed, metrics=entries,
            protocol={"calibration_prompts_hash": str(draw), "calibration_prompts": 4},
        ),
        scores={k: dict(zip(PROMPTS, v.tolist(), strict=True)) for k, v in scores.items()},
    )  # fmt: skip


def cells_of(cells: list[Scored]) -> dict[tuple[str, str], Cell]:
    table = make_table(cells)
    return {
        (row.pooled.record.method, column.key): cell
        for row in table.rows
        for column, cell in zip(table.columns, row.cells, strict=True)
    }


def unquantized(seed: int = 0, **shifts: float) -> list[Scored]:
    return [
        measured("fp", "w16a16", seed=seed, noise=0.0, **shifts),
        measured("noise_floor", "w16a16", seed=seed, noise=0.001, **{"psnr": 10, **shifts}),
    ]


def test_noise_is_told_by_paired_differences() -> None:
    """Intervals of single rows all overlap here; the differences from fp do not."""
    cells = cells_of(
        [
            *unquantized(),
            measured("less", clip=-0.5, noise=0.05),
            measured("same", noise=0.0, psnr=10),
            measured("closer", psnr=20),
        ]
    )
    assert "~" not in cells["less", "clip_score"].marks  # z = -50, within the interval of fp
    assert "~" in cells["same", "clip_score"].marks
    assert "~" not in cells["less", "psnr"].marks
    assert "~" in cells["closer", "psnr"].marks  # nearer to the reference than the floor
    assert "~" in cells["same", "psnr"].marks
    assert not any("~" in cells["fp", key].marks for key in ("psnr", "clip_score"))
    table = make_table([*unquantized(), measured("same", noise=0.0)])
    assert any(line.startswith("~ cannot be told") for line in table.legend)


def test_a_distance_below_float_by_its_paired_interval_is_marked_and_never_bold() -> None:
    rows = [
        measured(name, draw=d, **{FID: shift})
        for name, shift in (("below", -0.4), ("worse1", 0.8), ("noisy", -0.001))
        for d in range(3)
    ]
    cells = cells_of([*unquantized(), *rows])
    assert cells["below", FID].marks == ["↓fp"]
    assert not cells["below", FID].bold
    assert "↓fp" not in cells["worse1", FID].marks
    assert "↓fp" not in cells["noisy", FID].marks  # below by its value alone
    above = [row for row in rows if row.record.method != "below"]
    assert cells_of([*unquantized(), *above])["noisy", FID].bold


def test_each_seed_meets_its_own_float_row() -> None:
    """rtn of seed 1 lies below its own fp, and above that of seed 0."""
    cells = make_table(
        [
            *unquantized(seed=0, **{FID: -2.0}),
            *unquantized(seed=1),
            measured("rtn", seed=1, **{FID: -0.5}),
        ]
    )
    (row,) = (row for row in cells.rows if row.pooled.record.method == "rtn")
    index = [column.key for column in cells.columns].index(FID)
    assert "↓fp" in row.cells[index].marks


def test_bold_needs_draws_and_a_difference_from_every_rival() -> None:
    def bold(*rows: tuple[str, float], draws: int, noise: float = 0.05) -> list[str]:
        cells = [
            measured(name, psnr=shift, draw=d, noise=noise)
            for name, shift in rows
            for d in range(draws)
        ]
        found = make_table(cells)
        return [r.pooled.record.method for r in found.rows for c in r.cells if c.bold]

    assert bold(("a", 0.0), ("bb", 1.0), draws=3) == ["bb"]  # every single interval overlaps
    assert bold(("a", 0.0), ("bb", 1.0), draws=1) == []
    assert bold(("a", 0.0), ("bb", 1.0), draws=2) == []
    assert bold(("a", 0.0), ("bb", 1.0), ("ccc", 1.001), draws=3) == []
    assert bold(("a", 0.0), ("bb", 0.0), draws=3) == []
    lone = [measured("a", draw=d) for d in range(3)]
    other_bits = [measured("bb", "w4a8_int", psnr=3, draw=d) for d in range(3)]
    assert not any(c.bold for r in make_table([*lone, *other_bits]).rows for c in r.cells)
    one = make_table([measured("a"), measured("bb", psnr=3.0)])
    assert any(line.startswith("Nothing is bold: a winner has to win") for line in one.legend)
    assert "1 calibration draw." in one.caption


def test_draws_are_one_row_with_an_interval_over_both() -> None:
    cells = [measured("rtn", psnr=shift, draw=d) for d, shift in enumerate((0.0, 3.0, -3.0))]
    table = make_table([*unquantized(), *cells])
    assert [row.pooled.record.method for row in table.rows] == ["fp", "noise_floor", "rtn"]
    row = table.rows[-1]
    by_key = dict(zip((c.key for c in table.columns), row.cells, strict=True))
    assert by_key["calibration"].text == "4 prompts, 3 draws"
    values = [cell.record.metrics["psnr"].value for cell in cells]
    assert by_key["psnr"].value == pytest.approx(sum(values) / 3)
    width = by_key["psnr"].high - by_key["psnr"].low
    assert width > 2 * 3  # of the draws: each row alone has 2
    assert by_key[FID].text.count("±") == 1
    other = measured("rtn", draw=5)
    other.record.protocol["calibration_prompts"] = 8  # no draw of the same
    assert len(make_table([*cells, other]).rows) == 2
    assert len(make_table([cells[0], cells[0]]).rows) == 1  # one record twice


def test_without_scores_nothing_is_claimed() -> None:
    table = table_of([make_record("a", psnr=30.0), make_record("b", psnr=90.0), *make_records()])
    assert not any(c.bold or set(c.marks) & {"~", "↓fp"} for r in table.rows for c in r.cells)


def test_identical_images_stand_beside_the_mean() -> None:
    count = Metric(value=3.0, higher_is_better=True, n=256, against="reference")
    rows = rows_of([make_record("rtn", metrics={"psnr_identical": count})])
    assert rows["rtn"]["psnr"] == "30.00 [29.50, 30.50] (= 3)"


@pytest.mark.parametrize(("n", "said"), [(16, " (biased, n = 16)"), (5000, "")])
def test_a_frechet_distance_of_few_images_says_so(n: int, said: str) -> None:
    record = make_record(
        "rtn", metrics={FID: distance(5.0, n=n), "fid_shapes_reference": distance(1.0, n=n)}
    )
    titles = [column.title for column in table_of([record]).columns]
    assert f"FID shapes, dataset{said}" in titles
    assert f"FID shapes, reference{said}" in titles


@pytest.mark.parametrize(("n", "last"), [(2047, True), (2048, False)])
def test_a_frechet_distance_of_few_images_is_no_headline(n: int, last: bool) -> None:
    """Its columns, and its difference from fp, come after every other metric's."""
    delta = metric(0.1, 0.05, against="fp", n=n)
    record = make_record("rtn", metrics={FID: distance(5.0, n=n), f"{FID}_delta": delta})
    record.metrics.pop("fid_shapes_reference", None)  # which has its own number
    table = table_of([record])
    order = [column.metric for column in table.columns if column.metric]
    assert (order.index(FID) > order.index("step_error")) is last
    assert order.index(f"{FID}_delta") == order.index(FID) + 1
    assert any("fewer than 2,048 images it is no headline" in x for x in table.legend) is last


def test_a_table_says_how_many_images_tell_its_rows_apart() -> None:
    rows = [measured("a", psnr=0.0, noise=0.5), measured("bb", psnr=0.4, noise=0.5)]
    (line,) = (x for x in make_table(rows).legend if x.startswith("Images (of the step error"))
    a, b = (np.array(list(row.scores["psnr"].values())) for row in rows)
    spread = float((b - a).std(ddof=1) / abs((b - a).mean()))
    said = int(re.search(r"PSNR dB ([\d,]+)", line)[1])
    assert said == pytest.approx((2.8 * spread) ** 2, abs=3)
    draws = [measured(m, psnr=s, draw=d) for m, s in (("a", 0.0), ("bb", 0.4)) for d in range(3)]
    assert not any(x.startswith("Images (of") for x in make_table(draws).legend)


def test_skipped_failed_and_missing_rows_have_their_reasons() -> None:
    records = [
        *make_records(),
        make_record("svdquant", status="skipped", reason="no 3-bit grid"),
        make_record("gptq", status="failed", reason="Hessian is singular"),
    ]
    missing = [("tiny_mmdit", "smooth", "w8a8_int8")] * 2
    table = table_of(records, missing=missing)
    text = to_markdown(table)
    assert "skipped (" in text
    assert "no 3-bit grid" in text
    assert "failed (" in text
    assert "Hessian is singular" in text
    assert "missing (" in text
    assert "no record on disk" in text
    rows = rows_of(records, missing=missing)
    assert rows["gptq"]["psnr"] == "-"
    assert rows["smooth"]["bits"] == "w8a8_int8"
    assert len(rows) == 7


def test_unavailable_metric_has_its_reason_once() -> None:
    text = to_markdown(table_of(make_records()))
    assert text.count(LPIPS_REASON) == 1
    assert "n/a (1)" in text


def test_rows_of_another_protocol_size_or_dataset_are_marked() -> None:
    steps = make_record("a", protocol={"num_inference_steps": 4})
    fewer = make_record(
        "b", metrics={k: distance(2.0, n=64) for k in ("psnr", "clip_score", "ssim",
        FID, "fid_shapes_reference", KID)},
    )  # fmt: skip
    other = make_record("c", dataset="mjhq")
    table = table_of([*make_records(), steps, fewer, other])
    rows = rows_of([*make_records(), steps, fewer, other])
    for name in ("a", "b", "c"):
        assert "‡" in rows[name]["method"]
    assert "‡" not in rows["rtn"]["method"]
    assert "‡" not in rows["fp"]["method"]
    notes = " ".join(table.notes)
    assert "num_inference_steps=4 instead of 8" in notes
    assert "n=64 instead of 256" in notes
    assert "dataset='mjhq'" in notes
    assert "n = 64, 256" in table.caption


def test_marked_rows_take_no_part_in_bold_or_floor() -> None:
    elsewhere = [measured("best", psnr=30.0, draw=d) for d in range(3)]
    for cell in elsewhere:
        cell.record.dataset = "easy"
    rows = [measured("a", draw=d) for d in range(3)]
    cells = cells_of([*unquantized(), *rows, *elsewhere])
    assert "‡" in cells["best", "method"].marks
    assert not cells["best", "psnr"].bold
    assert "~" not in cells["best", "psnr"].marks


def test_damaged_images_show_in_the_table() -> None:
    damaged = Metric(value=3.0, higher_is_better=False, n=256, against="images")
    rows = rows_of([*make_records(), make_record("bad", metrics={"damaged_images": damaged})])
    assert "!" in rows["bad"]["method"]


def test_caption_prints_n_and_legend_explains_every_column() -> None:
    table = table_of(make_records(), title="Table 1")
    assert table.caption.startswith("Table 1; dataset shapes; n = 256 images")
    assert "step error on n = 16 prompts" in table.caption
    for column in table.columns:
        assert any(line.startswith(f"{column.title}: ") for line in table.legend)
    assert any("standard deviation" in line for line in table.legend)
    assert not any(column.title in ("FID", "fid") for column in table.columns)


def test_markdown_is_one_table() -> None:
    lines = to_markdown(table_of(make_records())).splitlines()
    pipes = [line for line in lines if line.startswith("|")]
    assert len(pipes) == 2 + 4
    assert len({line.count("|") for line in pipes}) == 1
    broken = make_record("rtn", status="failed", reason="a | b\nc")
    text = to_markdown(table_of([broken]))
    assert r"a \| b c" in text


def test_csv_is_full_precision() -> None:
    value = 1 / 3
    record = make_record("rtn", metrics={"psnr": metric(value, 0.1)})
    (row,) = csv.DictReader(io.StringIO(to_csv(table_of([record]))))
    assert float(row["psnr"]) == value
    assert float(row["psnr_low"]) == value - 0.1
    assert float(row["psnr_high"]) == value + 0.1
    assert row["lpips"] == ""
    assert LPIPS_REASON in row["notes"]
    assert row["status"] == "ok"
    assert float(row["weight_bytes"]) == 3_700_000  # printed in MB, kept in bytes
    assert row["kind"] == "method"
    (infinite,) = csv.DictReader(io.StringIO(to_csv(table_of([make_records()[3]]))))
    assert float(infinite["psnr"]) == math.inf


def test_latex_is_escaped() -> None:
    assert escape_latex("50% & a_b {x} #1 $ ~ ^ \\ <fp ±") == (
        r"50\% \& a\_b \{x\} \#1 \$ \textasciitilde{} \textasciicircum{} \textbackslash{} "
        r"\textless{}fp $\pm$"
    )
    text = to_latex(table_of(make_records()))
    assert r"segquant\_a" in text
    assert "5.00 $\\pm$ 0.10" in text
    assert r"$\infty$" in text
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")]
    assert len({line.count(" & ") for line in body.splitlines() if " & " in line}) == 1
    assert text.isascii()


def test_seed_gets_a_column_where_it_differs() -> None:
    one = table_of([make_record("rtn")])
    two = table_of([make_record("rtn"), make_record("rtn", seed=1)])
    assert "seed" not in [column.key for column in one.columns]
    assert "seed" in [column.key for column in two.columns]


def test_sample_size_and_empty_request() -> None:
    assert sample_size(make_record("rtn")) == 256
    with pytest.raises(ValueError, match="no records"):
        table_of([])


def test_columns_of_one_extractor_stand_together() -> None:
    metrics = {
        f"{name}_inception_dataset_same_prompts": distance(7.0, n=4000) for name in ("fid", "kid")
    }
    metrics |= {
        "fid_inception_reference": distance(1.0, n=4000),
        "mmd_inception_dataset_same_prompts": distance(2.0),
    }
    table = table_of([make_record("rtn", metrics=metrics)])
    assert [column.metric for column in table.columns if column.metric][:7] == [
        "fid_inception_dataset_same_prompts", "fid_inception_reference",
        "kid_inception_dataset_same_prompts", KID, "clip_score", "psnr", "lpips",
    ]  # fmt: skip
    titles = [column.title for column in table.columns]
    assert "FID inception, dataset (biased, n = 4000)" in titles
