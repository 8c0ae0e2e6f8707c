"""docs/metrics.md: its pitfalls name tests that exist, its files are those of the table."""

import re
from pathlib import Path

from evaluation.metrics.metric_catalogue import all_metrics
from evaluation.weight_files import weight_files

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "metrics.md"
PITFALLS = 20


def test_every_pitfall_has_tests_that_exist() -> None:
    rows = re.findall(r"^\| (P\d+) \| [^|]* \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    assert [number for number, _ in rows] == [f"P{n}" for n in range(1, PITFALLS + 1)]
    for number, cell in rows:
        named = re.findall(r"`([^`]+)::([^`]+)`", cell)
        assert named, number
        for path, name in named:
            source = (ROOT / "tests" / path).read_text()
            assert re.search(rf"^def {name}\(", source, re.MULTILINE), f"{number}: {path}::{name}"


def test_files_are_those_of_the_table() -> None:
    page = PAGE.read_text()
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \| ([0-9a-f]{64}) \| .* \|$", page, re.MULTILINE)
    written = {name: (size, sha256) for name, size, sha256 in rows}
    assert set(written) == set(weight_files())
    for name, known in weight_files().items():
        size, sha256 = written[name]
        assert sha256 == known.sha256
        assert size == (f"{known.bytes:,}" if known.bytes else "not known (3.94 GB)")


def test_every_metric_is_described() -> None:
    page = PAGE.read_text()
    stems = {"fid": "fid_inception_*", "kid": "kid_inception_*", "cmmd": "cmmd_*"}
    stems["fd_dinov2"] = "fd_dinov2_*"
    for metric in all_metrics():
        assert f"| `{stems.get(metric.name, metric.name)}` |" in page, metric.name
