"""`segbench rehearse`: a model at its published config, here with few and narrow layers."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from experiments.cli import main
from experiments.rehearsal.rehearsal import Row
from experiments.verbs.rehearse import write_rows

NARROW = [
    *("--config", "num_layers=1", "--config", "num_attention_heads=2"),
    *("--config", "attention_head_dim=8"),
]


def told(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_every_stage_is_measured_beside_the_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["rehearse", "model=dit_xl2", "~model.keep", "--scale", "1", *NARROW]
    out = ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    assert main([*words, "method=rtn,smooth_search", "method.alpha_step=0.5", *out, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["method"], row["stage"]) for row in rows] == [
        ("", "calibration"),
        ("rtn", "quantization"),
        ("rtn", "images"),
        ("smooth_search", "quantization"),
        ("smooth_search", "images"),
    ]
    assert all(row["planned_gigabytes"] > 0 and row["seconds"] > 0 for row in rows)
    assert rows[1]["layers_quantized"] > 0
    assert rows[1]["disk_gigabytes"] > 0
    assert list((tmp_path / "work").iterdir()) == []
    path = tmp_path / "out" / "dit_xl2_part.csv"
    kept = list(csv.DictReader(path.read_text().splitlines()))
    assert [(row["method"], row["stage"]) for row in kept] == [
        (row["method"], row["stage"]) for row in rows
    ]


def test_rows_of_the_same_stages_are_replaced_and_others_stay(tmp_path: Path) -> None:
    def row(method: str, seconds: float) -> Row:
        return Row(
            model="m",
            method=method,
            bits="b",
            stage="images",
            seconds=seconds,
            planned_gigabytes=2.0,
            peak_gigabytes=2.2,
            resting_gigabytes=1.0,
            disk_planned_gigabytes=0.0,
            disk_gigabytes=0.0,
        )

    write_rows([row("rtn", 1.0), row("gptq", 2.0)], tmp_path, changed=False)
    path = write_rows([row("rtn", 3.0)], tmp_path, changed=False)
    kept = list(csv.DictReader(path.read_text().splitlines()))
    assert [(line["method"], line["seconds"]) for line in kept] == [("rtn", "3"), ("gptq", "2")]
    assert kept[0]["off"] == "0.067"  # 3.2 of 3 GB, what rests counted in both


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["method=rtn"], "rehearse takes model=NAME"),
        (["model=tiny_flux", "method=rtn"], "its config at full size is not here"),
        (["model=dit_xl2", "method=adaround"], "keeps calls or steps of a whole pipeline"),
        (["model=dit_xl2", "--config", "layers=1"], "layers is no field of dit_xl2's denoiser"),
        (["model=dit_xl2", "--config", "num_layers=x"], "write FIELD=VALUE"),
        (["model=dit_xl2", "--calls", "0"], "--calls 0; give at least 1"),
    ],
)
def test_what_cannot_be_rehearsed_is_one_line(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rehearse", *words]) == 2
    assert line in told(capsys)
