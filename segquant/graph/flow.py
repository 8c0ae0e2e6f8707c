"""The dataflow analysis: runs a trace on shadows and notes what each layer reads and who reads it.

Two shadows follow every tensor. Its origin (`labels`) says which operation made each feature, for
the input segments; its channels (`channels`) say which layer's outputs it holds, for the output
segments.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from segquant.graph.channels import NO_CODE, Channels
from segquant.graph.intervals import ANY, Interval, hull
from segquant.graph.labels import CONST, ZERO, Labels
from segquant.graph.names import RESHAPES
from segquant.graph.shadow import compress, core, distinct_rows, uniform
from segquant.graph.trace import Op, Ref, Trace


class Pair(NamedTuple):
    """The two shadows of one tensor."""

    origin: Tensor
    channel: Tensor


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a layer; `rows` are the distinct rows of input labels as (start, label) runs."""

    op: int
    input: Ref
    space: int
    rows: tuple[tuple[tuple[int, int], ...], ...]


class Flow:
    """The state of the analysis of one trace."""

    def __init__(self, trace: Trace, *, layers: dict[str, str], weights: dict[str, str]) -> None:
        """`layers` maps every name of a layer to its first one, `weights` weights to layers."""
        self.trace = trace
        self.layers = layers
        self.weights = weights
        self.labels = Labels()
        self.channels = Channels()
        self.calls: dict[str, list[Call]] = {}
        self.unknown: dict[str, int] = {}
        self.position = 0
        self.maker: dict[Ref, int] = {}
        self.parent: dict[Ref, Ref] = {}
        self.identity: dict[Ref, Ref] = {}
        self.parameter: dict[Ref, str] = dict(trace.parameters)
        self.scaled: dict[Ref, tuple[Ref, float]] = {}
        self.sigmoid: dict[Ref, tuple[Ref, float]] = {}
        self._pairs: dict[Ref, Pair] = {}
        self._peaks: dict[Ref, tuple[int, int]] = {}
        self._already_read: set[Ref] = set()
        self._base = shared_memory(trace)
        self._pinned = written_into(trace)

    # What the rules ask.

    def shape(self, ref: Ref) -> tuple[int, ...]:
        return self.trace.shapes[ref.index]

    def pair(self, ref: Ref) -> Pair:
        if ref not in self._pairs:
            self._store(ref, self._outside(ref))
        return self._pairs[ref]

    def same(self, ref: Ref) -> Ref:
        """The tensor that `ref` is a cast or a copy of."""
        return self.identity.get(ref, ref)

    def is_const(self, ref: Ref) -> bool:
        return self._peak(ref)[0] <= ZERO

    def is_coded(self, ref: Ref) -> bool:
        return self._peak(ref)[1] != NO_CODE

    def _peak(self, ref: Ref) -> tuple[int, int]:
        """The largest label and the largest code of a tensor."""
        if ref not in self._peaks:
            cores = [core(shadow) for shadow in self.pair(ref)]
            label, code = (int(part.max()) if part.numel() else 0 for part in cores)
            if ref in self._pinned:
                return label, code
            self._peaks[ref] = label, code
        return self._peaks[ref]

    def read(self, ref: Ref) -> None:
        """The operation at hand mixes all that `ref` holds, or reads it as one thing."""
        if ref not in self._already_read:
            self.channels.read(self.pair(ref).channel, ref)
            if ref not in self._pinned:
                self._already_read.add(ref)

    def plain(self, label: int, ref: Ref) -> Pair:
        shape = self.shape(ref)
        return Pair(uniform(label, shape), uniform(NO_CODE, shape))

    def source(self, op: Op, ref: Ref, *, text: str, interval: Interval = ANY) -> Pair:
        key = (self.position, ref.index)
        return self.plain(self.labels.source(key, text=text, interval=interval), ref)

    def interval_of(self, ref: Ref) -> Interval:
        """Bounds of all values of a tensor."""
        origins = torch.unique(core(self.pair(ref).origin)).tolist()
        interval: Interval = self.labels[origins[0]].interval if origins else ANY
        for label in origins[1:]:
            interval = hull(interval, self.labels[label].interval)
        return interval

    def give_up(self, op: Op, *, reason: str = "") -> list[Pair]:
        """Reports an operation that cannot be followed: it reads all, and makes something new."""
        name = f"{op.name} ({reason})" if reason else op.name
        self.unknown[name] = self.unknown.get(name, 0) + 1
        return self.mixed(op)

    def mixed(self, op: Op) -> list[Pair]:
        for ref in op.refs():
            self.read(ref)
        text = place(op, op.name)
        return [self.source(op, ref, text=text) for ref in op.outputs if ref is not None]

    def call_layer(self, name: str, *, ref: Ref, dim: int, output: Ref, mixes: bool = True) -> Pair:
        """Notes a call of the layer `name`, whose features lie along `dim` of both tensors.

        One that does not mix its channels (a depthwise convolution) does not read them as a whole.
        """
        name = self.layers.get(name, name)
        origin = self.pair(ref).origin.movedim(dim, -1)
        rows = {_runs(row) for row in distinct_rows(origin)}
        if mixes:
            self.read(ref)
        shape = self.shape(output)
        space, codes = self.channels.open(shape, dim=dim % len(shape))
        call = Call(
            op=self.position, input=self._input_of(ref), space=space, rows=tuple(sorted(rows))
        )
        self.calls.setdefault(name, []).append(call)
        label = self.labels.source(("layer", self.position), text=f"linear {name}")
        return Pair(uniform(label, shape), codes)

    def _input_of(self, ref: Ref) -> Ref:
        """The tensor whose rows `ref` holds: the same for every flattening of its rows."""
        ref = self.same(ref)
        while ref in self.parent and self.trace.ops[self.maker[ref]].name in RESHAPES:
            source = self.same(self.parent[ref])
            if self.shape(source)[-1:] != self.shape(ref)[-1:]:
                break
            ref = source
        return ref

    # How a trace runs.

    def run(self, rule: Any) -> None:
        """Follows the whole trace; `rule(flow, op)` gives the shadows of an operation's outputs."""
        last = _last_uses(self.trace)
        for position, op in enumerate(self.trace.ops):
            self.position = position
            outputs = [ref for ref in op.outputs if ref is not None]
            if outputs:
                self._step(op, outputs, rule(self, op))
            for ref in last.get(position, ()):
                if ref not in self._pinned:
                    self._pairs.pop(ref, None)
        for ref in self.trace.results:
            self.read(ref)

    def _step(self, op: Op, outputs: list[Ref], pairs: list[Pair]) -> None:
        coded = next((ref for ref in op.refs() if self.is_coded(ref)), None)
        varied = coded or next((ref for ref in op.refs() if not self.is_const(ref)), None)
        written = op.written()
        for ref in written:
            pair = self._writable(ref)
            pair.origin.copy_(pairs[0].origin.expand(pair.origin.shape))
            pair.channel.copy_(pairs[0].channel.expand(pair.channel.shape))
            self._tell_base(ref)
        for index, ref in enumerate(outputs):
            if ref in written:
                continue
            self.maker[ref] = self.position
            if varied is not None:
                self.parent[ref] = varied
            if written:
                self._pairs[ref] = self._pairs[written[0]]
            else:
                self._store(ref, pairs[index], view=op.is_view)

    def _writable(self, ref: Ref) -> Pair:
        """The shadows of a tensor with a number of their own for every element."""
        pair = self.pair(ref)
        if any(_overlaps(shadow) for shadow in pair):
            pair = self._pairs[ref] = Pair(*(shadow.contiguous().clone() for shadow in pair))
        return pair

    def _tell_base(self, ref: Ref) -> None:
        """What is written through a view whose shadow is no view (`as_strided`) is somewhere in
        the tensor beneath it: nothing is known of that any more."""
        base = self._base.get(ref, ref)
        if base == ref or base not in self._pairs:
            return
        own, beneath = self._pairs[ref], self._writable(base)
        if _share(own.origin, beneath.origin):
            return
        self.channels.read(own.channel, ref)
        self.channels.read(beneath.channel, base)
        const = self.is_const(ref) and self.is_const(base)
        key = ("written", self.position, base.index)
        label = CONST if const else self.labels.source(key, text="written through a view")
        beneath.origin.fill_(label)
        beneath.channel.fill_(NO_CODE)

    def _store(self, ref: Ref, pair: Pair, *, view: bool = False) -> None:
        shape = self.shape(ref)
        assert pair.origin.shape == pair.channel.shape == shape, (ref, shape, pair)
        if ref not in self._pinned:
            pair = Pair(compress(pair.origin), compress(pair.channel))
        elif not view:
            pair = Pair(*(shadow.contiguous().clone() for shadow in pair))
        self._pairs[ref] = pair

    def _outside(self, ref: Ref) -> Pair:
        if ref in self.trace.inputs:
            text = self.trace.inputs[ref]
            return self.plain(self.labels.source(text, text=text), ref)
        if ref in self.trace.untracked:
            self.unknown["untracked tensor"] = self.unknown.get("untracked tensor", 0) + 1
            return self.plain(self.labels.source(ref, text="tensor of unknown origin"), ref)
        return self.plain(CONST, ref)


def place(op: Op, what: str) -> str:
    """`attn.sdpa` or, for an activation module, `act_mlp(gelu)`."""
    return f"{op.module}.{what}" if op.module else what


def _runs(row: Tensor) -> tuple[tuple[int, int], ...]:
    starts = torch.cat(
        [torch.zeros(1, dtype=torch.int64), (row[1:] != row[:-1]).nonzero()[:, 0] + 1]
    )
    return tuple(zip(starts.tolist(), row[starts].tolist(), strict=True))


def _overlaps(shadow: Tensor) -> bool:
    pairs = zip(shadow.shape, shadow.stride(), strict=True)
    return any(size > 1 and stride == 0 for size, stride in pairs)


def _share(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def shared_memory(trace: Trace) -> dict[Ref, Ref]:
    """Of every view, and of what an operation wrote into, the tensor that the memory began as."""
    base: dict[Ref, Ref] = {}
    for op in trace.ops:
        sources = op.written() or (list(op.refs())[:1] if op.is_view else [])
        for ref in op.outputs:
            if ref is not None and sources and ref not in sources:
                base[ref] = base.get(sources[0], sources[0])
    return base


def written_into(trace: Trace) -> set[Ref]:
    """Every tensor that shares memory with one that some operation writes into."""
    base = shared_memory(trace)
    roots = {base.get(ref, ref) for op in trace.ops for ref in op.written()}
    pinned = {ref for ref, root in base.items() if root in roots}
    return pinned | roots


def _last_uses(trace: Trace) -> dict[int, list[Ref]]:
    last: dict[Ref, int] = {}
    for position, op in enumerate(trace.ops):
        for ref in _touched(op):
            last[ref] = position
    kept = set(trace.results)
    readers: dict[int, list[Ref]] = {}
    for ref, position in last.items():
        if ref not in kept:
            readers.setdefault(position, []).append(ref)
    return readers


def _touched(op: Op) -> Iterator[Ref]:
    yield from op.refs()
    yield from (ref for ref in op.outputs if ref is not None)
