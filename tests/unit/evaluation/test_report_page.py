"""The report page: one file that asks nobody for anything, with the table's own texts in it."""

from __future__ import annotations

import base64
import gzip
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from evaluation.records import Metric, Record
from evaluation.report import page_html
from evaluation.report.chart_files import chart_javascript, write_chart
from evaluation.report.chart_specs import LAYER_KINDS, Axis, Names, error_over_steps, pareto
from evaluation.report.page_data import (
    Histogram,
    InputRange,
    LayerPoint,
    PageData,
    Picture,
    Reference,
    RowExtras,
    StepPoint,
)
from evaluation.report.page_html import render_page
from evaluation.report.page_rows import axes, first_axes, names_of, pareto_values
from evaluation.report.rows import Scored
from evaluation.report.tables import make_table

NASTY = "</script><img src=x onerror=alert(1)> & \"q\" 'a' <!-- {{1}}"
PIXEL = "data:image/webp;base64,UklGRhIAAABXRUJQVlA4TAYAAAAvQWxvAGs="
SCRIPT = "window.vegaEmbed = async () => 0; // </script> stands in for Vega"


def record(method: str, **changes: Any) -> Record:
    value = changes.pop("psnr", 30.0)
    interval = [value - 1, value + 1]
    psnr = Metric(
        value=value, higher_is_better=True, n=8, against="reference", interval=interval,
        interval_kind="mean95",
    )  # fmt: skip
    error = Metric(value=0.02, higher_is_better=False, n=4, against="reference")
    given = {
        "run_id": f"id {method}", "status": "ok", "model": "tiny", "method": method,
        "bits": "w8a8_int8", "dataset": "shapes", "seed": 0, "execution": "simulated",
        "metrics": {"psnr": psnr, "step_error": error}, "weight_bytes": 4_000_000,
        "effective_bits_per_weight": 8.0, "seconds": {"images": 77.7, "seconds_per_image": 9.9},
        "layers_kept": [{"name": "proj_out", "reason": "keep pattern proj_out"}],
    }  # fmt: skip
    return Record(**{**given, **changes})


def records() -> list[Record]:
    fp = record("fp", execution="float", psnr=math.inf)
    return [
        fp,
        record("rtn"),
        record("gptq", psnr=35.0, settings={"method.note": NASTY}),
        record("tac", status="skipped", reason=NASTY, metrics={}),
        record("soft", status="failed", reason=f"ValueError: {NASTY}", traceback=NASTY, metrics={}),
    ]


def page_of(given: list[Record], *, title: str = "demo") -> PageData:
    table = make_table(
        [Scored(record=one) for one in given], missing=[("tiny", "lost", "w4")], title=title
    )
    rows = [RowExtras(command=f"segbench run # {NASTY}") for _ in table.rows]
    rows[1] = RowExtras(
        command="segbench run method=rtn",
        layers=[
            LayerPoint(
                name=NASTY, error=0.01, shape="4 → 8", output_segments="4 x 2", input_segments="",
                dual_scale="",
            )
        ],
        inputs="abc",
        steps=[StepPoint(mean=1.0, low=0.5, high=1.5), StepPoint(mean=2.0, low=None, high=None)],
        codes=[Histogram(layer=NASTY, low=-8, high=8, shares=[50.0, 50.0])],
        pictures=[
            Picture(
                prompt_id="p1", image=PIXEL, difference=PIXEL, gain=8, scores={"PSNR dB": "30.0"},
                rank=1.0,
            )
        ],
        references="r",
    )  # fmt: skip
    return PageData(
        title=title,
        command=f"segbench report {title}",
        table=table,
        rows=rows,
        inputs={"abc": {NASTY: InputRange(negative_share=0.25, low=-1.0, high=3.0)}},
        activations={"abc": [Histogram(layer=NASTY, low=-1, high=3, shares=[100.0])]},
        references={"r": {"p1": Reference(prompt=NASTY, image=PIXEL)}},
        left_out=[f"nothing {NASTY}"],
    )


class Elements(HTMLParser):
    """Names of elements, attributes, the text of each table cell, and the data in the page."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.names: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.cells: list[list[str]] = []
        self.data: dict[str, Any] = {}
        self.text = ""
        self._open: list[str] = []
        self._id: str | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "link", "br", "input", "img"):
            self._open.append(tag)
        self._id = dict(attrs).get("id") if tag == "script" else None
        if tag == "tr":
            self.cells.append([])
        if tag == "td":
            self.cells[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open, tag
        opened = self._open.pop()
        assert opened == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] == ["script"]:
            if self._id:
                self.data[self._id] = json.loads(data)
            return
        if self._open[-1:] != ["style"]:
            self.text += data
        if "td" in self._open and "button" not in self._open:
            self.cells[-1][-1] += data


@pytest.fixture(scope="module")
def rendered() -> str:
    return render_page(page_of(records(), title=f"demo {NASTY}"), chart_script=SCRIPT)


def unpacked(page: Elements) -> list[dict[str, Any]]:
    parts = (gzip.decompress(base64.b64decode(part)) for part in page.data["packed"])
    return [row for part in parts for row in json.loads(part)]


def test_markup_is_text_wherever_it_comes_from(rendered: str) -> None:
    page = Elements(rendered)
    assert "img" not in page.names  # of a prompt, a name, a reason, a layer or a command
    assert page.names.count("script") == 3 + 4 + 2
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    shown = " ".join(NASTY.split())
    assert page.text.count(shown) >= 5  # title, heading, left out, method's setting, reasons
    assert page.data["pictured"]["references"]["r"]["p1"][0] == NASTY
    assert any(row["command"].endswith(NASTY) for row in unpacked(page))
    assert page.data["data"]["rows"][1]["method"] == "rtn"


def test_scripts_write_text_alone() -> None:
    folder = Path(page_html.__file__).parent / "page_assets"
    scripts = "".join(path.read_text() for path in folder.glob("*.js"))
    for door in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "srcdoc",
    ):
        assert door not in scripts
    assert "http" not in scripts.replace("https://", "http")


def test_nothing_is_loaded_from_anywhere(rendered: str) -> None:
    page = Elements(rendered)
    asked = [value for name, value in page.attributes if name in ("src", "href", "action")]
    assert all(str(value).startswith(("#", "data:")) for value in asked)
    contents = [str(value) for name, value in page.attributes if name == "content"]
    (policy,) = [value for value in contents if value.startswith("default-src 'none';")]
    assert "http" not in policy


def test_cells_hold_what_the_table_holds(rendered: str) -> None:
    table = page_of(records()).table
    lines = [cells for cells in Elements(rendered).cells if cells]
    assert len(lines) == len(table.rows) == 6
    for cells, row in zip(lines, table.rows, strict=True):
        for said, cell in zip(cells, row.cells, strict=True):
            assert said.startswith(" ".join([cell.text, *cell.marks]))


def test_what_is_not_ok_is_there_and_says_why(rendered: str) -> None:
    page = Elements(rendered)
    by_method = {row["method"].split()[0]: row for row in page.data["data"]["rows"]}
    assert [by_method[name]["status"] for name in ("tac", "soft", "lost")] == [
        "skipped", "failed", "missing",
    ]  # fmt: skip
    assert "6 rows: 3 ok, 1 failed, 1 missing, 1 skipped" in page.text
    details = {row["record"]["method"]: row for row in unpacked(page)}
    assert details["soft"]["record"]["traceback"] == NASTY
    assert "no record on disk" in page.text


def test_a_simulated_row_tells_no_speed(rendered: str) -> None:
    page = Elements(rendered)
    details = {row["record"]["method"]: row["record"] for row in unpacked(page)}
    assert details["rtn"]["seconds"] == {}
    assert details["fp"]["seconds"]["seconds_per_image"] == 9.9
    simulated = [row for row in page.data["data"]["rows"] if row["method"] == "rtn"]
    assert "seconds_per_image" not in simulated[0]["numbers"]
    assert "77.7" not in json.dumps(details["rtn"])


def test_a_row_unfolds_to_its_layers_and_reasons(rendered: str) -> None:
    rows = {row["record"]["method"]: row for row in unpacked(Elements(rendered))}
    assert rows["rtn"]["kept"] == {"keep pattern proj_out": ["proj_out"]}
    name, error, _, kind, *_ = rows["rtn"]["layers"][0]
    assert (name, error, kind) == (NASTY, 0.01, "output segments")
    assert kind in LAYER_KINDS


def test_a_column_without_a_number_and_the_only_model_wait_behind_a_filter() -> None:
    unmeasured = Metric(value=None, higher_is_better=False, n=0, against="reference", note="gone")
    given = [record("rtn", metrics={"lpips": unmeasured})]
    table = make_table([Scored(record=one) for one in given])
    assert page_html.hidden_columns(table) == {"model", "lpips", "seconds_per_image"}


def test_the_numbers_drawn_are_the_tables() -> None:
    table = page_of(records()).table
    known = {axis.key: axis for axis in axes(table)}
    assert known["psnr"].better == "higher"
    assert known["weight_bytes"].better == "lower"
    x, y = first_axes(list(known.values()))
    assert (x.key, y.key) == ("weight_bytes", "step_error")
    values = pareto_values(table, x=x, y=known["psnr"], model="tiny")
    assert [(v["method"].split()[0], v["x"], v["y"]) for v in values] == [
        ("rtn", 4.0, 30.0), ("gptq", 4.0, 35.0),  # fp's is infinite: the page names it
    ]  # fmt: skip
    assert values[0]["y_text"] == "30.0 [29.0, 31.0]"
    assert (values[0]["y_low"], values[0]["y_high"]) == (29.0, 31.0)
    percent = pareto_values(table, x=x, y=y, model="tiny")
    assert percent[0]["y"] == pytest.approx(2.0)  # the unit that the table prints


def test_charts_come_out_as_png_and_pdf(tmp_path: Path) -> None:
    table = page_of(records()).table
    x, y = Axis(key="weight_bytes", title="MB"), Axis(key="psnr", title=NASTY, better="higher")
    values = pareto_values(table, x=x, y=y, model="tiny")
    png, pdf = write_chart(pareto(x, y, names_of(table)), values, tmp_path / "deep" / "pareto")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert pdf.read_bytes().startswith(b"%PDF")
    spec = error_over_steps(Names(methods=["rtn"], bits=["w8"]))
    point = {
        "method": "rtn",
        "bits": "w8",
        "step": 1,
        "error": 1,
        "low": 0.5,
        "high": 2,
        "text": "",
    }
    assert write_chart(spec, [point, {**point, "step": 2}], tmp_path / "steps")[0].is_file()


def test_vega_fits_into_a_page_and_loads_nothing() -> None:
    script = chart_javascript()
    assert "window.vegaEmbed=" in script
    assert len(script) < 1_500_000
    assert not re.search(r"import\s*\(|importScripts", script)


def test_a_page_of_failures_alone_is_a_page() -> None:
    failed = record("soft", status="failed", reason=NASTY, metrics={}, weight_bytes=None)
    failed.effective_bits_per_weight = None
    table = make_table([Scored(record=failed)])
    page = PageData(title="x", command="segbench report x", table=table, rows=[RowExtras()])
    found = Elements(render_page(page, chart_script=SCRIPT))
    assert axes(table) == []
    assert "axes" not in found.data["data"]["charts"]
    assert found.text.count("1 failed") == 1
