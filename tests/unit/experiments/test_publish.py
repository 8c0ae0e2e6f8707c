"""The README shows the demo's table as the command made it."""

from __future__ import annotations

from experiments.studies.publish import BEGIN, END, RESULTS, ROOT, readme_with, short


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
    for line in rows.splitlines():
        if "w8a8_int8" in line or "w4a8_int" in line:
            assert "n/a" in line  # simulated rows print no speed


def test_only_what_stands_between_the_markers_is_replaced() -> None:
    readme = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    table = "caption\n\n| a |\n|---|\n| 1 |\n\n- legend: words\n"
    assert readme_with(readme, table) == (
        f"before\n{BEGIN}\ncaption\n\n| a |\n|---|\n| 1 |\n{END}\nafter\n"
    )
