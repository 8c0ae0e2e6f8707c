"""Markup in a name, a prompt or an error is text in Markdown, LaTeX, pictures and W&B."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from evaluation.images import write_png
from evaluation.records import Metric, Record
from evaluation.report import tracking
from evaluation.report.figures import contact_sheet
from evaluation.report.markdown import code_span, plain_line, plain_text
from evaluation.report.render import escape_latex, to_csv, to_latex, to_markdown
from evaluation.report.rows import Scored
from evaluation.report.tables import make_table
from evaluation.report.tracked_run import PromptRow
from experiments.config.request import read_request
from experiments.deployment.model_card import card_text
from segquant.core.method_interface import QuantizationReport

markdown_it = pytest.importorskip("markdown_it", reason="a Markdown reader, to ask what is shown")
NASTY = (
    "<img src=x onerror=alert(1)> **bold** _slanted_ ~~gone~~ [a](http://b) ![c](d) `code` "
    "&lt;tag&gt; a|b $x^2$ \\textbf{x} 100% #1 <!-- no -->"
)


def shown(text: str) -> tuple[str, set[str]]:
    """What a reader of GitHub's Markdown sees, and the kinds of markup it is made of."""
    reader = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"])
    inside = [token for block in reader.parse(text) if block.children for token in block.children]
    words = "".join("\n" if t.type == "softbreak" else t.content for t in inside)
    blocks = {token.type for token in reader.parse(text)}
    return words, {token.type for token in inside} | blocks


@pytest.mark.parametrize(
    "text",
    [NASTY, "# title", "1. first", "- dash", "> said", "---", "===", "segquant_a", "_a_b_", "a~b~",
     "x [1.2, 3.4]", "-0.3", "1.5 [1, 2]", "a\\b", "``two``", "&copy;", "[a]: http://b"],
)  # fmt: skip
def test_markdown_shows_it_as_it_stands(text: str) -> None:
    words, kinds = shown(plain_line(text))
    assert words == text
    assert kinds <= {"text", "text_special", "paragraph_open", "paragraph_close", "inline"}


def test_what_needs_no_care_is_left_as_it_was() -> None:
    for text in ("segquant_a alpha=0.5", "30.0 [29.0, 31.0] ~", "-0.35 ± 0.1", "270 ± 53 ↓fp"):
        assert plain_text(text) == text
        assert plain_line(text) == text


@pytest.mark.parametrize("text", ["a`b", "``", "<b>", "plain"])
def test_code_is_code(text: str) -> None:
    words, kinds = shown(code_span(text))
    assert words == text
    assert "code_inline" in kinds


def table_of(text: str) -> Any:
    metric = Metric(value=None, higher_is_better=True, n=0, against="reference", note=text)
    given = Record(
        run_id="a", status="ok", model=text, method="rtn", bits="w8", dataset=text, seed=0,
        settings={"method.note": text}, metrics={"psnr": metric},
    )  # fmt: skip
    failed = Record(
        run_id="b", status="failed", reason=text, model=text, method="gptq", bits="w8",
        dataset=text, seed=0,
    )  # fmt: skip
    return make_table([Scored(record=given), Scored(record=failed)], title=text)


def test_a_table_in_markdown_holds_nothing_but_text() -> None:
    words, kinds = shown(to_markdown(table_of(NASTY)))
    assert words.count(" ".join(NASTY.split())) >= 5  # caption, models, setting, reason, notes
    assert not kinds & {"html_inline", "html_block", "image", "link_open", "em_open", "s_open"}
    assert not kinds & {"strong_open", "code_inline"}


def test_a_table_in_latex_holds_nothing_but_text() -> None:
    text = to_latex(table_of(NASTY))
    assert text.count(escape_latex(NASTY)) >= 5
    bare = escape_latex(NASTY)
    for sign in "%$#_&~^":
        assert sign not in bare.replace(f"\\{sign}", "")
    assert "\\textbf{x}" not in text
    assert bare.count("{") == bare.count("}")


@pytest.mark.parametrize(
    ("text", "latex"),
    [("[2]", "{[}2]"), ("*", "{*}"), ("a -- b", "a -{}- b"), ("a|b", r"a\textbar{}b"),
     ("``a''", "`{}`a'{}'"), ("\\", r"\textbackslash{}"), ("x\ny", "x y")],
)  # fmt: skip
def test_latex_does_not_read_it(text: str, latex: str) -> None:
    assert escape_latex(text) == latex


def test_latex_tables_are_of_booktabs() -> None:
    text = to_latex(table_of("m"))
    assert [text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]
    assert "\\hline" not in text
    assert "|" not in text.split(r"\begin{tabular}", 1)[1].splitlines()[0]


def test_csv_quotes_it() -> None:
    assert NASTY.split()[0] in to_csv(table_of(NASTY))


def test_labels_of_a_contact_sheet_are_drawn_as_they_stand(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_png(tmp_path / name / "p.png", np.zeros((64, 64, 3), dtype=np.uint8))
    sizes = []
    for text in ("<b>x</b>", "&lt;b&gt;x", "x"):
        rows = {text: tmp_path / "a", f"{text} 2": tmp_path / "b"}
        sizes.append(contact_sheet(rows, ["p"], {"p": NASTY}, text, tmp_path / "s.png"))
    assert sizes[1][0] > sizes[0][0] > sizes[2][0]  # every sign takes its room


def test_wandb_gets_plain_strings(tmp_path: Path) -> None:
    write_png(tmp_path / "p.png", np.zeros((8, 8, 3), dtype=np.uint8))
    rows: list[tuple[Any, ...]] = []
    captions: list[str] = []

    def image(_: Any, caption: str = "") -> str:
        captions.append(caption)
        return "image"

    table = SimpleNamespace(add_data=lambda *cells: rows.append(cells))
    wandb = SimpleNamespace(Table=lambda columns: table, Image=image)
    path = tmp_path / "p.png"
    row = PromptRow(prompt_id="p", prompt=NASTY, reference=path, image=path)
    tracking._prompt_table(wandb, [row])
    assert rows[0][1] == NASTY
    assert captions[:2] == [NASTY, NASTY]


def test_a_model_card_holds_nothing_but_text() -> None:
    report = QuantizationReport(
        bits="w8", effective_bits_per_weight=8.0, effective_bits_per_weight_all=8.0,
        extra_macs_fraction=0.0, weight_bytes=1, search_candidates=0, elements=[NASTY],
        left_out=[NASTY], layers_kept=[{"name": "a", "reason": NASTY}],
    )  # fmt: skip
    (config,) = read_request(["method=rtn"], multirun=False).cells
    for name in ("name", "path", "revision", "licence"):
        setattr(config.model, name, NASTY)
    cell = SimpleNamespace(config=config, record=lambda: None)
    text = card_text(cell, report, pipeline=object(), parts=["transformer"], command=NASTY)
    words, kinds = shown(text)
    assert words.count(" ".join(NASTY.split())) >= 7
    assert not kinds & {"html_inline", "html_block", "image", "link_open", "em_open", "s_open"}
