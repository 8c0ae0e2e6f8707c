"""Shards: whatever their number, the same images, calibration and metrics; resumed one by one."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluation.datasets.interface import Prompt
from evaluation.records import Record, read_record, stable_view
from experiments.cell.shards import Shard, shards_of
from experiments.cell.sweep import open_sweep
from experiments.cli import main
from experiments.config.request import read_request
from experiments.sampling import sample
from experiments.sampling.calibrate import load_calibration
from segquant.core.calibration import TENSOR_KEYS, Calibration
from tests.conftest import SETTINGS, Answer

Segbench = Callable[..., Answer]

# statistics with Gram matrices, per step, and calls
METHODS = ("method=rtn,gptq,ptq4dit", "bits=w8a8_int8")
FLOOR = ("method=noise_floor", "bits=w16a16")  # other batches
FEW = (
    "model.batch_size=2",
    "model.num_inference_steps=2",
    "dataset.evaluation_prompts=7",
    "dataset.calibration_prompts=10",
    "metrics.teacher_forced_prompts=2",
    "model.call.max_sequence_length=24",
)
_GIVEN = {setting.split("=")[0] for setting in FEW}
SETTINGS_OF_ALL = (*(s for s in SETTINGS if s.split("=")[0] not in _GIVEN), *FEW)


def stages(out: Path, kind: str) -> dict[str, Path]:
    """Hash -> folder of finished stages."""
    return {p.parent.name: p.parent for p in (out / "stages" / kind).glob("*/manifest.json")}


def pictures(out: Path, *, but: str | None = None) -> dict[tuple[str, str], bytes]:
    """Of the reference and every method, or of all but one."""
    records = _records(out)
    left_out = {record.stages["images"] for record in records if record.method == but}
    found = stages(out, "images")
    return {
        (name, path.name): path.read_bytes()
        for name, folder in found.items()
        if name not in left_out
        for path in folder.glob("*.png")
    }


def views(out: Path, *, but: str | None = None) -> dict[tuple[str, str], Any]:
    """Records without what calibrating cost: each shard looks at its memory with one forward."""
    told = {(r.method, r.bits): stable_view(r) for r in _records(out) if r.method != but}
    for view in told.values():
        view.pop("calibration_forwards")
    return told


def check_calibrations(out: Path, expected: Path) -> None:
    found, wanted = stages(out, "calibration"), stages(expected, "calibration")
    assert found.keys() == wanted.keys()
    assert len(found) == 1
    for name in found:
        one, other = load_calibration(found[name]), load_calibration(wanted[name])
        check_statistics(one, other)
        assert one.steps
        assert other.steps
        assert one.steps.keys() == other.steps.keys()
        for layer, steps in one.steps.items():
            assert steps.timesteps == other.steps[layer].timesteps
            for key in ("low_SI", "high_SI", "sample_SKI"):
                assert torch.equal(getattr(steps, key), getattr(other.steps[layer], key))
        assert one.captured
        assert other.captured
        assert one.captured.calls == other.captured.calls


def check_statistics(one: Calibration, other: Calibration) -> None:
    assert list(one.statistics) == list(other.statistics)
    for layer in one.statistics:
        seen, expected = one.statistics[layer], other.statistics[layer]
        assert (seen.rows, seen.calls) == (expected.rows, expected.calls)
        assert seen.shared_with == expected.shared_with
        for key in TENSOR_KEYS:
            mine, theirs = getattr(seen, key), getattr(expected, key)
            assert (mine is None) == (theirs is None)
            if key == "gram_II" and mine is not None:
                scale = float(theirs.diagonal().max())
                torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6 * scale)
            elif mine is not None:
                assert torch.equal(mine, theirs), (layer, key)


def check_equal(out: Path, expected: Path, *, but: str | None = None) -> None:
    assert pictures(out, but=but) == pictures(expected, but=but)
    assert views(out, but=but) == views(expected, but=but)
    check_calibrations(out, expected)
    assert not list((out / "stages").glob("*_shards_*")), "shards are removed once they are merged"


@pytest.fixture(scope="module")
def whole(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a run without shards."""
    out = tmp_path_factory.mktemp("whole") / "out"
    given = [f"model.path={zoo / 'tiny_mmdit'}", f"metrics.evaluator={zoo / 'evaluator'}"]
    for row in (METHODS, FLOOR):
        assert main(["run", "-m", *given, *SETTINGS_OF_ALL, *row, f"out={out}"]) == 0
    return out


@pytest.fixture
def words(zoo: Path) -> list[str]:
    given = [f"model.path={zoo / 'tiny_mmdit'}", f"metrics.evaluator={zoo / 'evaluator'}"]
    return [*given, *SETTINGS_OF_ALL]


@pytest.mark.parametrize("count", [2, 5])
def test_any_number_of_shards_gives_the_same(
    segbench: Segbench, words: list[str], whole: Path, tmp_path: Path, count: int
) -> None:
    """GPTQ's codes follow from sums, which another number of shards rounds otherwise."""
    for row in (METHODS, FLOOR):
        on = [f"cluster.shards={count}", f"out={tmp_path}"]
        answer = segbench("run", "-m", *words, *row, *on)
        assert answer.status == 0, answer.err
    check_equal(tmp_path, whole, but="gptq")
    manifests = [
        json.loads((folder / "manifest.json").read_text())
        for kind in ("calibration", "images")
        for folder in stages(tmp_path, kind).values()
    ]
    shards = {(m["kind"], len(m["notes"]["shards"])) for m in manifests}
    # seven prompts are four batches, and two under the floor's batch size
    assert shards == {("calibration", count), ("images", min(count, 4)), ("images", 2)}
    (calibration,) = stages(tmp_path, "calibration").values()
    notes = [
        json.loads((folder / "manifest.json").read_text())["notes"]
        for folder in (calibration, *stages(whole, "calibration").values())
    ]
    assert notes[0]["forwards"] == notes[1]["forwards"] + count - 1


def test_the_images_of_one_calibration_are_the_same_for_every_method(
    segbench: Segbench, words: list[str], whole: Path, tmp_path: Path
) -> None:
    """Of GPTQ too: there is one calibration in a store, whoever made it in how many shards."""
    shutil.copytree(whole, tmp_path / "out")
    for name in ("cells", "stages/images", "stages/step_errors", "stages/metrics"):
        shutil.rmtree(tmp_path / "out" / name)
    for row in (METHODS, FLOOR):
        given = [*words, *row, "cluster.shards=2", f"out={tmp_path / 'out'}"]
        answer = segbench("run", "-m", *given)
        assert answer.status == 0, answer.err
    check_equal(tmp_path / "out", whole)


def test_inputs_to_be_replayed_are_the_same(
    segbench: Segbench, words: list[str], tmp_path: Path
) -> None:
    given = [*words, "method=segquant_g", "method.sequential=inputs"]
    described = []
    for count in (1, 2):
        answer = segbench("run", *given, f"cluster.shards={count}", f"out={tmp_path / f'{count}'}")
        assert answer.status == 0, answer.err
        ((name, folder),) = stages(tmp_path / f"{count}", "calibration_inputs").items()
        manifest = json.loads((folder / "manifest.json").read_text())
        kept = {"batches": manifest["notes"]["batches"], "forwards": manifest["notes"]["forwards"]}
        described.append((name, manifest["files"], kept))
    assert described[0] == described[1]
    assert len(described[0][1]) == 5
    refused = segbench(
        "run", *given, "cluster.shards=2", "replay_gigabytes=0.0001", f"out={tmp_path / 'tight'}"
    )
    assert refused.status == 1
    (path,) = (tmp_path / "tight" / "cells").glob("*/record.json")
    assert "above replay_gigabytes=0.0001" in read_record(path).reason


def test_shards_as_processes_give_the_same(
    segbench: Segbench, words: list[str], whole: Path, tmp_path: Path
) -> None:
    on = ["cluster=local_parallel", "cluster.shards=2", f"out={tmp_path}"]
    planned = segbench("run", "--dry-run", *words, "method=rtn", *on)
    for line in (
        "2 x reference-shard",
        "2 x calibration-shard",
        "1 x quantize",
        "2 x images-shard",
        "images shard 2 of 2 of tiny_mmdit rtn w8a8_int8",
        "10 jobs",
    ):
        assert line in planned.out, line
    answer = segbench("run", *words, "method=rtn", *on)
    assert answer.status == 0, answer.err
    found, expected = pictures(tmp_path), pictures(whole)
    assert len(found) == 2 * 7
    assert found == {name: expected[name] for name in found}
    assert views(tmp_path) == {("rtn", "w8a8_int8"): views(whole)["rtn", "w8a8_int8"]}
    made = [outcome for outcome in answer.err.splitlines() if outcome.endswith(": done")]
    assert len(made) == 10, "every job made what it was for, and no other"
    assert not list((tmp_path / "stages").glob("*_shards_*"))


@pytest.fixture
def sampled(whole: Path, tmp_path: Path) -> Path:
    """A store in which the images of one method are missing, and nothing else."""
    out = tmp_path / "sampled"
    shutil.copytree(whole, out)
    for path in (out / "cells").glob("*/record.json"):
        record = read_record(path)
        if record.method == "rtn":
            shutil.rmtree(out / "stages" / "images" / record.stages["images"])
            shutil.rmtree(path.parent)
    return out


def stamps(folders: Iterable[Path]) -> set[tuple[str, int]]:
    """When each picture was written: a link to it tells the same."""
    return {(p.name, p.stat().st_mtime_ns) for folder in folders for p in folder.glob("*.png")}


def shards(out: Path) -> list[Path]:
    return [path.parent for path in (out / "stages").glob("images_shards_*/*/manifest.json")]


def test_a_shard_that_failed_is_made_again_alone(
    segbench: Segbench,
    words: list[str],
    whole: Path,
    sampled: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    genuine, given = sample.sample, [*words, "method=rtn", "cluster.shards=5", f"out={sampled}"]
    asked: list[str] = []

    def third_fails(pipeline: Any, prompts: Sequence[Prompt], **settings: Any) -> Any:
        asked.extend(prompt.id for prompt in prompts)
        if len(asked) == 6:
            raise RuntimeError("out of memory")
        return genuine(pipeline, prompts, **settings)

    with monkeypatch.context() as broken:
        broken.setattr(sample, "sample", third_fails)
        assert segbench("run", *given).status == 1
    (record,) = (record for record in _records(sampled) if record.method == "rtn")
    assert "out of memory" in record.reason
    kept = stamps(shards(sampled))
    assert len(kept) == 4
    asked.clear()
    with monkeypatch.context() as counted:
        counted.setattr(sample, "sample", third_fails)
        asked.extend(f"not {n}" for n in range(10))  # so that none fails now
        assert segbench("retry", *given).status == 0
    assert len(asked) == 10 + 3, "two batches: the one that failed, and the one after it"
    check_equal(sampled, whole)
    assert kept <= stamps(stages(sampled, "images").values())


def test_a_killed_shard_is_made_again_alone(
    segbench: Segbench, words: list[str], whole: Path, sampled: Path
) -> None:
    on = ["cluster=local_parallel", "cluster.shards=5", f"out={sampled}"]
    killed: list[int] = []

    def kill_one() -> None:
        while not killed:
            time.sleep(0.005)
            for path in (sampled / "stages").glob("images_shards_*/*.partial/.attempts.jsonl"):
                lines = path.read_text().split()
                with contextlib.suppress(ValueError, IndexError):  # being written
                    killed.append(int(json.loads(" ".join(lines))["pid"]))
                    os.kill(killed[0], signal.SIGKILL)
                    return

    killer = threading.Thread(target=kill_one)
    killer.start()
    answer = segbench("run", *words, "method=rtn", *on)
    killer.join()
    assert answer.status == 1
    assert "what it needs failed (images shard" in answer.err
    finished = shards(sampled)
    assert len(finished) == 3, "the other shards went on"
    kept = stamps(finished)
    again = segbench("retry", *words, "method=rtn", *on)
    assert again.status == 0, again.err
    made = [line for line in again.err.splitlines() if line.endswith(": done")]
    assert len(made) == 2, "the shard, and the cell that puts all together"
    check_equal(sampled, whole)
    assert kept <= stamps(stages(sampled, "images").values())


def test_shards_are_named_by_their_batches_and_none_is_empty(
    words: list[str], tmp_path: Path
) -> None:
    def cut(count: int) -> list[Shard]:
        request = read_request(
            [*words, f"cluster.shards={count}", f"out={tmp_path}"], multirun=False
        )
        return list(shards_of(open_sweep(request).cells[0].reference))

    assert cut(1) == []
    for count in (2, 3, 4, 9):
        found = cut(count)
        assert len(found) == min(count, 4)
        assert [n for shard in found for n in shard.batches] == [0, 1, 2, 3]
    assert [shard.hash for shard in cut(4)] == [shard.hash for shard in cut(9)]
    assert len({shard.hash for count in (2, 4) for shard in cut(count)}) == 6


def _records(out: Path) -> list[Record]:
    return [read_record(path) for path in (out / "cells").glob("*/record.json")]
