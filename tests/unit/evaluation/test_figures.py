import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.images import write_png
from evaluation.records import Metric, Record
from evaluation.report.figures import Tile, contact_sheet, metric_chart, ratio_map

IDS = ["p1", "p2"]
PROMPTS = {"p1": "a red circle " * 20, "p2": "a" * 80}


def solid(folder: Path, level: int) -> Path:
    for name in IDS:
        write_png(folder / f"{name}.png", np.full((64, 64, 3), level, dtype=np.uint8))
    return folder


def test_contact_sheet_has_every_row_and_the_scaled_difference(tmp_path: Path) -> None:
    rows = {"fp": solid(tmp_path / "a", 100), "rtn": solid(tmp_path / "b", 110)}
    out = tmp_path / "sheets" / "sheet.png"
    size = contact_sheet(rows, IDS, PROMPTS, "fp", out, gain=5)
    with Image.open(out) as sheet:
        assert sheet.format == "PNG"
        assert sheet.size == size
        pixels = np.asarray(sheet)
    width, height = size
    # two prompts and three rows (fp, rtn, difference) of 128 pixels with gaps of 6
    assert height == 6 + 6 * 18 + 6 + 3 * (128 + 6)
    assert width > 2 * (128 + 6)
    middle_of_last_column = width - 6 - 64
    first_row = 6 + 6 * 18 + 6 + 64
    levels = [int(pixels[first_row + 134 * row, middle_of_last_column, 0]) for row in range(3)]
    assert levels == [100, 110, 50]
    labels = pixels[6 + 6 * 18 + 6 :, : width - 2 * 134 - 6]
    assert (labels < 128).any()


def test_differences_of_one_group_are_brightened_alike_and_not_cut_off(tmp_path: Path) -> None:
    levels = {"fp": 100, "a8": 101, "b8": 103, "a4": 140, "same": 100}
    rows = {name: solid(tmp_path / name, level) for name, level in levels.items()}
    groups = {"a8": "w8", "b8": "w8", "a4": "w4", "same": "w16"}
    out = tmp_path / "sheet.png"
    width, _ = contact_sheet(rows, IDS, PROMPTS, "fp", out, groups=groups)
    with Image.open(out) as sheet:
        pixels = np.asarray(sheet)
    first = 6 + 6 * 18 + 6 + 64
    shown = [int(pixels[first + 134 * row, width - 70, 0]) for row in range(5, 9)]
    assert shown == [64, 3 * 64, 40 * 4, 0]


def test_contact_sheet_says_what_is_wrong(tmp_path: Path) -> None:
    rows = {"fp": solid(tmp_path / "a", 100), "rtn": solid(tmp_path / "b", 110)}
    out = tmp_path / "sheet.png"
    with pytest.raises(ValueError, match="the rows are fp, rtn"):
        contact_sheet(rows, IDS, PROMPTS, "float", out)
    with pytest.raises(ValueError, match="no prompt for the ids p3"):
        contact_sheet(rows, ["p3"], PROMPTS, "fp", out)
    with pytest.raises(ValueError, match=r"groups name \['gptq'\]; the rows are fp, rtn"):
        contact_sheet(rows, IDS, PROMPTS, "fp", out, groups={"gptq": "w8a8"})
    (tmp_path / "b" / "p2.png").unlink()
    with pytest.raises(ValueError, match=r"p2\.png: no such image"):
        contact_sheet(rows, IDS, PROMPTS, "fp", out)
    assert not out.exists()


def test_a_map_of_ratios_is_a_png_with_its_colours(tmp_path: Path) -> None:
    def tile(value: float | None, certain: bool = True) -> Tile:
        return Tile(row="rtn", column="w8a8", value=value, certain=certain)

    colours = {}
    for name, one in {"half": tile(0.5), "twice": tile(2.0), "unclear": tile(2.0, False)}.items():
        ratio_map([one], title=name, out_path=tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as picture:
            red, _, blue = picture.convert("RGB").getpixel(
                (picture.width // 3, picture.height // 2)
            )
        colours[name] = red - blue
    assert colours["half"] < -10 < 10 < colours["twice"]
    assert abs(colours["unclear"]) <= 10
    with pytest.raises(ValueError, match="no ratio"):
        ratio_map([tile(None)], title="", out_path=tmp_path / "none.png")


def test_metric_chart_is_a_png(tmp_path: Path) -> None:
    records = [
        Record(
            run_id=name, status="ok", model="tiny", method=name, bits="w8a8", dataset="s", seed=0,
            metrics={
                "psnr": Metric(
                    value=value, higher_is_better=True, n=4, against="reference",
                    interval=[value - 1, value + 1], interval_kind="bootstrap95",
                )
            },
        )
        for name, value in (("fp", math.inf), ("rtn", 20.0), ("gptq", 25.0))
    ]  # fmt: skip
    metric_chart(records, metric="psnr", out_path=tmp_path / "chart.png")
    with Image.open(tmp_path / "chart.png") as chart:
        chart.verify()
    with pytest.raises(ValueError, match="no record has a finite 'lpips'"):
        metric_chart(records, metric="lpips", out_path=tmp_path / "none.png")
