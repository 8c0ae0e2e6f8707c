from experiments.studies.restate import csv_without_marks, of_one_draw, without_marks

TABLE = """caption.

| Method | FID         |     PSNR |
|--------|------------:|---------:|
| a      | 3.4 ± 1 ~ ↓fp | **9 [8, 9]** |

- FID: a legend.
- ~ cannot be told from the floor.
- ↓fp below.
- Bold: best.
- (1) a note ~ with a sign
"""


def test_numbers_stay_and_marks_go() -> None:
    text = without_marks(TABLE)
    row = text.splitlines()[4]
    assert [cell.strip() for cell in row.split("|")[1:-1]] == ["a", "3.4 ± 1", "9 [8, 9]"]
    assert len(row) == len(TABLE.splitlines()[4])
    assert "No marks and nothing bold" in text
    assert "Bold: best" not in text
    assert "- (1) a note ~ with a sign" in text
    assert without_marks(text) == text


def test_the_csv_keeps_its_other_notes() -> None:
    text = 'fid,notes\n3.4,"fid: ~; lpips: needs a ~ file; fid: ↓fp"\n1,\n'
    assert csv_without_marks(text) == "fid,notes\n3.4,lpips: needs a ~ file\n1,\n"


def test_verdicts_say_what_they_are_of() -> None:
    text = "| m | 1e-7 | better         |\n| m | 1 | **worse** (1) |\n| m | 1 | not told apart |\n"
    said = of_one_draw(text)
    assert said.count(" (1 calibration draw)") == 2
    assert "**worse (1 calibration draw)** (1)" in said
    assert of_one_draw(said) == said
    assert (
        of_one_draw("- Step error: lower is better; so\n") == "- Step error: lower is better; so\n"
    )
