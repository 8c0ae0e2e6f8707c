"""Policies choose among segments; sizes always cover the layer and bounds stay true."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segquant.graph import LayerInfo, Segment, SegmentPolicy, choose_input, choose_output


def part(size: int, low: float = -inf, high: float = inf, producer: str = "p") -> Segment:
    return Segment(size=size, low=low, high=high, producer=producer)


def layer(
    segments: tuple[Segment, ...],
    heads: tuple[int, ...] | None = None,
    output: tuple[int, ...] = (8,),
) -> LayerInfo:
    size = sum(segment.size for segment in segments)
    return LayerInfo(
        name="layer",
        kind="linear",
        in_features=size,
        out_features=sum(output),
        calls=1,
        output_segments=output,
        input_segments=segments,
        head_segments=heads or (size,),
        shared_input="layer",
        paths=(),
    )


FLUX = layer((part(3072), part(12288, -0.17, inf, "gelu")), heads=(128,) * 24 + (12288,))


@pytest.mark.parametrize(
    ("heads", "expected"),
    [
        ("off", (3072, 12288)),
        ("group:8", (1024,) * 3 + (12288,)),
        ("group:5", (640,) * 4 + (512, 12288)),
        ("all", (128,) * 24 + (12288,)),
    ],
)
def test_heads(heads: str, expected: tuple[int, ...]) -> None:
    chosen = choose_input(FLUX, SegmentPolicy(heads=heads))
    assert tuple(segment.size for segment in chosen) == expected
    assert chosen[-1].one_sided
    assert not chosen[0].one_sided


def test_equal_finite_ranges_merge_and_infinite_ones_do_not() -> None:
    cosine_sine = layer((part(4, -1, 1, "cos"), part(4, -1, 1, "sin"), part(4), part(4)))
    chosen = choose_input(cosine_sine, SegmentPolicy())
    assert [segment.size for segment in chosen] == [8, 4, 4]
    assert chosen[0].producer == "cos | sin"
    kept = choose_input(cosine_sine, SegmentPolicy(merge_equal_range=False))
    assert len(kept) == 4


def test_small_segments_join_the_smaller_neighbour() -> None:
    small = layer((part(64), part(2), part(8)), output=(2, 64, 6))
    policy = SegmentPolicy(min_size=8)
    assert [segment.size for segment in choose_input(small, policy)] == [64, 10]
    assert choose_output(small, policy) == (72,)
    assert choose_output(small, SegmentPolicy(max_segments=2)) == (66, 6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": "group:0"}, 'must be "off", "all" or "group:K"'),
        ({"heads": "some"}, "heads='some'"),
        ({"min_size": 0}, "min_size=0"),
        ({"max_segments": 0}, "max_segments=0"),
    ],
)
def test_wrong_policies(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SegmentPolicy(**fields)  # type: ignore[arg-type]


bounds = st.sampled_from([(-inf, inf), (-0.17, inf), (-1.0, 1.0), (0.0, 1.0)])


@given(
    sizes=st.lists(st.tuples(st.integers(1, 40), bounds), min_size=1, max_size=12),
    min_size=st.integers(1, 50),
    max_segments=st.none() | st.integers(1, 12),
)
def test_any_choice_covers_the_layer(
    sizes: list[tuple[int, tuple[float, float]]], min_size: int, max_segments: int | None
) -> None:
    found = layer(tuple(part(size, *bound) for size, bound in sizes))
    policy = SegmentPolicy(min_size=min_size, max_segments=max_segments)
    chosen = choose_input(found, policy)
    assert sum(segment.size for segment in chosen) == found.in_features
    assert len(chosen) == 1 or min(segment.size for segment in chosen) >= min_size
    assert max_segments is None or len(chosen) <= max_segments
    spread = [s for segment in chosen for s in [segment] * segment.size]
    original = [s for segment in found.input_segments for s in [segment] * segment.size]
    for now, was in zip(spread, original, strict=True):
        assert now.low <= was.low
        assert now.high >= was.high
