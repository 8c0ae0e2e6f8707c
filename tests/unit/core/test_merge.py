"""Shards of a calibration set, put together, are what one pass over all of it leaves behind."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from segquant.core.calibration import TENSOR_KEYS, Calibration
from segquant.core.files import TENSORS_FILE, Deferred, read_folder, write_deferred
from segquant.core.input_statistics import PARTS, StatisticsRecorder
from segquant.core.memory import plan_statistics, record_in_passes
from segquant.core.merge_calls import merge_calls
from segquant.core.merge_statistics import merge_statistics
from segquant.core.merge_steps import merge_steps, save_seen
from segquant.core.plain_linears import linear_layers
from segquant.core.recorded_calls import CallRecorder, CapturedCalls
from segquant.core.stepwise import StepRecorder, load_steps, save_steps
from tests.unit.core.helpers import generator

ROWS = 24
STEPS = (900.0, 500.0, 100.0)


class Denoiser(nn.Module):
    """Layers that share an input always, now and then, or twice, and some that few batches call."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.late = nn.Linear(6, 6)
        self.q, self.k, self.v = (nn.Linear(6, 4) for _ in range(3))
        self.out = nn.Linear(4, 6)
        self.rare = nn.Linear(6, 6)
        self.pooled = nn.Linear(6, 6)
        self.never = nn.Linear(6, 6)

    def forward(self, x: Tensor, timestep: Tensor, number: int) -> Tensor:
        k = self.k(x + 1.0 if number == 3 else x)
        y = self.out(self.q(x) * k + self.v(x)) + self.out(self.q(x))
        if number in (1, 4):
            y = y + self.rare(y)
        if number >= 5:
            y = y + self.late(y)
        if float(timestep) == STEPS[0]:  # fewer rows than a sample holds, and more at this step
            self.pooled(x.flatten(0, 1))
        return y + self.pooled(x.mean(dim=1))[:, None]


def batches(count: int = 7) -> list[Tensor]:
    g = generator(0)
    return [torch.randn(2, 5, 6, generator=g) for _ in range(count)]


def run(
    model: nn.Module,
    some: range,
    recorder: StatisticsRecorder | None = None,
    steps: StepRecorder | None = None,
) -> None:
    every = batches()
    with torch.no_grad():
        for number in some:
            if recorder is not None:
                recorder.batch, recorder.part = number, number * PARTS // len(every)
            if steps is not None:
                steps.batch = number
            for n, timestep in enumerate(STEPS):
                model(every[number] * (n + 1), torch.tensor(timestep), number=number)


def recorded(folder: Path, some: range, *, gram: bool = True, budget: int | None = None) -> Path:
    model = Denoiser()
    plan = plan_statistics(
        model,
        forward=lambda one: one(batches()[0], torch.tensor(STEPS[0]), number=0),
        gram=gram,
        rows=ROWS,
        budget_bytes=budget,
    )
    record_in_passes(
        model,
        folder,
        plan=plan,
        run=lambda recorder: run(model, some, recorder),
        gram=gram,
        rows=ROWS,
        seed=3,
    )
    return folder


def ranges(shards: int) -> list[range]:
    count = len(batches())
    return [range(count * k // shards, count * (k + 1) // shards) for k in range(shards)]


@pytest.mark.parametrize("gram", [True, False])
@pytest.mark.parametrize("shards", [1, 2, 5, 7])
def test_merged_statistics_are_those_of_one_pass(tmp_path: Path, shards: int, gram: bool) -> None:
    whole = Calibration.load(recorded(tmp_path / "whole", range(7), gram=gram))
    folders = [
        recorded(tmp_path / f"shard{k}", some, gram=gram) for k, some in enumerate(ranges(shards))
    ]
    order = list(linear_layers(Denoiser()))
    merge_statistics(folders, tmp_path / "merged", rows=ROWS, order=order)
    check_equal(Calibration.load(tmp_path / "merged"), whole)


def check_equal(merged: Calibration, whole: Calibration) -> None:
    assert list(merged.statistics) == list(whole.statistics)
    assert "never" not in merged.statistics
    assert merged.forwards == whole.forwards
    for name, expected in whole.statistics.items():
        found = merged.statistics[name]
        for key in ("rows", "calls", "shared_with", "parts"):
            assert getattr(found, key) == getattr(expected, key), (name, key)
        for key in TENSOR_KEYS:
            one, other = getattr(found, key), getattr(expected, key)
            assert (one is None) == (other is None), (name, key)
            if one is None:
                continue
            assert one.dtype == other.dtype
            if key == "gram_II":
                torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6 * float(other.max()))
            else:
                assert torch.equal(one, other), (name, key)


def test_what_layers_share_is_stored_once(tmp_path: Path) -> None:
    folders = [recorded(tmp_path / f"{k}", some) for k, some in enumerate(ranges(2))]
    order = list(linear_layers(Denoiser()))
    merge_statistics(folders, tmp_path / "merged", rows=ROWS, order=order)
    layers = json.loads((tmp_path / "merged" / "manifest.json").read_text())["layers"]
    # v reads what q reads, but once where q reads it twice; k reads another input in one batch
    assert len({layers[name]["gram_II"] for name in ("q", "k", "v")}) == 3
    whole = recorded(tmp_path / "few", range(3))
    parts = [recorded(tmp_path / f"few{k}", range(k, k + 1)) for k in range(3)]
    merge_statistics(parts, tmp_path / "merged few", rows=ROWS, order=order)
    for folder in (whole, tmp_path / "merged few"):
        layers = json.loads((folder / "manifest.json").read_text())["layers"]
        assert layers["k"]["gram_II"] == layers["v"]["gram_II"]
        assert layers["k"]["sample_TI"] == layers["v"]["sample_TI"]


def test_shards_recorded_in_passes_under_a_budget_give_the_same(tmp_path: Path) -> None:
    """Whatever the passes of each shard: another command may have had more memory."""
    whole = Calibration.load(recorded(tmp_path / "whole", range(7)))
    budgets = (13_000, None)
    folders = [
        recorded(tmp_path / f"{k}", some, budget=budget)
        for k, (some, budget) in enumerate(zip(ranges(2), budgets, strict=True))
    ]
    assert (folders[0] / "part0001").is_dir()
    order = list(linear_layers(Denoiser()))
    merge_statistics(folders, tmp_path / "merged", rows=ROWS, order=order)
    merged = Calibration.load(tmp_path / "merged")
    merged.forwards = whole.forwards  # those of every pass
    check_equal(merged, whole)


def test_the_draws_of_batches_are_independent_and_of_the_seed() -> None:
    """Draws that began anew at each batch would choose the same places in all of them."""
    every = [torch.full((64, 1), float(n)) for n in range(32)]
    model = nn.Sequential(nn.Linear(1, 1))
    counts, places = torch.zeros(32), torch.zeros(64)
    samples = []
    for seed in range(60):
        with torch.no_grad(), StatisticsRecorder(model, gram=False, sample_rows=64, seed=seed) as r:
            for number, x in enumerate(every):
                r.batch = number
                model(x + torch.arange(64)[:, None] / 64)
        sample_T = r.statistics()["0"].sample_TI.flatten()
        samples.append(sample_T)
        counts += torch.bincount(sample_T.long(), minlength=32)
        places += torch.bincount(((sample_T % 1) * 64).round().long(), minlength=64)
    assert not torch.equal(samples[0].sort().values, samples[1].sort().values)
    for seen, expected in ((counts, 60 * 64 / 32), (places, 60 * 64 / 64)):
        assert float(((seen - expected) ** 2 / expected).sum()) < 2 * len(seen)


@pytest.mark.parametrize("shards", [1, 2, 5, 7])
def test_merged_steps_are_those_of_one_pass(tmp_path: Path, shards: int) -> None:
    model = Denoiser()
    with StepRecorder(model, seed=3) as steps:
        run(model, range(7), steps=steps)
    save_steps(steps.statistics(), tmp_path / "whole")
    folders = []
    for k, some in enumerate(ranges(shards)):
        with StepRecorder(model, seed=3) as steps:
            run(model, some, steps=steps)
        folders.append(tmp_path / f"{k}")
        save_seen(steps.seen(), folders[-1])
    merge_steps(folders, tmp_path / "merged", order=list(linear_layers(model)))
    whole, merged = load_steps(tmp_path / "whole"), load_steps(tmp_path / "merged")
    assert whole.keys() == merged.keys()
    # steps of one layer differ in how many rows they have: the fewest decide
    assert whole["pooled"].sample_SKI.shape[1] == 14
    for name, expected in whole.items():
        assert merged[name].timesteps == expected.timesteps
        for key in ("low_SI", "high_SI", "sample_SKI"):
            assert torch.equal(getattr(merged[name], key), getattr(expected, key)), (name, key)


@pytest.mark.parametrize("calls", [0.5, 2, 3.5, 8.5, 13, 100])
def test_merged_calls_are_those_of_one_pass(tmp_path: Path, calls: float) -> None:
    """The cap falls within a shard, between two, or on none."""
    model, size = Denoiser(), 2 * 5 * 6 * 4
    folders = []
    for k, some in enumerate([range(7), *ranges(3)]):
        folders.append(tmp_path / f"{k}")
        with CallRecorder(model, folders[-1], cap_bytes=int(calls * (size + 4))):
            run(model, some)
    merge_calls(folders[1:], tmp_path / "merged", cap_bytes=int(calls * (size + 4)))
    whole, merged = (CapturedCalls.load(folder) for folder in (folders[0], tmp_path / "merged"))
    assert merged.calls == whole.calls
    assert merged.full == whole.full == (calls < 21)
    names = [sorted(path.name for path in one.folder.iterdir()) for one in (whole, merged)]
    assert names[0] == names[1]
    for call in merged.calls:
        given, expected = (one.arguments(call, device="cpu") for one in (merged, whole))
        assert torch.equal(given["x"], expected["x"])


def test_tensors_are_made_and_let_go_of_one_by_one(tmp_path: Path) -> None:
    alive: list[str] = []
    kinds: Sequence[torch.dtype] = (torch.float32, torch.float64, torch.int64, torch.float32)

    def make(name: str, dtype: torch.dtype) -> Tensor:
        alive.append(name)
        return torch.arange(3 * len(alive), dtype=dtype).reshape(3, -1)

    tensors = {
        f"{n}": Deferred(shape=(3, place), dtype=dtype, make=lambda n=n, d=dtype: make(f"{n}", d))
        for (n, dtype), place in zip(enumerate(kinds), (3, 1, 2, 4), strict=True)
    }
    write_deferred(tmp_path / "x", tensors=tensors, manifest={"kind": "k"})
    assert alive == ["1", "2", "0", "3"], "the widest first: all lie where their types may"
    read, _ = read_folder(tmp_path / "x", kind="k")
    for name, tensor in read.items():
        assert tensor.dtype == kinds[int(name)]
        expected = torch.arange(tensor.numel(), dtype=tensor.dtype).reshape(3, -1)
        assert torch.equal(tensor, expected)
    wrong = {"a": Deferred(shape=(2,), dtype=torch.float32, make=lambda: torch.zeros(3))}
    with pytest.raises(AssertionError, match="a"):
        write_deferred(tmp_path / "y", tensors=wrong, manifest={"kind": "k"})
    assert not (tmp_path / "y").exists()
    assert (tmp_path / "x" / TENSORS_FILE).exists()
