"""Where a scale per input channel of a layer can be taken into what makes its input.

Dividing feature j of a layer's input by s_j changes nothing else if the division can be carried
back to parameters that nobody else reads through: rows of an earlier linear, the weights of a norm,
or both the scale and the shift of an adaptive norm, whose `(1 + scale)` becomes `(1 + scale) / s`.
The way back is followed operation by operation; each tensor on it must have no other reader.
Whatever is not known to be exact ends the search, and the reason is kept.

Legend: a region is an interval [low, high) of a tensor's last axis; it holds the layer's input
features from `feature` on, in order.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from segquant.graph.flow import written_into
from segquant.graph.names import PASSES, RESHAPES
from segquant.graph.trace import Op, Ref, Trace
from segquant.graph.types import Fold, FoldPart

_CUTS = frozenset({"chunk", "unsafe_chunk", "split", "unsafe_split", "split_with_sizes", "slice"})
_LEADING = frozenset({"unsqueeze", "squeeze", "expand", "select"})


class _ObstacleError(Exception):
    """The division cannot be carried further back; the message says why."""


@dataclass(frozen=True, kw_only=True)
class _Region:
    """Features `feature`, `feature + 1`, ... of a layer's input, at [low, high) of `ref`.

    What is to be divided is the tensor's value plus `offset`.
    """

    ref: Ref
    low: int
    high: int
    feature: int
    offset: float = 0.0


def find_folds(
    trace: Trace, *, layer_of: Callable[[Op], str | None]
) -> tuple[tuple[Fold, ...], dict[str, str]]:
    """The groups of layers whose input can take a scale per channel, and why others cannot.

    Args:
        layer_of: the name of the layer that an operation is a call of, if it is one.

    Returns:
        One `Fold` per group of linears that read one tensor, and per other linear the reason.
    """
    return _Search(trace, layer_of).run()


class _Search:
    def __init__(self, trace: Trace, layer_of: Callable[[Op], str | None]) -> None:
        self._trace, self._layer_of = trace, layer_of
        self._maker: dict[Ref, Op] = {}
        self._readers: dict[Ref, list[Op]] = {}
        for op in trace.ops:
            for ref in op.outputs:
                if ref is not None:
                    self._maker[ref] = op
            if any(ref is not None for ref in op.outputs):
                for ref in dict.fromkeys(op.refs()):
                    self._readers.setdefault(ref, []).append(op)
        self._results = set(trace.results)
        self._written = written_into(trace)

    def run(self) -> tuple[tuple[Fold, ...], dict[str, str]]:
        groups = self._groups()
        inputs = Counter(name for layers in groups.values() for name in layers)
        folds: list[Fold] = []
        obstacles: dict[str, str] = {}
        for root, layers in groups.items():
            try:
                for name in layers:
                    if inputs[name] > 1:
                        raise _ObstacleError(f"{name} reads {inputs[name]} tensors")
                folds.append(self._fold(root, layers))
            except _ObstacleError as reason:
                obstacles.update(dict.fromkeys(layers, str(reason)))
        return tuple(folds), obstacles

    def _groups(self) -> dict[Ref, dict[str, int]]:
        """Per tensor, the linears that read it and how often, in the order of their calls."""
        groups: dict[Ref, dict[str, int]] = {}
        for op in self._trace.ops:
            name = self._linear(op)
            if name is not None:
                group = groups.setdefault(self._root(op.args["input"]), {})
                group[name] = group.get(name, 0) + 1
        return groups

    def _linear(self, op: Op) -> str | None:
        return self._layer_of(op) if op.name == "linear" else None

    def _root(self, ref: Ref) -> Ref:
        """The tensor that `ref` is a cast, a copy or a flattening of rows of."""
        while ref in self._maker and (source := self._same_rows(self._maker[ref])) is not None:
            ref = source
        return ref

    def _same_rows(self, op: Op) -> Ref | None:
        """The argument whose last axis the operation keeps as it is, value by value."""
        source = next(op.refs(), None)
        if source is None or op.outputs[0] is None:
            return None
        if op.name in PASSES:
            return source
        shape, before = self._shape(op.outputs[0]), self._shape(source)
        if op.name in RESHAPES | _LEADING and len(shape) > 0 and shape[-1:] == before[-1:]:
            dims = op.args.get("dim")
            last = isinstance(dims, int) and dims % max(len(before), 1) == len(before) - 1
            return None if op.name == "select" and last else source
        return None

    def _shape(self, ref: Ref) -> tuple[int, ...]:
        return self._trace.shapes[ref.index]

    def _fold(self, root: Ref, layers: Mapping[str, int]) -> Fold:
        for name, calls in layers.items():
            if calls > 1:
                raise _ObstacleError(f"{name} reads it {calls} times")
        for reader in self._all_readers(root):
            if self._linear(reader) not in layers:
                raise _ObstacleError(f"its input is read by {_words(reader)} too")
        region = _Region(ref=root, low=0, high=self._shape(root)[-1], feature=0)
        parts = tuple(self._back(region))
        return Fold(layers=tuple(layers), parts=_merged(parts))

    def _all_readers(self, ref: Ref) -> Iterator[Op]:
        """Who reads a tensor, through casts and flattenings."""
        self._check_plain(ref)
        for op in self._readers.get(ref, []):
            if self._same_rows(op) == ref and op.outputs[0] is not None:
                yield from self._all_readers(op.outputs[0])
            else:
                yield op

    def _check_plain(self, ref: Ref) -> None:
        if ref in self._results:
            raise _ObstacleError("the denoiser returns it")
        if ref in self._written:
            raise _ObstacleError("it is written in place")

    # The way back.

    def _back(self, region: _Region) -> Iterator[FoldPart]:
        ref = region.ref
        self._check_plain(ref)
        if ref in self._trace.parameters:
            yield self._vector(region)
            return
        op = self._maker.get(ref)
        if op is None:
            raise _ObstacleError(f"it comes from {self._trace.inputs.get(ref, 'a constant')}")
        name = self._layer_of(op)
        if op.name == "linear" and name is not None:
            yield self._rows(region, op, name)
        elif (source := self._same_rows(op)) is not None:
            yield from self._back(replace(region, ref=self._only(source, op)))
        elif op.name in _CUTS:
            yield from self._back(self._uncut(region, op))
        elif op.name in ("cat", "concat", "concatenate"):
            yield from self._joined(region, op)
        elif op.name in ("layer_norm", "rms_norm"):
            yield from self._norm(region, op)
        elif op.name == "add":
            yield from self._add(region, op)
        elif op.name in ("mul", "div"):
            yield from self._mul(region, op)
        elif op.name == "relu" and not region.offset:
            yield from self._back(replace(region, ref=self._only(op.args["self"], op)))
        else:
            raise _ObstacleError(f"it comes from {_words(op)}")

    def _only(self, ref: Ref, reader: Op) -> Ref:
        """The tensor, if `reader` alone reads it."""
        for other in self._readers.get(ref, []):
            if other is not reader:
                raise _ObstacleError(f"{_words(other)} reads a part of it too")
        return ref

    def _rows(self, region: _Region, op: Op, name: str) -> FoldPart:
        weight, bias = op.args["weight"], op.args["bias"]
        if len(self._readers[weight]) > 1:
            raise _ObstacleError(f"{name} is called several times")
        if region.offset and bias is None:
            raise _ObstacleError(f"{name} has no bias to take the constant {region.offset:g}")
        return FoldPart(
            kind="rows",
            name=name,
            start=region.low,
            size=region.high - region.low,
            feature=region.feature,
            offset=region.offset,
        )

    def _vector(self, region: _Region) -> FoldPart:
        name = self._trace.parameters[region.ref]
        shape = self._shape(region.ref)
        if len(self._readers[region.ref]) > 1:
            raise _ObstacleError(f"{name} is read in several places")
        if any(size != 1 for size in shape[:-1]):
            raise _ObstacleError(f"{name} has more than one row")
        return FoldPart(
            kind="vector",
            name=name,
            start=region.low,
            size=region.high - region.low,
            feature=region.feature,
            offset=region.offset,
        )

    def _uncut(self, region: _Region, op: Op) -> _Region:
        """The region in the tensor that was cut; other cuts of it must lie elsewhere."""
        source = next(op.refs())
        own = dict(_intervals(op, self._shape(source), self._sizes(op)))
        low = own[region.ref][0] + region.low
        moved = replace(region, ref=source, low=low, high=low + region.high - region.low)
        for other in self._readers[source]:
            if other.name not in _CUTS:
                raise _ObstacleError(f"{_words(other)} reads a part of it too")
            for ref, (start, stop) in _intervals(other, self._shape(source), self._sizes(other)):
                if ref != region.ref and start < moved.high and stop > moved.low:
                    raise _ObstacleError(f"{_words(other)} reads a part of it too")
        return moved

    def _sizes(self, op: Op) -> dict[Ref, tuple[int, ...]]:
        return {ref: self._shape(ref) for ref in op.outputs if ref is not None}

    def _joined(self, region: _Region, op: Op) -> Iterator[FoldPart]:
        operands = list(op.refs())
        rank = len(self._shape(region.ref))
        if int(op.args.get("dim", 0)) % rank != rank - 1:
            raise _ObstacleError(f"it comes from {_words(op)} along another axis")
        if len(set(operands)) < len(operands):
            raise _ObstacleError(f"{_words(op)} reads one tensor twice")
        start = 0
        for operand in operands:
            stop = start + self._shape(operand)[-1]
            low, high = max(region.low, start), min(region.high, stop)
            if low < high:
                yield from self._back(
                    replace(
                        region,
                        ref=self._only(operand, op),
                        low=low - start,
                        high=high - start,
                        feature=region.feature + low - region.low,
                    )
                )
            start = stop

    def _norm(self, region: _Region, op: Op) -> Iterator[FoldPart]:
        shape = op.args["normalized_shape"]
        if op.args["weight"] is None:
            raise _ObstacleError(f"{_words(op)} has no weights")
        if len(shape) != 1:
            raise _ObstacleError(f"{_words(op)} is over {len(shape)} axes")
        if region.offset:
            raise _ObstacleError(f"a constant is added to {_words(op)}")
        for key in ("weight", "bias"):
            parameter = op.args.get(key)
            if parameter is not None:
                yield from self._parameter(region, parameter)

    def _parameter(self, region: _Region, ref: Ref) -> Iterator[FoldPart]:
        if ref not in self._trace.parameters:
            raise _ObstacleError("its weights are not a parameter of the denoiser")
        yield self._vector(replace(region, ref=ref))

    def _add(self, region: _Region, op: Op) -> Iterator[FoldPart]:
        x, other = op.args["self"], op.args["other"]
        if op.args.get("alpha", 1) != 1:
            raise _ObstacleError(f"it comes from {_words(op)}")
        if not isinstance(other, Ref):
            offset = region.offset + float(other)
            yield from self._operand(replace(region, offset=offset), x, op)
            return
        if region.offset or x == other:
            raise _ObstacleError(f"it comes from {_words(op)}")
        yield from self._operand(region, x, op)
        yield from self._operand(region, other, op)

    def _mul(self, region: _Region, op: Op) -> Iterator[FoldPart]:
        """One factor takes the division; the other stays as it is, whoever reads it."""
        factors = [op.args["self"]] if op.name == "div" else [op.args["self"], op.args["other"]]
        factors = [ref for ref in factors if isinstance(ref, Ref)]
        if region.offset or len(set(factors)) < len(factors):
            raise _ObstacleError(f"it comes from {_words(op)}")
        reasons = []
        for factor in factors:
            try:
                parts = list(self._operand(region, factor, op))
            except _ObstacleError as reason:
                reasons.append(str(reason))
            else:
                yield from parts
                return
        raise _ObstacleError("; ".join(reasons))

    def _operand(self, region: _Region, ref: Ref, op: Op) -> Iterator[FoldPart]:
        """An operand of an elementwise operation, unless it is broadcast along the last axis."""
        if self._shape(ref)[-1:] != self._shape(region.ref)[-1:]:
            raise _ObstacleError(f"it comes from {_words(op)} of one number per row")
        yield from self._back(replace(region, ref=self._only(ref, op)))


def _intervals(
    op: Op, shape: tuple[int, ...], sizes: Mapping[Ref, tuple[int, ...]]
) -> Iterator[tuple[Ref, tuple[int, int]]]:
    """What each output of a cut holds of the last axis of a tensor of this shape.

    A cut along another axis holds all of the last one, so that it never counts as lying elsewhere.
    """
    rank = len(shape)
    along = int(op.args.get("dim", 0)) % rank == rank - 1
    start = 0
    if op.name == "slice":
        if along and op.args.get("step", 1) != 1:
            raise _ObstacleError(f"it comes from {_words(op)} with a step")
        start = min(int(op.args.get("start") or 0), shape[-1])
        start += shape[-1] if start < 0 else 0
    for ref, size in sizes.items():
        if not along:
            raise _ObstacleError(f"it comes from {_words(op)} along another axis")
        yield ref, (start, start + size[-1])
        start += size[-1]


def _merged(parts: tuple[FoldPart, ...]) -> tuple[FoldPart, ...]:
    """The parts in a fixed order; one parameter's or layer's places must be distinct."""
    seen: set[tuple[str, str, int]] = set()
    for part in parts:
        places = {(part.kind, part.name, part.start + n) for n in range(part.size)}
        if places & seen:
            raise _ObstacleError(f"{part.name} would take it twice")
        seen |= places
    return tuple(sorted(parts, key=lambda part: (part.feature, part.name, part.start)))


def _words(op: Op) -> str:
    what = "attention" if "attention" in op.name else op.name
    return f"{op.module}.{what}" if op.module else what
