"""Writes in place, and indices that depend on numbers: read, or read by running, and said."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import pytest
import torch
from torch import Tensor, nn

from segquant.graph import GraphError, analyze
from tests.unit.graph.test_conditioning import hidream


def _index_put(mask: Tensor) -> None:
    mask[torch.tensor([0, 2]), torch.tensor([1, 3])] = 1.0


WRITES: dict[str, Callable[[Tensor], object]] = {
    "fill_diagonal_": lambda mask: mask.fill_diagonal_(1.0),
    "fill_ on a diagonal": lambda mask: mask.diagonal().fill_(1.0),
    "fill_ on a slice": lambda mask: mask[1:3].fill_(2.0),
    "copy_ on a slice": lambda mask: mask[:, :2].copy_(torch.ones(4, 2)),
    "masked_fill_": lambda mask: mask.masked_fill_(torch.eye(4, dtype=torch.bool), 1.0),
    "index_put_": _index_put,
    "index_fill_": lambda mask: mask.index_fill_(0, torch.tensor([1]), 1.0),
    "as_strided": lambda mask: mask.as_strided((4,), (5,)).fill_(1.0),
    "add_": lambda mask: mask.add_(1.0),
}


class Written(nn.Module):
    """A constant is written into, and what it then holds takes part."""

    def __init__(self, write: Callable[[Tensor], object], *, expanded: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.write, self.expanded = write, expanded

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.zeros(1, 4).expand(4, 4).clone() if self.expanded else torch.zeros(4, 4)
        self.write(mask)
        return self.linear(torch.relu(x) + mask)


@pytest.mark.parametrize("expanded", [False, True])
@pytest.mark.parametrize("name", WRITES)
def test_a_constant_that_is_written_into(name: str, expanded: bool) -> None:
    graph = analyze(Written(WRITES[name], expanded=expanded), {"x": torch.randn(4, 4)})
    (segment,) = graph["linear"].input_segments
    assert graph["linear"].calls == 1
    # Something that is not zero was added, so relu's bound is no bound any more.
    assert segment.low == -inf or name in graph.unknown_ops
    assert graph.fallback == ""


class Through(nn.Module):
    """What a layer says is written into a constant through a view that no shadow follows."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        held = torch.zeros(4, 4)
        held.as_strided((4, 4), (1, 4)).copy_(self.before(x))
        return self.after(held)


def test_what_is_written_through_a_lost_view_is_of_unknown_origin() -> None:
    graph = analyze(Through(), {"x": torch.randn(4, 4)})
    (segment,) = graph["after"].input_segments
    assert segment.low == -inf
    assert "written through a view" in segment.producer


class Masked(nn.Module):
    """The shape of what it computes depends on a mask's contents."""

    def __init__(self, pick: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 4)
        self.pick = pick

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.nn.functional.gelu(self.first(self.pick(x))))


BY_NUMBERS: dict[str, Callable[[Tensor], Tensor]] = {
    "a boolean mask": lambda x: x[x[:, 0] > 0],
    "masked_select": lambda x: torch.masked_select(x, x[:, :1] > 0).reshape(-1, 4),
    "bincount": lambda x: x[: int(torch.bincount((x[:, 0] > 0).long()).cumsum(0)[0]) + 1],
}


@pytest.mark.parametrize("name", BY_NUMBERS)
def test_an_index_by_numbers_is_read_by_running_and_said(name: str) -> None:
    model, inputs = Masked(BY_NUMBERS[name]), {"x": torch.randn(9, 4)}
    graph = analyze(model, inputs)
    assert graph.frontend == "observe"
    assert "test_writes.py" in graph.fallback
    assert type(graph).from_json(graph.to_json()).fallback == graph.fallback
    assert graph["second"].input_segments[0].one_sided
    with pytest.raises(GraphError, match="no weights"):
        analyze(Masked(BY_NUMBERS[name]).to("meta"), inputs)


def test_a_stock_denoiser_with_bincount() -> None:
    denoiser, inputs = hidream()
    graph = analyze(denoiser.eval(), inputs)
    assert graph.frontend == "observe"
    assert graph.fallback
    assert graph["double_stream_blocks.0.block.adaLN_modulation.1"].output_segments == (32,) * 12
