"""Which of the segments found are used: choices of a method, apart from what the graph says.

Any cut of a layer's features leaves the layer's result the same, so these trade scales for speed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

from segquant.graph.types import LayerInfo, Segment

HEADS_OFF = 0
HEADS_ALL = 1


@dataclass(frozen=True, kw_only=True)
class SegmentPolicy:
    """How segments are chosen.

    `heads` is "off", "all", or "group:K" for segments of K attention heads each. Segments smaller
    than `min_size` are merged into a neighbour; `max_segments` merges the smallest until so few
    are left; `merge_equal_range` merges neighbours with the same finite bounds (cosine and sine).
    """

    min_size: int = 1
    max_segments: int | None = None
    heads: str = "off"
    merge_equal_range: bool = True

    def __post_init__(self) -> None:
        if self.min_size < 1:
            raise ValueError(f"min_size={self.min_size} must be at least 1")
        if self.max_segments is not None and self.max_segments < 1:
            raise ValueError(f"max_segments={self.max_segments} must be at least 1 or None")
        heads_per_segment(self.heads)


def heads_per_segment(heads: str) -> int:
    """ "off" -> 0, "all" -> 1, "group:K" -> K."""
    if heads in ("off", "all"):
        return HEADS_OFF if heads == "off" else HEADS_ALL
    prefix, _, number = heads.partition(":")
    if prefix == "group" and number.isdecimal() and int(number) > 0:
        return int(number)
    raise ValueError(f'heads={heads!r} must be "off", "all" or "group:K" with K of at least 1')


def choose_output(layer: LayerInfo, policy: SegmentPolicy) -> tuple[int, ...]:
    """The sizes of a layer's output segments under a policy."""
    parts = [Segment(size=size, low=-inf, high=inf, producer="") for size in layer.output_segments]
    return tuple(part.size for part in _limited(parts, policy))


def choose_input(layer: LayerInfo, policy: SegmentPolicy) -> tuple[Segment, ...]:
    """A layer's input segments under a policy."""
    parts = list(layer.input_segments)
    if policy.merge_equal_range:
        parts = _merge_equal(parts)
    parts = _split_heads(parts, layer.head_segments, heads_per_segment(policy.heads))
    return tuple(_limited(parts, policy))


def _merge_equal(parts: Sequence[Segment]) -> list[Segment]:
    merged: list[Segment] = []
    for part in parts:
        finite = -inf < part.low and part.high < inf
        if merged and finite and (merged[-1].low, merged[-1].high) == (part.low, part.high):
            merged[-1] = merge(merged[-1], part)
        else:
            merged.append(part)
    return merged


def merge(a: Segment, b: Segment) -> Segment:
    """Two neighbouring segments as one: its bounds hold for both."""
    return Segment(
        size=a.size + b.size,
        low=min(a.low, b.low),
        high=max(a.high, b.high),
        producer=a.producer if a.producer == b.producer else f"{a.producer} | {b.producer}",
    )


def _split_heads(parts: list[Segment], heads: Sequence[int], group: int) -> list[Segment]:
    """Cuts every segment at the end of each `group` of heads that lie in it."""
    if group == HEADS_OFF:
        return parts
    result: list[Segment] = []
    remaining = list(heads)
    for part in parts:
        inside: list[int] = []
        while remaining and sum(inside) + remaining[0] <= part.size:
            inside.append(remaining.pop(0))
        if sum(inside) != part.size:
            return parts
        for start in range(0, len(inside), group):
            result.append(replace(part, size=sum(inside[start : start + group])))
    return result


def _limited(parts: Sequence[Segment], policy: SegmentPolicy) -> list[Segment]:
    """Merges the smallest segment into its smaller neighbour until the limits are kept."""
    kept = list(parts)
    limit = policy.max_segments or len(kept)
    while len(kept) > 1:
        smallest = min(range(len(kept)), key=lambda i: kept[i].size)
        if kept[smallest].size >= policy.min_size and len(kept) <= limit:
            break
        left = smallest - 1
        right = smallest + 1
        goes_left = right == len(kept) or (left >= 0 and kept[left].size <= kept[right].size)
        first = left if goes_left else smallest
        kept[first : first + 2] = [merge(kept[first], kept[first + 1])]
    return kept
