"""The memory plan: peak bytes stay within it, passes give the same statistics, budgets are kept."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from segquant.core.calibration import Calibration
from segquant.core.input_statistics import StatisticsRecorder
from segquant.core.memory import MemoryPlan, plan_statistics, record_in_passes
from tests.unit.core import denoisers
from tests.unit.core.helpers import calibrate, generator

BUDGET = 1_050_000  # above what the largest layer of Stack takes, below what all of it does


class LiveBytes(TorchDispatchMode):
    """The most bytes of tensors alive at once, of those made inside."""

    def __init__(self) -> None:
        super().__init__()
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        for one in tree_leaves(out):
            if isinstance(one, Tensor):
                storage = one.untyped_storage()
                self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._alive = {key: kept for key, kept in self._alive.items() if not kept[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return out


class Stack(nn.Module):
    """Small activations and large Gram matrices, shared by three layers of each block."""

    def __init__(self, *, blocks: int = 6, width: int = 96, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(
            nn.ModuleList(nn.Linear(width, width, dtype=dtype) for _ in range(3))
            for _ in range(blocks)
        )
        self.wide = nn.Linear(width, 2 * width, dtype=dtype)
        self.last = nn.Linear(2 * width, width, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        for q, k, v in self.blocks:
            x = torch.tanh(q(x) * k(x) + v(x))
        return self.last(torch.tanh(self.wide(x)))


def peak(run: Callable[[], Any]) -> int:
    with torch.no_grad(), LiveBytes() as live:
        run()
    return live.peak


@pytest.mark.parametrize("gram", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [8, 512])
def test_the_recorder_stays_within_its_plan(gram: bool, dtype: torch.dtype, rows: int) -> None:
    """Measured: tensors alive with the recorder, less those alive without it."""
    model = Stack(dtype=dtype)
    batches = [torch.randn(rows, 96, generator=generator(n)).to(dtype) for n in range(6)]
    plan = plan_statistics(model, forward=lambda one: one(batches[0]), gram=gram, rows=64)

    def record() -> None:
        with StatisticsRecorder(model, gram=gram, sample_rows=64) as recorder:
            run()
        recorder.statistics()

    def run() -> None:
        for batch in batches:
            model(batch)

    used = peak(record) - peak(run)
    assert used <= plan.total_bytes
    # A bound that says nothing would be none.
    assert plan.total_bytes < 2 * used


@pytest.mark.parametrize("name", sorted(denoisers.ALL))
def test_real_denoisers_stay_within_their_plans(name: str) -> None:
    model, batches, _ = denoisers.ALL[name]()
    plan = plan_statistics(model, forward=lambda one: one(**batches[0]), gram=True, rows=32)
    used = peak(lambda: calibrate(model, batches, rows=32)) - peak(
        lambda: [model(**batch) for batch in batches]
    )
    assert used <= plan.total_bytes


def planned(model: nn.Module, batch: Tensor, budget: int | None) -> MemoryPlan:
    return plan_statistics(
        model, forward=lambda one: one(batch), gram=True, rows=32, budget_bytes=budget
    )


def recorded(model: nn.Module, batches: Sequence[Tensor], plan: MemoryPlan, folder: Path) -> int:
    def run(recorder: StatisticsRecorder) -> None:
        with torch.no_grad():
            for number, batch in enumerate(batches):
                recorder.part = number
                model(batch)

    return record_in_passes(model, folder, plan=plan, run=run, gram=True, rows=32, seed=0)


def test_passes_stay_within_the_budget_and_change_nothing(tmp_path: Path) -> None:
    model = Stack(dtype=torch.float32)
    batches = [torch.randn(8, 96, generator=generator(n)) for n in range(3)]
    free = planned(model, batches[0], None)
    assert len(free.passes) == 1
    assert "is run once" in free.describe()
    budget = BUDGET
    tight = planned(model, batches[0], budget)
    count = len(tight.passes)
    assert count > 1
    assert tight.total_bytes <= budget
    assert tight.disk_bytes == free.disk_bytes
    assert f"is run {count} times" in tight.describe()
    assert sorted(n for one in tight.passes for n in one) == sorted(free.passes[0])
    assert recorded(model, batches, free, tmp_path / "once") == 3
    without = peak(lambda: [model(batch) for batch in batches])
    used = peak(lambda: recorded(model, batches, tight, tmp_path / "parts"))
    assert used - without <= budget
    once, parts = (Calibration.load(tmp_path / name) for name in ("once", "parts"))
    assert (once.forwards, parts.forwards) == (3, 3 * count)
    assert set(once.statistics) == set(parts.statistics)
    for name, expected in once.statistics.items():
        found = parts.statistics[name]
        assert (found.rows, found.shared_with) == (expected.rows, expected.shared_with)
        for key in ("low_I", "high_I", "sample_TI", "gram_II"):
            assert torch.equal(getattr(found, key), getattr(expected, key))


def test_layers_of_one_input_stay_in_one_pass() -> None:
    model, batch = Stack(dtype=torch.float32), torch.randn(8, 96)
    plan = planned(model, batch, BUDGET)
    for one in plan.passes:
        for n in range(6):
            names = {f"blocks.{n}.{k}" for k in range(3)}
            assert not names & set(one) or names <= set(one)


def test_a_budget_too_small_for_one_layer_says_what_it_takes() -> None:
    model, batch = Stack(dtype=torch.float32), torch.randn(8, 96)
    with pytest.raises(ValueError, match=r"last: its statistics alone take .* above the budget of"):
        planned(model, batch, 900_000)
    with pytest.raises(ValueError, match="raise statistics_gigabytes, or use a smaller batch"):
        planned(model, batch, 1000)


def test_what_one_forward_does_not_call_is_in_the_plan() -> None:
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x)) if bool(x.sum() > 0) else self.a(x)

    plan = planned(Sometimes(), -torch.ones(2, 4), None)
    assert plan.passes == (("a", "b"),)
