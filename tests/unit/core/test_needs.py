"""A method gets of a calibration what it asked for, whatever else was recorded for others."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from segquant.core.calibration import Calibration
from segquant.core.input_statistics import StatisticsRecorder
from segquant.core.method_interface import StatisticsNeeds
from segquant.core.recorded_calls import CallRecorder, CapturedCalls
from segquant.core.stepwise import StepRecorder
from tests.unit.baselines.timed import Timed, calls

CALL_BYTES = 64 * 16 * 4 + 4

# What one method asks for, and what another asks for beyond it.
FIELDS: dict[str, tuple[Any, Any]] = {
    "gram": (False, True),
    "rows": (7, 60),
    "graph": (False, True),
    "steps": (False, True),
    "capture_bytes": (3 * CALL_BYTES, 10**6),
    "replay": (False, True),
}


def recorded(needs: StatisticsNeeds, folder: Path) -> Calibration:
    """A calibration made for these needs alone."""
    model = Timed()
    recorder = StatisticsRecorder(model, gram=needs.gram, sample_rows=needs.rows)
    steps = StepRecorder(model)
    kept = CallRecorder(model, folder, cap_bytes=needs.capture_bytes)
    with torch.no_grad(), recorder, steps, kept:
        for number, (x, timestep) in enumerate(calls()):
            recorder.part = number // 4
            model(x, timestep)
    calibration = Calibration(statistics=recorder.statistics(), forwards=recorder.forwards)
    calibration.graph = {"a": "graph"} if needs.graph else None
    calibration.steps = steps.statistics() if needs.steps else None
    calibration.captured = CapturedCalls.load(folder) if needs.capture_bytes else None
    calibration.replay = recorder.statistics if needs.replay else None  # any object
    return calibration


def plain(calibration: Calibration) -> dict[str, Any]:
    """All that a method can read of it."""
    taken: dict[str, Any] = {}
    for name, seen in calibration.statistics.items():
        taken |= {f"{name}.{one.name}": getattr(seen, one.name) for one in fields(seen)}
    captured = calibration.captured
    return taken | {
        "graph": calibration.graph,
        "steps": None if calibration.steps is None else sorted(calibration.steps),
        "calls": None if captured is None else [call.arguments for call in captured.calls],
        "replay": calibration.replay is not None,
    }


def same(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_every_field_is_looked_at() -> None:
    of_a_warning = {"prompts"}  # nothing of the calibration
    assert set(FIELDS) | of_a_warning == {one.name for one in fields(StatisticsNeeds)}


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("saved", [False, True])
def test_what_others_asked_for_is_not_seen(name: str, saved: bool, tmp_path: Path) -> None:
    few, many = FIELDS[name]
    base = {"rows": 20} | {name: few}
    own = StatisticsNeeds(**base)
    union = own.union(StatisticsNeeds(**(base | {name: many})))
    assert union != own
    held = recorded(union, tmp_path / "union")
    if saved:
        held.save(tmp_path / "saved")
        held.statistics = Calibration.load(tmp_path / "saved").statistics
    alone, found = plain(recorded(own, tmp_path / "own")), plain(own.of(held))
    assert alone.keys() == found.keys()
    assert not [key for key, value in alone.items() if not same(value, found[key])]
    # and what is seen of the wider calibration is more: the case is no empty one
    assert [key for key, value in alone.items() if not same(value, plain(union.of(held))[key])]


def test_layers_of_one_input_still_share_a_gram_matrix(tmp_path: Path) -> None:
    held = recorded(StatisticsNeeds(gram=True), tmp_path / "calls")
    own = StatisticsNeeds(gram=True, rows=5).of(held).statistics
    assert len(own) == len(held.statistics)
    for name, seen in held.statistics.items():
        assert own[name].gram_II is seen.gram_II
        assert own[name].shared_with == seen.shared_with
