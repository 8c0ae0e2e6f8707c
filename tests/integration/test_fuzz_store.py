"""Random damage to a finished store: no verb fails for good, and no number changes silently."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from evaluation.records import read_record, write_record
from tests import fuzz_store
from tests.fuzz_store import Case, FinishedStore

PARTS, EACH = 10, 20


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FinishedStore:
    return fuzz_store.make_store(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("part", range(PARTS))
def test_whatever_is_damaged_is_told_or_made_again(store: FinishedStore, part: int) -> None:
    wrong = {
        str(case): fuzz_store.try_case(store, case, chance)
        for case, chance in fuzz_store.cases(store, count=EACH, seed=part)
    }
    assert not {case: lines for case, lines in wrong.items() if lines}


def test_a_number_that_changes_is_seen(
    store: FinishedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record that says another number of itself, with a checksum that fits."""
    path = next(iter((store.out / "cells").glob("*/record.json"))).relative_to(store.out)

    def another_value(path: Path, _: object) -> None:
        record = read_record(path)
        record.metrics["psnr"].interval = [1.0, 2.0]
        write_record(path, record)

    monkeypatch.setitem(fuzz_store.DAMAGES, "another value", another_value)
    wrong = fuzz_store.try_case(store, Case(path, "another value", "table"), Random(0))
    assert "table answers something else" in wrong[0]
