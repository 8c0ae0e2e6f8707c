"""Random small modules whose segments are known by construction: nothing wrong is reported.

A value is built together with what is true of it: per feature, which linear made it and which ends
of its range are bounded. Every leaf is a linear of its own, so neighbours from two leaves always
have different producers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from segquant.graph import analyze

WIDTH = 6
Step = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Feature:
    leaf: int
    bounded_below: bool = False
    bounded_above: bool = False


@dataclass(frozen=True)
class Value:
    """A value of the module: how to compute it from the leaves, and what is true of it."""

    compute: Callable[[list[Tensor]], Tensor]
    features: tuple[Feature, ...]


def _through(value: Value, step: Step, change: Callable[[Feature], Feature]) -> Value:
    features = tuple(change(feature) for feature in value.features)
    return Value(lambda leaves: step(value.compute(leaves)), features)


def _one_sided(step: Step) -> tuple[Step, Callable[[Feature], Feature]]:
    return step, lambda f: Feature(f.leaf, True, f.bounded_above)


def _same(step: Step) -> tuple[Step, Callable[[Feature], Feature]]:
    return step, lambda f: f


ELEMENTWISE = {
    "silu": _one_sided(F.silu),
    "gelu": _one_sided(F.gelu),
    "relu": _one_sided(F.relu),
    "exp": _one_sided(torch.exp),
    "tanh": (torch.tanh, lambda f: Feature(f.leaf, True, True)),
    "neg": (torch.neg, lambda f: Feature(f.leaf, f.bounded_above, f.bounded_below)),
    "scale": _same(lambda x: 0.5 * x),
    "offset": _same(lambda x: x + 2.0),
    "cast": _same(lambda x: x.double().to(x.dtype)),
    "dropout": _same(lambda x: F.dropout(x, 0.5, training=False)),
    "transposed": _same(lambda x: x.transpose(1, 2).contiguous().transpose(1, 2)),
    "reshaped": _same(lambda x: x.reshape(-1, x.shape[-1]).view(x.shape)),
    "stacked": _same(lambda x: torch.stack(x.unbind(1), dim=1)),
    "written": _same(lambda x: torch.zeros_like(x).copy_(x)),
}


@st.composite
def values(draw: st.DrawFn, leaves: list[int], depth: int = 3) -> Value:
    """A random value; `leaves` collects the widths of the leaves it uses."""
    kind = draw(st.sampled_from(["leaf"] if depth == 0 else ["leaf", "map", "cat", "cut", "swap"]))
    if kind == "leaf":
        index = len(leaves)
        leaves.append(draw(st.integers(2, 6)))
        return Value(lambda made: made[index], (Feature(index),) * leaves[index])
    if kind == "map":
        step, change = ELEMENTWISE[draw(st.sampled_from(sorted(ELEMENTWISE)))]
        return _through(draw(values(leaves, depth - 1)), step, change)
    first = draw(values(leaves, depth - 1))
    if kind == "cat":
        second = draw(values(leaves, depth - 1))
        return Value(
            lambda made: torch.cat([first.compute(made), second.compute(made)], dim=-1),
            first.features + second.features,
        )
    cut = draw(st.integers(1, len(first.features)))
    if kind == "cut":
        return Value(lambda made: first.compute(made)[..., :cut], first.features[:cut])
    head, tail = first.features[:cut], first.features[cut:]
    return Value(
        lambda made: torch.cat([(x := first.compute(made))[..., cut:], x[..., :cut]], dim=-1),
        tail + head,
    )


class Reader(nn.Module):
    """`after` reads a value made of the outputs of linears."""

    def __init__(self, value: Value, leaves: list[int]) -> None:
        super().__init__()
        self.leaves = nn.ModuleList(nn.Linear(WIDTH, width) for width in leaves)
        self.after = nn.Linear(len(value.features), 3)
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.value.compute([leaf(x) for leaf in self.leaves]))


fast = settings(suppress_health_check=list(HealthCheck))


@fast
@given(data=st.data())
def test_input_segments_and_bounds(data: st.DataObject) -> None:
    leaves: list[int] = []
    value = data.draw(values(leaves))
    module = Reader(value, leaves)
    graph = analyze(module, {"x": torch.zeros(2, 3, WIDTH)}, frontend="record")
    found = graph["after"].input_segments
    spread = [segment for segment in found for _ in range(segment.size)]
    borders = {i + 1 for i, (a, b) in enumerate(pairwise(value.features)) if a.leaf != b.leaf}
    cuts, position = set(), 0
    for segment in found[:-1]:
        position += segment.size
        cuts.add(position)
    assert cuts == borders | {c for c in cuts if value.features[c - 1] != value.features[c]}
    for segment, feature in zip(spread, value.features, strict=True):
        assert segment.one_sided == (feature.bounded_below != feature.bounded_above)
    read = value.compute([leaf(torch.randn(4, 5, WIDTH)) for leaf in module.leaves])
    for index, segment in enumerate(spread):
        assert segment.low - 1e-6 <= float(read[..., index].min().detach())
        assert float(read[..., index].max().detach()) <= segment.high + 1e-6


PIECES: dict[str, Callable[[Tensor], list[Tensor]]] = {
    "plain": lambda x: [x],
    "silu": lambda x: [F.silu(x)],
    "halves_in_turn": lambda x: [x[..., 0::2], x[..., 1::2]] if x.shape[-1] > 3 else [x],
    "tokens": lambda x: list(x.chunk(2, dim=1)),
    "norm": lambda x: [F.layer_norm(x, x.shape[-1:])],
    "rotated": lambda x: [x.flip(-1)],
    "unsqueezed": lambda x: [x.unsqueeze(1).expand(-1, 2, -1, -1).flatten(0, 1)],
    "dropped": lambda x: [],
}
CUTTERS: dict[str, Callable[[Tensor, list[int]], list[Tensor]]] = {
    "split": lambda x, sizes: list(x.split(sizes, dim=-1)),
    "silu_split": lambda x, sizes: list(F.silu(x).split(sizes, dim=2)),
    "slices": lambda x, sizes: [
        x[..., sum(sizes[:i]) : sum(sizes[: i + 1])] for i in range(len(sizes))
    ],
    "narrow": lambda x, sizes: [x.narrow(-1, sum(sizes[:i]), n) for i, n in enumerate(sizes)],
    "transposed": lambda x, sizes: [p.mT for p in x.mT.split(sizes, dim=1)],
}


class Cutter(nn.Module):
    """The pieces of a linear's output, each read by something that mixes its features."""

    def __init__(self, sizes: list[int], cutter: str, pieces: list[str]) -> None:
        super().__init__()
        self.before = nn.Linear(WIDTH, sum(sizes))
        self.sizes, self.cutter, self.pieces = sizes, cutter, pieces

    def forward(self, x: Tensor) -> list[Tensor]:
        parts = CUTTERS[self.cutter](self.before(x), self.sizes)
        chosen = zip(self.pieces, parts, strict=True)
        return [part @ part.mT for name, piece in chosen for part in PIECES[name](piece)]


@fast
@given(data=st.data())
def test_output_segments(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=6))
    cutter = data.draw(st.sampled_from(sorted(CUTTERS)))
    names = st.sampled_from(sorted(PIECES))
    pieces = data.draw(st.lists(names, min_size=len(sizes), max_size=len(sizes)))
    graph = analyze(
        Cutter(sizes, cutter, pieces), {"x": torch.zeros(2, 4, WIDTH)}, frontend="record"
    )
    expected: list[int] = []
    for index, (size, piece) in enumerate(zip(sizes, pieces, strict=True)):
        if index and piece == pieces[index - 1] == "dropped":
            expected[-1] += size
        else:
            expected.append(size)
    assert graph["before"].output_segments == tuple(expected)
