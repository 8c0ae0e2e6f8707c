"""Where a value comes from: a table of expressions, one label (its index) per distinct origin.

A label says which operation made the values, out of what, and within which bounds. Two features of
one tensor with different labels have different producers: that is a segment boundary.
"""

from collections.abc import Hashable
from enum import IntEnum
from typing import NamedTuple

from segquant.graph.intervals import ANY, Interval

CONST = 0  # parameters, buffers and what is computed from them alone
ZERO = 1  # a constant known to be zero

_ADDITIVE = {"add", "sub", "rsub"}
_HEAD = "head"


class Boundary(IntEnum):
    """How two neighbouring features differ, from not at all to different producers."""

    NONE = 0
    WEAK = 1  # one addend of a sum differs, another of the same size is common to both
    HEAD = 2  # two heads of one attention
    PRODUCER = 3


class Expression(NamedTuple):
    name: str
    key: Hashable
    parents: tuple[int, ...]
    interval: Interval
    text: str


class Labels:
    """The table of expressions of one analysis; equal expressions get equal labels."""

    def __init__(self) -> None:
        self._table = [
            Expression("const", None, (), ANY, "constant"),
            Expression("const", None, (), (0.0, 0.0), "zeros"),
        ]
        self._index: dict[Hashable, int] = {}
        self._boundaries: dict[tuple[int, int], Boundary] = {}

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, label: int) -> Expression:
        return self._table[label]

    def source(self, key: Hashable, *, text: str, interval: Interval = ANY) -> int:
        return self._intern(Expression("source", key, (), interval, text))

    def heads(self, key: Hashable, *, count: int, text: str, interval: Interval = ANY) -> list[int]:
        entries = (Expression(_HEAD, (key, i), (), interval, text) for i in range(count))
        return [self._intern(entry) for entry in entries]

    def derived(
        self, name: str, parents: tuple[int, ...], *, text: str, interval: Interval, key: Hashable
    ) -> int:
        """An expression over other labels; over constants alone it is a constant.

        For a sum, `key` begins with a tuple that says of each parent whether it is as large as
        the result, that is not broadcast.
        """
        if all(parent <= ZERO for parent in parents):
            return CONST
        return self._intern(Expression(name, key, parents, interval, text))

    def _intern(self, expression: Expression) -> int:
        label = self._index.setdefault(expression, len(self._table))
        if label == len(self._table):
            self._table.append(expression)
        return label

    def boundary(self, a: int, b: int) -> Boundary:
        """What lies between two neighbouring features labelled `a` and `b`."""
        if a == b or max(a, b) <= ZERO:
            return Boundary.NONE
        pair = (min(a, b), max(a, b))
        if pair not in self._boundaries:
            self._boundaries[pair] = self._compare(*pair)
        return self._boundaries[pair]

    def _compare(self, a: int, b: int) -> Boundary:
        x, y = self._table[a], self._table[b]
        if x.name == y.name == _HEAD and _owner(x) == _owner(y):
            return Boundary.HEAD
        same = x.name == y.name and x.key == y.key and len(x.parents) == len(y.parents) > 0
        if not same:
            return Boundary.PRODUCER
        boundaries = [self.boundary(p, q) for p, q in zip(x.parents, y.parents, strict=True)]
        if x.name in _ADDITIVE and isinstance(x.key, tuple):
            large = x.key[0]
            common = any(
                full and kind is Boundary.NONE and p > ZERO
                for full, kind, p in zip(large, boundaries, x.parents, strict=True)
            )
            if common and sum(kind is not Boundary.NONE for kind in boundaries) == 1:
                return min(max(boundaries), Boundary.WEAK)
        return max(boundaries)


def _owner(expression: Expression) -> Hashable:
    assert isinstance(expression.key, tuple)
    owner: Hashable = expression.key[0]
    return owner
