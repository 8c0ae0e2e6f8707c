import json
import math
from pathlib import Path

import pytest

from evaluation.records import Metric, Record, read_record, stable_view, write_record


def make_record(**changes: object) -> Record:
    fields: dict[str, object] = {
        "run_id": "abc",
        "status": "ok",
        "model": "tiny",
        "method": "rtn",
        "bits": "w8a8",
        "dataset": "shapes",
        "seed": 3,
        "metrics": {
            "psnr": Metric(
                value=math.inf,
                higher_is_better=True,
                n=4,
                against="reference",
                interval=[-math.inf, math.inf],
                interval_kind="bootstrap95",
                unit="dB",
            ),
            "lpips": Metric(
                value=None, higher_is_better=False, n=0, against="reference", note="NaN"
            ),
        },
        "protocol": {"steps": 4, "odd": [math.inf, {"deep": -math.inf}]},
        "seconds": {"generate": 1.5},
        "effective_bits_per_weight": 8.25,
    }
    return Record(**{**fields, **changes})  # type: ignore[arg-type]


def test_round_trip_keeps_everything(tmp_path: Path) -> None:
    record = make_record()
    write_record(tmp_path / "deep" / "record.json", record)
    assert read_record(tmp_path / "deep" / "record.json") == record
    assert [item.name for item in (tmp_path / "deep").iterdir()] == ["record.json"]


def test_json_is_standard(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_record(path, make_record())

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    data = json.loads(path.read_text(), parse_constant=refuse)
    assert data["metrics"]["psnr"]["value"] == "Infinity"
    assert data["metrics"]["psnr"]["interval"] == ["-Infinity", "Infinity"]


def test_text_that_reads_as_a_number_stays_text(tmp_path: Path) -> None:
    write_record(tmp_path / "r.json", make_record())
    assert read_record(tmp_path / "r.json").metrics["lpips"].note == "NaN"


def test_nan_round_trip(tmp_path: Path) -> None:
    write_record(tmp_path / "r.json", make_record(extra_macs_fraction=math.nan))
    value = read_record(tmp_path / "r.json").extra_macs_fraction
    assert value is not None
    assert math.isnan(value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(surprise=1), "unknown key 'surprise'"),
        (lambda d: d.pop("bits"), "missing key 'bits'"),
        (lambda d: d["metrics"]["psnr"].pop("n"), "metrics: psnr: Metric: missing key 'n'"),
        (lambda d: d.update(schema_version=99), "schema_version is 99"),
        (lambda d: d.update(seed="three"), "seed"),
        (lambda d: d.update(seed=True), "seed"),
        (lambda d: d.update(status="done"), "status='done' is not one of"),
    ],
)
def test_strict_reading_names_file_and_key(tmp_path: Path, change: object, message: str) -> None:
    path = tmp_path / "record.json"
    write_record(path, make_record())
    data = json.loads(path.read_text())
    change(data)  # type: ignore[operator]
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=message) as raised:
        read_record(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(("bits", "now"), [(8.25, "8.26"), (0.1 + 0.2, "0.30000000000000005")])
def test_a_changed_digit_is_seen(tmp_path: Path, bits: float, now: str) -> None:
    path = tmp_path / "record.json"
    write_record(path, make_record(effective_bits_per_weight=bits))
    path.write_text(path.read_text().replace(str(bits), now))
    assert now in path.read_text()
    with pytest.raises(ValueError, match="not what was written"):
        read_record(path)


def test_bare_infinity_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text('{"schema_version": 1, "seed": Infinity}')
    with pytest.raises(ValueError, match="standard JSON"):
        read_record(path)


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_record(path, make_record())
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        write_record(path, make_record(protocol={"path": Path("x")}))
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_a_skipped_cell_needs_its_reason(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a reason"):
        write_record(tmp_path / "r.json", make_record(status="skipped"))


def test_stable_view_leaves_out_what_two_runs_do_not_share() -> None:
    speed = Metric(value=2.0, higher_is_better=False, n=4, against="", unit="s")
    first, second = make_record(), make_record(seconds={"generate": 9.0})
    second.peak_memory_bytes = 7
    second.times_utc = {"started": "2030-01-01T00:00:00+00:00"}
    second.environment = {"torch": "9"}
    second.metrics["seconds_per_image"] = speed
    assert stable_view(first) == stable_view(second)
    second.metrics["psnr"].value = 40.0
    assert stable_view(first) != stable_view(second)
