"""The README shows the demo's table as the command made it."""

from __future__ import annotations

from evaluation.per_image import read_per_image
from evaluation.report.chart_files import read_stamp
from experiments.studies.publish import (
    BEGIN,
    COMPARE_BEGIN,
    COMPARE_END,
    COMPARE_PAGE,
    END,
    RESULTS,
    ROOT,
    readme_with,
    readme_with_page,
    short,
)
from experiments.studies.report_picture import table_stamp


def test_the_readmes_table_is_the_committed_one() -> None:
    readme = (ROOT / "README.md").read_text()
    table = (RESULTS / "demo" / "table.md").read_text()
    assert readme == readme_with(readme, table)
    assert BEGIN in readme
    assert END in readme


def test_the_committed_demo_has_what_was_promised() -> None:
    rows = short((RESULTS / "demo" / "table.md").read_text())
    for bits in ("w8a8_int8", "w4a8_int"):
        for method in ("rtn", "smooth_search", "segquant_a", "segquant_g"):
            assert any(method in row and bits in row for row in rows.splitlines()), (method, bits)
    assert "| fp " in rows
    assert "| noise_floor " in rows
    assert (RESULTS / "demo" / "contact_sheet_tiny_mmdit.png").is_file()
    stamp = read_stamp(RESULTS / "demo" / "report.png")
    assert stamp == table_stamp(RESULTS / "demo" / "table.csv"), "the picture shows another table"
    for line in rows.splitlines():
        if "w8a8_int8" in line or "w4a8_int" in line:
            assert "n/a" in line  # simulated rows print no speed


def test_only_what_stands_between_the_markers_is_replaced() -> None:
    readme = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    table = "caption\n\n| a |\n|---|\n| 1 |\n\n- legend: words\n"
    assert readme_with(readme, table) == (
        f"before\n{BEGIN}\ncaption\n\n| a |\n|---|\n| 1 |\n{END}\nafter\n"
    )


def test_the_readmes_page_of_two_folders_is_the_committed_one() -> None:
    readme = (ROOT / "README.md").read_text()
    assert readme == readme_with_page(readme, COMPARE_PAGE.read_text())
    block = readme.split(COMPARE_BEGIN, 1)[1].split(COMPARE_END, 1)[0]
    assert "| PSNR dB ↑ " in block
    assert "beyond the noise" in block
    assert len(block.strip().splitlines()) <= 10
    scores = read_per_image(COMPARE_PAGE.parent / "per_image.csv")
    for column, decimals in (("psnr", 2), ("ssim", 5)):
        mean = sum(scores[column].values()) / len(scores[column])
        assert f" {mean:.{decimals}f} [" in block, column
