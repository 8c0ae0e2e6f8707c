"""The ledger knows the latest job of every item, whatever happened to whom wrote it."""

from __future__ import annotations

from pathlib import Path

import pytest

from slurm.ledger import Ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "jobs" / "ledger.jsonl")


def nobody(_: str) -> None:
    return None


def test_an_arrays_jobs_are_its_elements_and_a_single_job_is_itself(ledger: Ledger) -> None:
    ledger.intend("t1", [["a"], ["b", "c"]], stage="cell")
    ledger.confirm("t1", "7", folder=Path("/x/7"))
    ledger.intend("t2", [["r"]], stage="reference")
    ledger.confirm("t2", "8", folder=Path("/x/8"))
    jobs = {item: entry.job for item, entry in ledger.entries(nobody).items()}
    assert jobs == {"a": "7_0", "b": "7_1", "c": "7_1", "r": "8"}


def test_the_latest_job_counts(ledger: Ledger) -> None:
    for token, job in (("t1", "7"), ("t2", "9")):
        ledger.intend(token, [["a"]], stage="cell")
        ledger.confirm(token, job, folder=Path("/x"))
    assert ledger.entries(nobody)["a"].job == "9"


def test_a_launcher_killed_after_sbatch_leaves_a_job_that_is_found(ledger: Ledger) -> None:
    ledger.intend("t1", [["a"], ["b"]], stage="cell")
    found = ledger.entries({"t1": "7"}.get)
    assert {item: entry.job for item, entry in found.items()} == {"a": "7_0", "b": "7_1"}
    ledger.settle({"t1": "7"}.get, folder=Path("/x"))
    assert ledger.entries(nobody)["a"].folder == "/x/t1"


def test_a_launcher_killed_before_sbatch_leaves_nothing(ledger: Ledger) -> None:
    ledger.intend("t1", [["a"]], stage="cell")
    asked: list[str] = []

    def find(token: str) -> None:
        asked.append(token)

    for _ in range(2):
        ledger.settle(find, folder=Path("/x"))
    assert ledger.entries(nobody) == {}
    assert asked == ["t1"], "it is asked for once"


def test_a_line_cut_by_a_full_disk_costs_that_line_alone(ledger: Ledger) -> None:
    ledger.intend("t1", [["a"]], stage="cell")
    ledger.confirm("t1", "7", folder=Path("/x"))
    with ledger.path.open("a") as stream:
        stream.write('{"token": "t2", "it')
    ledger.intend("t3", [["b"]], stage="cell")
    ledger.confirm("t3", "8", folder=Path("/x"))
    assert set(ledger.entries(nobody)) == {"a", "b"}


def test_no_file_is_an_empty_ledger(ledger: Ledger) -> None:
    assert ledger.entries(nobody) == {}


DAMAGED_LINES = (
    b"[]", b"7", b"null", b"\xff\x00", b"[" * 50_000, b"{}", b'{"token": "t9"}',
    b'{"token": ["t9"], "stage": "cell", "items": [["a"]]}',
    b'{"token": "t9", "stage": "cell", "items": "a"}',
    b'{"token": "t9", "stage": "cell", "items": [[7]]}',
    b'{"token": "t9", "job": 7, "folder": "/x"}',
)  # fmt: skip


@pytest.mark.parametrize("line", DAMAGED_LINES, ids=range(len(DAMAGED_LINES)))
def test_a_damaged_line_costs_that_line_alone(ledger: Ledger, line: bytes) -> None:
    ledger.intend("t1", [["a"]], stage="cell")
    with ledger.path.open("ab") as stream:
        stream.write(line + b"\n")
    ledger.confirm("t1", "7", folder=Path("/x"))
    assert set(ledger.entries(nobody)) == {"a"}
    ledger.settle(nobody, folder=Path("/x"))


def test_what_is_no_file_is_set_aside(ledger: Ledger) -> None:
    ledger.path.mkdir(parents=True)
    assert ledger.entries(nobody) == {}
    ledger.intend("t1", [["a"]], stage="cell")
    ledger.confirm("t1", "7", folder=Path("/x"))
    assert set(ledger.entries(nobody)) == {"a"}
