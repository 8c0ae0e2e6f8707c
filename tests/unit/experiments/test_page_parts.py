"""What of a store goes into a report page: which prompts, which Linears, which bins."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from evaluation.images import write_png
from evaluation.records import Record
from evaluation.report.page_data import LayerPoint
from experiments.pages.row_layers import (
    code_histograms,
    histogram,
    layer_points,
    sizes,
    told_layers,
)
from experiments.pages.shown_pictures import small, worst_prompts
from experiments.store.folders import Finished
from segquant.core import Bits, Calibration, LayerRecipe, quantize_layers
from segquant.core.checkpoint import save_quantized
from segquant.core.input_statistics import StatisticsRecorder
from segquant.core.schemes import Granularity, NumberFormat, TensorScheme


def test_the_worst_prompts_are_bad_in_most_rows() -> None:
    rows = [{"a": 1.0, "b": 9.0, "c": 5.0}, {"a": 2.0, "b": 3.0, "c": 9.0}, {"b": 7.0, "c": 1.0}]
    assert worst_prompts(rows, most=2) == ["b", "c"]
    assert worst_prompts(rows, most=9) == ["b", "c", "a"]
    assert worst_prompts([{"a": -math.inf, "b": 0.0}], most=1) == ["b"]  # a is the reference's own
    assert worst_prompts([], most=3) == []


def test_a_large_image_is_reduced_and_a_small_one_is_exact(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (1024, 512, 3)).astype(np.uint8)
    write_png(tmp_path / "large.png", noise)
    assert len(small(tmp_path / "large.png")) < 100_000
    write_png(tmp_path / "small.png", noise[:32, :32])
    assert small(tmp_path / "small.png").startswith("data:image/webp;base64,")


def point(name: str, error: float, *, output: str = "", dual: str = "") -> LayerPoint:
    return LayerPoint(
        name=name, error=error, shape="", output_segments=output, input_segments="", dual_scale=dual
    )


def test_linears_to_look_at_are_one_of_each_kind_then_the_worst() -> None:
    points = [
        point("a", 0.1), point("b", 0.3), point("c", 0.01, output="4 x 2"),
        point("d", 0.02, dual="yes"), point("e", 0.2),
    ]  # fmt: skip
    assert told_layers(points, most=3) == ["b", "c", "d"]
    assert told_layers(points, most=4) == ["b", "c", "d", "e"]


@pytest.mark.parametrize(
    ("parts", "text"),
    [([], ""), ([8], ""), ([4, 4], "4 x 2"), ([4, 8, 8, 4], "4 + 8 x 2 + 4")],
)
def test_segments_in_words(parts: list[int], text: str) -> None:
    assert sizes(parts) == text


def test_a_librarys_layers_have_no_error_and_no_cuts() -> None:
    record = Record(
        run_id="", status="ok", model="m", method="peer", bits="w8", dataset="d", seed=0,
        layers_quantized=[{"name": "a", "in_features": 4, "out_features": 8}],
    )  # fmt: skip
    (found,) = layer_points(record)
    assert (found.error, found.kind, found.shape) == (None, "plain", "4 → 8")


def test_a_constant_has_one_bin() -> None:
    shown = histogram("a", torch.full((9,), 3.0), low=3.0, high=3.0, bins=8)
    assert (shown.low, shown.high, list(shown.shares)) == (2.5, 3.5, [100.0])


@pytest.mark.parametrize(
    ("scheme", "values"),
    [
        (TensorScheme(num_bits=4), set(range(-8, 8))),
        (
            TensorScheme(
                num_bits=4,
                number_format=NumberFormat.nvfp4,
                granularity=Granularity.per_group,
                group_size=16,
            ),
            {s * v for s in (-1, 1) for v in (0, 0.5, 1, 1.5, 2, 3, 4, 6)},
        ),
    ],
    ids=["int4", "nvfp4"],
)
def test_codes_are_shown_as_the_values_of_their_grid(
    tmp_path: Path, scheme: TensorScheme, values: set[float]
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64))
    recorder = StatisticsRecorder(model, gram=False)
    with recorder:
        model(torch.randn(64, 32))
    calibration = Calibration(statistics=recorder.statistics(), forwards=1)
    bits = Bits(name="own", weight=scheme, activation=TensorScheme(num_bits=16))
    report = quantize_layers(model, calibration=calibration, bits=bits, recipe=LayerRecipe())
    save_quantized(model, tmp_path / "denoiser", report)
    finished = Finished(
        path=tmp_path, hash="", seconds=0.0, peak_memory_bytes=None, notes={}, files={}
    )
    (shown,) = code_histograms(finished, ["0", "gone"])
    assert min(values) - 0.5 <= shown.low < shown.high <= max(values) + 0.5
    assert sum(shown.shares) == pytest.approx(100, abs=0.1)
    assert code_histograms(Finished(tmp_path / "no", "", 0.0, None, {}, {}), ["0"]) == []
