"""Agreement of two rankings, and what a choice by the one loses by the other."""

import re
from pathlib import Path

import pytest

from experiments.store.paths import RESULTS
from experiments.studies.rank_agreement import (
    NAME,
    agreements,
    losses,
    over_settings,
    read,
    report,
    table,
)


def row(number: int, *, error: float, psnr: float, bits: str = "w8", **changes: str) -> dict:
    """The larger the error the worse, the larger the PSNR the better."""
    return {
        "model": "m", "bits": bits, "method": f"m{number}", "kind": "method", "status": "ok",
        "step_error": str(error), "psnr": str(psnr), "effective_bits_per_weight": "8.1", **changes,
    }  # fmt: skip


def test_agreement_is_1_where_both_rank_alike_and_minus_1_where_not() -> None:
    same = [row(n, error=n, psnr=-n) for n in range(6)]
    (one,) = agreements(same)
    assert (round(one.tau, 9), one.place, one.found) == (1, 0, True)
    (one,) = agreements([row(n, error=n, psnr=n) for n in range(6)])
    assert (round(one.tau, 9), one.place, one.found) == (-1, 1, False)


def test_rows_of_more_bits_failed_ones_and_small_settings_are_left_out() -> None:
    rows = [row(n, error=n + 1, psnr=40 - n) for n in range(6)]
    rows.append(row(6, error=0.1, psnr=70, effective_bits_per_weight="12.7"))
    rows.append(row(7, error=9, psnr=1, status="skipped"))
    rows += [row(n, error=n, psnr=n, bits="w4") for n in range(4)]
    (one,) = agreements(rows)
    assert one.rows == 6
    lost, chance = losses(rows)
    assert lost == [0]
    assert chance[0] == pytest.approx(2.5, abs=0.5)


def test_the_interval_is_over_bit_widths() -> None:
    rows = [
        row(n, error=n, psnr=-n if bits == "w8" else n, bits=bits)
        for bits in ("w8", "w4")
        for n in range(6)
    ]
    estimate = over_settings(agreements(rows))
    assert (estimate.value, estimate.n) == (0, 2)
    assert estimate.low < -1


def test_the_committed_agreement_is_of_the_committed_baselines() -> None:
    rows = read(RESULTS / "baselines" / "table.csv")
    assert (RESULTS / f"{NAME}.md").read_text() == report(rows)
    assert (RESULTS / f"{NAME}.csv").read_text() == table(rows)


def test_the_pages_figures_are_the_results() -> None:
    page = " ".join(Path("docs/findings.md").read_text().split())
    said = page.split("**The step error can choose", 1)[1].split("**", 2)[1]
    found = re.findall(r"\d\.\d\d \[\d\.\d\d, \d\.\d\d\]", said)
    assert len(found) == 2
    result = (RESULTS / f"{NAME}.md").read_text()
    assert all(text in result for text in found)
    assert all(f"{share} %" in result for share in re.findall(r"in (\d+) % of settings", said))
