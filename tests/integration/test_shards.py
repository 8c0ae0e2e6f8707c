"""Shards: whatever their number, the same images, calibration and metrics; resumed one by one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluation.records import read_record, stable_view
from experiments.cli import main
from experiments.sampling.calibrate import load_calibration
from segquant.core.calibration import TENSOR_KEYS, Calibration
from tests.conftest import SETTINGS, Answer

Segbench = Callable[..., Answer]

# statistics with Gram matrices, per step, and calls
METHODS = ("method=rtn,gptq,ptq4dm,adaround,noise_floor", "bits=w8a8_int8,w16a16")
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
    records = [read_record(path) for path in (out / "cells").glob("*/record.json")]
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
    records = [read_record(path) for path in (out / "cells").glob("*/record.json")]
    told = {(r.method, r.bits): stable_view(r) for r in records if r.method != but}
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
        assert (one.steps is None) == (other.steps is None)
        for layer, steps in (one.steps or {}).items():
            assert other.steps is not None
            assert steps.timesteps == other.steps[layer].timesteps
            for key in ("low_SI", "high_SI", "sample_SKI"):
                assert torch.equal(getattr(steps, key), getattr(other.steps[layer], key))
        assert (one.captured is None) == (other.captured is None)
        if one.captured is not None and other.captured is not None:
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
    assert main(["run", "-m", *given, *SETTINGS_OF_ALL, *METHODS, f"out={out}"]) == 0
    return out


@pytest.fixture
def words(zoo: Path) -> list[str]:
    given = [f"model.path={zoo / 'tiny_mmdit'}", f"metrics.evaluator={zoo / 'evaluator'}"]
    return [*given, *SETTINGS_OF_ALL]


@pytest.mark.parametrize(("cluster", "count"), [("local", 2), ("local", 5), ("local_parallel", 5)])
def test_any_number_of_shards_gives_the_same(
    segbench: Segbench, words: list[str], whole: Path, tmp_path: Path, cluster: str, count: int
) -> None:
    """GPTQ's codes follow from sums, which another number of shards rounds otherwise."""
    on = [f"cluster={cluster}", f"cluster.shards={count}", f"out={tmp_path}"]
    answer = segbench("run", "-m", *words, *METHODS, *on)
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
    given = [*words, *METHODS, "cluster.shards=2", f"out={tmp_path / 'out'}"]
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
