"""The study of activation codes on a real pipeline, small."""

import csv
from pathlib import Path

import pytest
import torch

from experiments.studies.code_errors import CODINGS, Unit, kind_of
from experiments.studies.code_study import main


@pytest.mark.parametrize(
    ("producer", "kind"),
    [
        ("transformer_blocks.0.norm1.silu(silu)", "SiLU"),
        ("ff.net.0(gelu)", "GELU"),
        ("ff.net.0(gated gelu)", "GEGLU"),
        ("attn.sdpa", "other"),
        ("input encoder_hidden_states", "other"),
    ],
)
def test_the_kind_of_an_input(producer: str, kind: str) -> None:
    assert kind_of(producer) == kind


def test_sums_over_calls_are_one_error_a_prompt() -> None:
    end = torch.tensor(1.0)
    unit = Unit(layer="a", kind="GELU", start=1, stop=3, low=-end, high=end)
    x, w = torch.rand(8, 4), torch.rand(5, 4)
    for rows in (x[:3], x):
        unit.begin()
        unit.see(rows, w)
    unit.see(x, w)
    errors = unit.errors()
    assert errors.shape == (2, len(CODINGS))
    apart = Unit(layer="a", kind="GELU", start=1, stop=3, low=-end, high=end)
    apart.begin()
    apart.see(x, w)
    # the same rows twice: the sums double, the ratio stays
    assert errors[1] == pytest.approx(apart.errors()[0])
    assert unit.positive == unit.elements == 2 * 3 + 2 * 8 + 2 * 8


def test_any_model_is_studied_by_the_same_command(zoo: Path, tmp_path: Path) -> None:
    small = ("model.height=16", "model.width=16", "model.num_inference_steps=2", "num_threads=1")
    path = f"model.path={zoo / 'tiny_flux'}"
    more = ("+model.call.max_sequence_length=24", "--prompts", "2", "--calibration", "2")
    out = tmp_path / "codes.md"
    main(["--models", "folder", path, *small, *more, "--out", str(out)])
    text = out.read_text()
    assert "python -m experiments.studies.code_study --models folder" in text
    assert "| tiny_flux | SiLU  |" in text
    assert "| tiny_flux | GELU  |" in text
    rows = list(csv.DictReader(out.with_suffix(".csv").open()))
    assert {row["code"] for row in rows} >= {"symmetric", "dual", "high_low", "fp8"}
    mixed = [row for row in rows if row["layer"].endswith("proj_out") and "single" in row["layer"]]
    assert {row["input"] for row in mixed} == {"other", "GELU"}
    finer = {row["code"]: float(row["relative_error"]) for row in rows if row["steps"] == "static"}
    assert finer["high_low"] < finer["dual"]
