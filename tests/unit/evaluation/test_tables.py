import csv
import io
import math

import pytest

from evaluation.records import Metric, Record
from evaluation.report.columns import format_number, metric_cell
from evaluation.report.render import escape_latex, to_csv, to_latex, to_markdown
from evaluation.report.tables import make_table, sample_size, sort_records

LPIPS_REASON = "LPIPS needs torchvision's AlexNet weights"


def metric(value: float | None, width: float = 0.0, **changes) -> Metric:
    interval = None if value is None else [value - width, value + width]
    fields = {
        "value": value, "higher_is_better": True, "n": 256, "against": "reference",
        "interval": interval, "interval_kind": "bootstrap95",
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
        "fid_shapes_dataset": distance(5.0),
        "fid_shapes_reference": distance(1.0, against="reference"),
        "kid_shapes_dataset": distance(0.0012, 0.0001),
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


def rows_of(records: list[Record], **arguments) -> dict[str, dict[str, str]]:
    table = make_table(records, **arguments)
    keys = [column.key for column in table.columns]
    return {
        row.record.method: {
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
    assert rows["rtn"]["fid_shapes_dataset"].startswith("5.00 ± 0.10")
    assert rows["rtn"]["kid_shapes_dataset"].startswith("1.20 ± 0.10")  # printed times 1000
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


def test_what_cannot_be_told_from_the_floor_is_marked() -> None:
    records = [*make_records(), make_record("gptq", psnr=44.8), make_record("odd", psnr=80.0)]
    rows = rows_of(records)
    assert "~" in rows["gptq"]["psnr"]
    assert "~" in rows["odd"]["psnr"]
    assert "~" not in rows["rtn"]["psnr"]
    assert "~" not in rows["fp"]["psnr"]
    assert "~" in rows["rtn"]["fid_shapes_dataset"]  # equal to the floor's here
    assert any(line.startswith("~ ") for line in make_table(records).legend)


def test_a_distance_below_float_is_marked_and_never_bold() -> None:
    better = make_record("rtn", metrics={"fid_shapes_dataset": distance(3.0)})
    worse = make_record("gptq", metrics={"fid_shapes_dataset": distance(9.0)})
    table = make_table([better, worse, make_records()[3]])
    index = [column.key for column in table.columns].index("fid_shapes_dataset")
    cells = {row.record.method: row.cells[index] for row in table.rows}
    assert cells["rtn"].marks == ["↓fp"]
    assert not cells["rtn"].bold
    assert not cells["gptq"].bold
    # the same distances above fp: the clear winner is bold
    above = make_record("rtn", metrics={"fid_shapes_dataset": distance(6.0)})
    cells = {
        row.record.method: row.cells[index]
        for row in make_table([above, worse, make_records()[3]]).rows
    }
    assert cells["rtn"].bold
    assert not cells["gptq"].bold


def test_bold_needs_an_interval_clear_of_the_others() -> None:
    table = make_table([make_record("a", psnr=30.0), make_record("b", psnr=30.4)])
    assert not any(cell.bold for row in table.rows for cell in row.cells)
    table = make_table([make_record("a", psnr=30.0), make_record("b", psnr=33.0)])
    bold = [(row.record.method, c.text) for row in table.rows for c in row.cells if c.bold]
    assert bold == [("b", "33.00 [32.50, 33.50]")]
    other_bits = [make_record("a", psnr=30.0), make_record("b", "w4a8_int", psnr=33.0)]
    assert not any(cell.bold for row in make_table(other_bits).rows for cell in row.cells)


def test_skipped_failed_and_missing_rows_have_their_reasons() -> None:
    records = [
        *make_records(),
        make_record("svdquant", status="skipped", reason="no 3-bit grid"),
        make_record("gptq", status="failed", reason="Hessian is singular"),
    ]
    expected = [("tiny_mmdit", "rtn", "w8a8_int8"), ("tiny_mmdit", "smooth", "w8a8_int8")]
    table = make_table(records, expected=expected)
    text = to_markdown(table)
    assert "skipped (" in text
    assert "no 3-bit grid" in text
    assert "failed (" in text
    assert "Hessian is singular" in text
    assert "missing (" in text
    assert "no record on disk" in text
    rows = rows_of(records, expected=expected)
    assert rows["gptq"]["psnr"] == "-"
    assert rows["smooth"]["bits"] == "w8a8_int8"
    assert len(rows) == 7


def test_unavailable_metric_has_its_reason_once() -> None:
    text = to_markdown(make_table(make_records()))
    assert text.count(LPIPS_REASON) == 1
    assert "n/a (1)" in text


def test_rows_of_another_protocol_size_or_dataset_are_marked() -> None:
    steps = make_record("a", protocol={"num_inference_steps": 4})
    fewer = make_record(
        "b", metrics={k: distance(2.0, n=64) for k in ("psnr", "clip_score", "ssim",
        "fid_shapes_dataset", "fid_shapes_reference", "kid_shapes_dataset")},
    )  # fmt: skip
    other = make_record("c", dataset="mjhq")
    table = make_table([*make_records(), steps, fewer, other])
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
    best = make_record("best", psnr=90.0, dataset="easy")
    table = make_table([*make_records(), best])
    cells = [cell for row in table.rows if row.record.method == "best" for cell in row.cells]
    assert not any(cell.bold or "~" in cell.marks for cell in cells)


def test_damaged_images_show_in_the_table() -> None:
    damaged = Metric(value=3.0, higher_is_better=False, n=256, against="images")
    rows = rows_of([*make_records(), make_record("bad", metrics={"damaged_images": damaged})])
    assert "!" in rows["bad"]["method"]


def test_caption_prints_n_and_legend_explains_every_column() -> None:
    table = make_table(make_records(), title="Table 1")
    assert table.caption.startswith("Table 1; dataset shapes; n = 256 images")
    assert "step error on n = 16 prompts" in table.caption
    for column in table.columns:
        assert any(line.startswith(f"{column.title}: ") for line in table.legend)
    assert any("standard deviation" in line for line in table.legend)
    assert not any(column.title in ("FID", "fid") for column in table.columns)


def test_markdown_is_one_table() -> None:
    lines = to_markdown(make_table(make_records())).splitlines()
    pipes = [line for line in lines if line.startswith("|")]
    assert len(pipes) == 2 + 4
    assert len({line.count("|") for line in pipes}) == 1
    broken = make_record("rtn", status="failed", reason="a | b\nc")
    text = to_markdown(make_table([broken]))
    assert r"a \| b c" in text


def test_csv_is_full_precision() -> None:
    value = 1 / 3
    record = make_record("rtn", metrics={"psnr": metric(value, 0.1)})
    (row,) = csv.DictReader(io.StringIO(to_csv(make_table([record]))))
    assert float(row["psnr"]) == value
    assert float(row["psnr_low"]) == value - 0.1
    assert float(row["psnr_high"]) == value + 0.1
    assert row["lpips"] == ""
    assert LPIPS_REASON in row["notes"]
    assert row["status"] == "ok"
    assert float(row["weight_bytes"]) == 3_700_000  # printed in MB, kept in bytes
    assert row["kind"] == "method"
    (infinite,) = csv.DictReader(io.StringIO(to_csv(make_table([make_records()[3]]))))
    assert float(infinite["psnr"]) == math.inf


def test_latex_is_escaped() -> None:
    assert escape_latex("50% & a_b {x} #1 $ ~ ^ \\ <fp ±") == (
        r"50\% \& a\_b \{x\} \#1 \$ \textasciitilde{} \textasciicircum{} \textbackslash{} "
        r"\textless{}fp $\pm$"
    )
    text = to_latex(make_table(make_records()))
    assert r"segquant\_a" in text
    assert "5.00 $\\pm$ 0.10" in text
    assert r"$\infty$" in text
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")]
    assert len({line.count(" & ") for line in body.splitlines() if " & " in line}) == 1
    assert text.isascii()


def test_seed_gets_a_column_where_it_differs() -> None:
    one = make_table([make_record("rtn")])
    two = make_table([make_record("rtn"), make_record("rtn", seed=1)])
    assert "seed" not in [column.key for column in one.columns]
    assert "seed" in [column.key for column in two.columns]


def test_sample_size_and_empty_request() -> None:
    assert sample_size(make_record("rtn")) == 256
    with pytest.raises(ValueError, match="no records"):
        make_table([])


def test_columns_of_one_extractor_stand_together() -> None:
    metrics = {f"{name}_inception_dataset": distance(7.0) for name in ("fid", "kid")}
    metrics |= {"fid_inception_reference": distance(1.0), "mmd_inception_dataset": distance(2.0)}
    table = make_table([make_record("rtn", metrics=metrics)])
    assert [column.metric for column in table.columns if column.metric][:7] == [
        "fid_inception_dataset", "fid_inception_reference", "kid_inception_dataset",
        "fid_shapes_dataset", "fid_shapes_reference", "kid_shapes_dataset", "clip_score",
    ]  # fmt: skip
    assert "FID inception, dataset" in [column.title for column in table.columns]


def test_only_the_frechet_distance_to_the_dataset_is_a_shift() -> None:
    """Elsewhere a value better than the unquantized model's may be the best, and bold."""
    metrics = {"fid_shapes_dataset": distance(3.0), "kid_shapes_dataset": distance(0.0001, 1e-6)}
    table = make_table([make_record("gptq", metrics=metrics), *make_records()])
    cells = {
        (row.record.method, column.key): cell
        for row in table.rows
        for column, cell in zip(table.columns, row.cells, strict=True)
    }
    assert "↓fp" in cells["gptq", "fid_shapes_dataset"].marks
    assert not cells["gptq", "fid_shapes_dataset"].bold
    assert "↓fp" not in cells["gptq", "kid_shapes_dataset"].marks
    assert cells["gptq", "kid_shapes_dataset"].bold
