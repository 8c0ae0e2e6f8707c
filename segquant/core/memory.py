"""What the statistics of a calibration will take, known before it runs, and kept under a budget.

One forward shows how many rows each Linear reads and which Linears read one tensor; all else
follows from sizes. Where everything at once would not fit the budget, the layers are recorded in
several passes over the calibration set, each written to disk before the next begins: more forwards
(their number is in the plan), the same statistics bit for bit. Layers that share an input stay in
one pass.

Counted are the tensors that the recorder holds or makes, not the denoiser's own. A layer that
shares its input only now and then holds a Gram matrix more than planned.

Legend: T rows, I input features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from segquant.core.calibration import Calibration
from segquant.core.input_statistics import OPEN_INPUTS, PARTS, StatisticsRecorder
from segquant.core.plain_linears import linear_layers

FLOAT32_BYTES = 4
PRIORITY_BYTES = 32  # of a sampled row: its draw and its part, twice while rows are merged


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """The passes of a calibration, and the most bytes of tensors that any of them takes."""

    passes: tuple[tuple[str, ...], ...]  # names of layers; all of the denoiser's Linears
    device_bytes: int  # where the denoiser is: Gram matrices, inputs in hand, their copies
    gram_bytes: int  # of these
    sample_bytes: int  # on the host: sampled rows and extremes
    total_bytes: int  # of both; what the budget is for
    disk_bytes: int  # all passes together

    def describe(self) -> str:
        """One line for a log."""
        times = "once" if len(self.passes) == 1 else f"{len(self.passes)} times"
        return (
            f"statistics of {sum(map(len, self.passes))} Linears: {_size(self.device_bytes)} where "
            f"the denoiser is ({_size(self.gram_bytes)} of Gram matrices), "
            f"{_size(self.sample_bytes)} of rows on the host, {_size(self.disk_bytes)} on disk; "
            f"the calibration set is run {times}"
        )


@dataclass(frozen=True, kw_only=True)
class InputGroup:
    """Layers that read one tensor."""

    layers: tuple[str, ...]
    features: int
    rows: int
    item_bytes: int
    call: int  # its place in the order in which a forward reads tensors

    def gram_bytes(self, gram: bool) -> int:
        return self.features**2 * FLOAT32_BYTES if gram else 0

    def sample_bytes(self, keep: int) -> int:
        """Rows, their draws, and both extremes, of every layer: shared ones are told apart late."""
        each = self.features * FLOAT32_BYTES * (keep + 2 * PARTS) + keep * PRIORITY_BYTES
        return each * len(self.layers)

    def opened_bytes(self, gram: bool) -> int:
        """An input that may still be another layer's, its Gram matrix and its extremes."""
        inputs = self.rows * self.features * self.item_bytes
        return inputs + self.gram_bytes(gram) + 2 * self.features * FLOAT32_BYTES

    def copies_bytes(self, keep: int) -> int:
        """Copies of an input while its rows are drawn."""
        row = self.features * self.item_bytes
        exact = self.features * FLOAT32_BYTES
        return self.rows * (2 * row + 2 * exact) + (2 * keep + self.rows) * exact + 2 * exact


def plan_statistics(
    denoiser: nn.Module,
    *,
    forward: Callable[[nn.Module], object],
    gram: bool,
    rows: int,
    budget_bytes: int | None = None,
) -> MemoryPlan:
    """The passes that stay within the budget, and what they take.

    Args:
        forward: runs the denoiser once, on an input as large as the calibration's.
        rows: rows sampled per layer.
        budget_bytes: for all tensors of a pass; None for no limit.

    Raises:
        ValueError: one layer alone is above the budget.
    """
    return plan_groups(
        input_groups(denoiser, forward), gram=gram, rows=rows, budget_bytes=budget_bytes
    )


def plan_groups(
    groups: Sequence[InputGroup], *, gram: bool, rows: int, budget_bytes: int | None = None
) -> MemoryPlan:
    """`plan_statistics` of what a forward has shown before.

    Raises:
        ValueError: one layer alone is above the budget.
    """
    passes: list[list[InputGroup]] = [[]]
    for group in groups:
        if budget_bytes is not None and _total([group], gram, rows) > budget_bytes:
            raise ValueError(
                f"{group.layers[0]}: its statistics alone take "
                f"{_size(_total([group], gram, rows))}, above the budget of "
                f"{_size(budget_bytes)}; raise statistics_gigabytes, or use a smaller batch"
            )
        if budget_bytes is not None and _total([*passes[-1], group], gram, rows) > budget_bytes:
            passes.append([])
        passes[-1].append(group)
    return MemoryPlan(
        passes=tuple(tuple(n for group in groups for n in group.layers) for groups in passes),
        device_bytes=max(_gram(groups, gram) + _working(groups, gram, rows) for groups in passes),
        gram_bytes=max(_gram(groups, gram) for groups in passes),
        sample_bytes=max(_samples(groups, rows) for groups in passes),
        total_bytes=max(_total(groups, gram, rows) for groups in passes),
        disk_bytes=sum(_gram(groups, gram) + _samples(groups, rows) for groups in passes),
    )


def largest_input(denoiser: nn.Module, *, forward: Callable[[nn.Module], object]) -> int:
    """Elements of the largest tensor that a Linear reads in a forward; on the meta device too."""
    linears = linear_layers(denoiser)
    rows = _read_inputs(denoiser, forward).rows
    return max((count * linears[name].in_features for name, count in rows.items()), default=0)


def record_in_passes(
    denoiser: nn.Module,
    folder: Path,
    *,
    plan: MemoryPlan,
    run: Callable[[StatisticsRecorder], None],
    gram: bool,
    rows: int,
    seed: int,
) -> int:
    """Runs the calibration set for every pass of the plan and saves what each saw.

    Args:
        run: runs the denoiser over the whole calibration set, and tells the recorder of its parts.

    Returns:
        The number of forwards.
    """
    forwards = 0
    for number, layers in enumerate(plan.passes):
        recorder = StatisticsRecorder(
            denoiser, layers=layers, gram=gram, sample_rows=rows, seed=seed
        )
        with recorder:
            run(recorder)
        forwards += recorder.forwards
        _save(recorder, folder if len(plan.passes) == 1 else folder / f"part{number:04d}")
        del recorder  # before the next pass: its statistics are on disk
    return forwards


def _save(recorder: StatisticsRecorder, folder: Path) -> None:
    Calibration(statistics=recorder.statistics(), forwards=recorder.forwards).save(folder)


@dataclass
class _Read:
    """A tensor that was just read, and the layers that read it."""

    tensor: torch.Tensor
    version: int
    readers: list[str]


class _Readers:
    """Which Linears read one tensor, and how many rows each reads; on the meta device too."""

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}
        self._open: list[_Read] = []
        self._closed: dict[str, list[tuple[str, ...]]] = {}

    def see(self, name: str, x: torch.Tensor) -> None:
        self.rows[name] = self.rows.get(name, 0) + (x.numel() // max(1, x.shape[-1]))
        version = 0 if x.is_inference() else x._version
        for read in self._open:
            if read.tensor is x and read.version == version:
                read.readers.append(name)
                return
        self._open.append(_Read(tensor=x, version=version, readers=[name]))
        self.close(keep=OPEN_INPUTS)

    def close(self, *, keep: int) -> None:
        while len(self._open) > keep:
            readers = tuple(self._open.pop(0).readers)
            for name in dict.fromkeys(readers):
                self._closed.setdefault(name, []).append(readers)

    def sharing(self, name: str) -> set[str]:
        """The layers that read the same tensors at every call, itself among them."""
        own = self._closed.get(name)
        return {name, *(other for other, keys in self._closed.items() if keys == own)}


def _read_inputs(denoiser: nn.Module, forward: Callable[[nn.Module], object]) -> _Readers:
    seen, handles = _Readers(), []
    for name, linear in linear_layers(denoiser).items():

        def see(module: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
            seen.see(name, args[0] if args else kwargs["input"])

        handles.append(linear.register_forward_pre_hook(see, with_kwargs=True))
    try:
        with torch.no_grad():
            forward(denoiser)
    finally:
        for handle in handles:
            handle.remove()
    seen.close(keep=0)
    return seen


def input_groups(denoiser: nn.Module, forward: Callable[[nn.Module], object]) -> list[InputGroup]:
    """Layers by shared input, in module order; what one forward did not call is taken to be as
    large as the largest that it did."""
    seen = _read_inputs(denoiser, forward)
    linears = linear_layers(denoiser)
    most = max(seen.rows.values(), default=1)
    calls = {name: call for call, name in enumerate(seen.rows)}
    groups: list[InputGroup] = []
    placed: set[str] = set()
    for name, linear in linears.items():
        if name in placed:
            continue
        sharing = seen.sharing(name) if name in seen.rows else {name}
        layers = tuple(n for n in linears if n in sharing and n not in placed)
        placed.update(layers)
        groups.append(
            InputGroup(
                layers=layers,
                features=linear.in_features,
                rows=seen.rows.get(name, most),
                item_bytes=linear.weight.element_size(),
                call=min(calls.get(layer, len(calls)) for layer in layers),
            )
        )
    return groups


def _gram(groups: list[InputGroup], gram: bool) -> int:
    return sum(group.gram_bytes(gram) for group in groups)


def _samples(groups: list[InputGroup], keep: int) -> int:
    return sum(group.sample_bytes(keep) for group in groups)


def _working(groups: list[InputGroup], gram: bool, keep: int) -> int:
    """What is held while a tensor is read: the last ones read are open still, and a forward's first
    follow on the last of the one before it."""
    read = sorted(groups, key=lambda group: group.call)
    opened = [group.opened_bytes(gram) for group in read]
    return max(
        (
            sum(opened[(at - back) % len(read)] for back in range(OPEN_INPUTS + 1))
            + group.copies_bytes(keep)
            for at, group in enumerate(read)
        ),
        default=0,
    )


def _total(groups: list[InputGroup], gram: bool, keep: int) -> int:
    return _gram(groups, gram) + _working(groups, gram, keep) + _samples(groups, keep)


def _size(count: int) -> str:
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count} B"
