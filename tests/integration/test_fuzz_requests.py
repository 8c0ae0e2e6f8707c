"""300 random requests; `python -m tests.fuzz_requests --cases 5000 --seed 7` asks more."""

from __future__ import annotations

from pathlib import Path

from tests.fuzz_requests import fuzz


def test_a_request_is_a_plan_or_one_line(tmp_path: Path) -> None:
    found = list(fuzz(tmp_path, count=300, seed=0))
    assert not found, "\n".join(f"{case.words!a}: {case.what!a}" for case in found)
