"""What is committed of exported denoisers: their agreement with the simulation, and their speed."""

from __future__ import annotations

import csv
import typing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments.speed import runtimes
from experiments.store.paths import RESULTS
from experiments.studies import onnx_agreement
from segquant.deploy.onnx_profile import Products
from segquant.deploy.onnx_running import RUNTIMES


def _read(path: Path, kind: type) -> list[Any]:
    """The rows of a csv as that dataclass."""
    with path.open() as lines:
        rows = list(csv.DictReader(lines))
    hints = typing.get_type_hints(kind)
    return [kind(**{name: _value(hints[name], text) for name, text in row.items()}) for row in rows]


def _value(hint: Any, text: str) -> Any:
    if text == "" and type(None) in typing.get_args(hint):
        return None
    kinds = [kind for kind in (typing.get_args(hint) or (hint,)) if kind is not type(None)]
    convert: Callable[[str], Any] = kinds[0]
    return convert(text)


def test_all_three_models_agree_at_all_bits_in_both_runtimes() -> None:
    found = _read(RESULTS / "onnx_agreement.csv", onnx_agreement.Agreement)
    wanted = {
        (model, bits, runtime)
        for model in onnx_agreement.MODELS
        for bits in onnx_agreement.BITS
        for runtime in RUNTIMES
    }
    assert {(one.model, one.bits, one.runtime) for one in found} == wanted
    assert len(found) == len(wanted)
    for one in found:
        assert one.agrees, one
        assert one.integer_products == one.products > one.layers
        assert one.dual > 0
        assert one.segmented > 0
        assert one.psnr_runtime > one.psnr_quantized
    text = (RESULTS / "onnx_agreement.md").read_text()
    assert onnx_agreement.render(found).split("\n\n")[-1] in text


def test_a_product_of_floats_or_a_far_output_is_no_agreement() -> None:
    one = _read(RESULTS / "onnx_agreement.csv", onnx_agreement.Agreement)[0]
    assert not replace(one, integer_products=one.products - 1).agrees
    assert not replace(one, difference_largest=3 * one.nudged_largest).agrees


def test_the_committed_speed_is_what_its_csv_says() -> None:
    rows = _read(RESULTS / "speed" / "runtimes.csv", runtimes.Row)
    text = (RESULTS / "speed" / "runtimes.md").read_text()
    assert {row.block for row in rows} == set(runtimes.BLOCKS)
    for block in runtimes.BLOCKS:
        own = [row for row in rows if row.block == block]
        assert runtimes.verdict(own)[0] in text
        assert {row.bits for row in own} == {"fp32", "bf16", "int8"}


def _variant(name: str, bits: str, seconds: list[float], file: str | None) -> runtimes.Variant:
    return runtimes.Variant(
        runtime="torch" if file is None else "openvino",
        bits=bits,
        what=name,
        call=lambda: None,
        difference=0.0,
        file=file,
        seconds=seconds,
    )


@pytest.mark.parametrize(("seconds", "said"), [(1.0, "met"), (3.0, "missed")])
def test_a_ratio_is_of_the_rounds_own(tmp_path: Path, seconds: float, said: str) -> None:
    """Whatever slows a round down weighs on both sides."""
    busy = [1.0, 5.0, 2.0]
    files = runtimes.Files(paths={})
    for name in (runtimes.PLAIN, runtimes.SEGMENTED):
        files.paths[name] = tmp_path / name
        files.paths[name].write_bytes(bytes(1000))
        products = 10 if name == runtimes.PLAIN else 14
        files.products["openvino", name] = Products(integer=products, floating=0, seconds={})
    variants = [
        _variant("eager fp32", "fp32", [4 * load for load in busy], None),
        _variant("compiled bf16", "bf16", [3 * load for load in busy], None),
        _variant(runtimes.PLAIN, "int8", [seconds * load for load in busy], runtimes.PLAIN),
        _variant(
            runtimes.SEGMENTED, "int8", [1.5 * seconds * load for load in busy], runtimes.SEGMENTED
        ),
    ]
    rows = runtimes.rows_of("sdxl", variants, files)
    by_name = {row.what: row for row in rows}
    assert by_name["compiled bf16"].best_float_over_this == 1.0
    assert by_name[runtimes.PLAIN].best_float_over_this == pytest.approx(3 / seconds)
    assert by_name[runtimes.PLAIN].low == by_name[runtimes.PLAIN].high
    assert by_name[runtimes.PLAIN].file_megabytes == 0.001
    (text,) = runtimes.verdict(rows)
    assert f"the goal of 2 is {said}" in text
    assert "4 products more and cost 50 %" in text
