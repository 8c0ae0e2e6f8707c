"""The rules of the operations that mix features: layers, attention, norms, reductions, indexing.

`MIXING[name]` is (always, rule): with `always` the rule runs on constants too, as it does for
layers, whose calls are noted whatever they read.
"""

from collections.abc import Callable
from math import inf, prod
from typing import Any

import torch
from torch import Tensor

from segquant.graph.flow import Flow, Pair, place
from segquant.graph.intervals import ANY, Interval
from segquant.graph.shadow import combine, compress, uniform, varies
from segquant.graph.trace import Op, Ref

Rule = Callable[[Flow, Op], list[Pair]]


def _first(op: Op) -> Ref:
    return next(ref for ref in op.outputs if ref is not None)


def layer_of(flow: Flow, op: Op, weight: Ref) -> str | None:
    """The layer that is running, or else the one that owns the weight."""
    if flow.layers.get(op.module) is not None:
        return flow.layers[op.module]
    return flow.weights.get(flow.parameter.get(weight, ""))


def _linear(flow: Flow, op: Op) -> list[Pair]:
    x = op.args["input"]
    name = layer_of(flow, op, op.args["weight"])
    if name is None:
        return _nameless_linear(flow, op, x, op.args["weight"])
    return [flow.call_layer(name, ref=x, dim=-1, output=_first(op))]


def _nameless_linear(flow: Flow, op: Op, x: Ref, weight: Ref) -> list[Pair]:
    """A matrix product with a parameter (or with anything else) that no layer owns."""
    for ref in op.refs():
        flow.read(ref)
    text = f"linear {flow.parameter.get(weight, 'of a tensor')}"
    return [flow.source(op, _first(op), text=text)]


def _matmul(flow: Flow, op: Op) -> list[Pair]:
    """A product of two activations: one label per matrix, so that heads can be told apart."""
    names = ("self", "mat2") if "mat2" in op.args else ("self", "other")
    if op.name in ("addmm", "baddbmm"):
        names = ("mat1", "mat2") if op.name == "addmm" else ("batch1", "batch2")
    x, weight = (op.args[name] for name in names)
    if weight in flow.parameter and flow.is_const(weight):
        name = flow.weights.get(flow.parameter[weight])
        if name is None:
            return _nameless_linear(flow, op, x, weight)
        return [flow.call_layer(name, ref=x, dim=-1, output=_first(op))]
    return _attention(flow, op)


def _attention(flow: Flow, op: Op) -> list[Pair]:
    for ref in op.refs():
        flow.read(ref)
    if all(flow.is_const(ref) for ref in op.refs()):
        return [flow.plain(0, ref) for ref in op.outputs if ref is not None]
    name = "sdpa" if "attention" in op.name else op.name
    pairs = []
    for output in op.outputs:
        if output is None:
            continue
        shape = flow.shape(output)
        lead = shape[:-2]
        labels = flow.labels.heads(flow.position, count=prod(lead), text=place(op, name))
        origin = torch.tensor(labels).reshape(*lead, *(1 for _ in shape[-2:])).expand(shape)
        pairs.append(Pair(origin, uniform(0, shape)))
    return pairs


def _conv(flow: Flow, op: Op) -> list[Pair]:
    x, weight = op.args["input"], op.args["weight"]
    output = _first(op)
    spatial = len(flow.shape(weight)) - 2
    name = layer_of(flow, op, weight)
    groups = int(op.args.get("groups", 1))
    depthwise = groups > 1 and groups == flow.shape(x)[-spatial - 1]
    if name is not None and not depthwise:
        return [flow.call_layer(name, ref=x, dim=-spatial - 1, output=output)]
    if depthwise and flow.shape(output)[-spatial - 1] == groups:
        if name is not None:
            flow.call_layer(name, ref=x, dim=-spatial - 1, output=output, mixes=False)
        return [_per_channel(flow, op, x, output, spatial=spatial, interval=ANY)]
    for ref in op.refs():
        flow.read(ref)
    text = f"conv {name or flow.parameter.get(weight, '')}".rstrip()
    return [flow.source(op, output, text=text)]


def _per_channel(
    flow: Flow, op: Op, x: Ref, output: Ref, *, spatial: int, interval: Interval | None
) -> Pair:
    """An operation over the last `spatial` axes of each channel by itself."""
    origin, channel = flow.pair(x)
    dims = range(origin.dim() - spatial, origin.dim())
    if any(varies(origin, dim) or varies(channel, dim) for dim in dims):
        flow.read(x)
        return flow.source(op, output, text=place(op, op.name))
    for dim in dims:
        origin, channel = origin.narrow(dim, 0, 1), channel.narrow(dim, 0, 1)
    shape = flow.shape(output)
    named = _mapped(flow, op, origin.expand(shape), interval=interval)
    return Pair(named, channel.expand(shape))


def _mapped(flow: Flow, op: Op, origin: Tensor, *, interval: Interval | None) -> Tensor:
    """Every label renamed by the operation; `interval` None keeps the bounds."""
    text = place(op, op.name)

    def label(parents: tuple[int, ...]) -> int:
        bounds = flow.labels[parents[0]].interval if interval is None else interval
        return flow.labels.derived(op.name, parents, text=text, interval=bounds, key=None)

    return combine([origin], tuple(origin.shape), label=label)


def _norm(flow: Flow, op: Op) -> list[Pair]:
    """Norms mix statistics only: a segment keeps its own scale relative to its neighbours."""
    x = op.args.get("input", op.args.get("self"))
    assert isinstance(x, Ref)
    rest = [ref for ref in op.outputs if ref is not None][1:]
    origin, channel = flow.pair(x)
    pairs = [Pair(_mapped(flow, op, origin, interval=ANY), channel)]
    return pairs + [flow.source(op, ref, text=place(op, "statistics")) for ref in rest]


def _softmax(flow: Flow, op: Op) -> list[Pair]:
    x = next(op.refs())
    flow.read(x)
    interval = (-inf, 0.0) if "log" in op.name else (0.0, 1.0)
    origin = _mapped(flow, op, flow.pair(x).origin, interval=interval)
    return [Pair(origin, uniform(0, origin.shape))]


_KEEPS_BOUNDS = frozenset({"mean", "amax", "amin", "max", "min", "median"})
_NOT_NEGATIVE = frozenset({"var", "std", "var_mean", "norm", "linalg_vector_norm"})


def _reduced(flow: Flow, op: Op) -> list[Pair]:
    """A reduction over axes on which nothing varies keeps the labels, else it is a statistic."""
    x = next(op.refs())
    bounds = flow.interval_of(x)
    interval = ANY
    if op.name in _KEEPS_BOUNDS:
        interval = bounds
    elif op.name in _NOT_NEGATIVE:
        interval = (0.0, inf) if op.name != "var_mean" else ANY
    elif op.name == "sum":
        interval = (0.0 if bounds[0] >= 0.0 else -inf, 0.0 if bounds[1] <= 0.0 else inf)
    outputs = [ref for ref in op.outputs if ref is not None]
    return [_reduced_to(flow, op, x, ref, interval) for ref in outputs]


def _reduced_to(flow: Flow, op: Op, x: Ref, output: Ref, interval: Interval) -> Pair:
    origin, channel = flow.pair(x)
    shape = flow.shape(output)
    dims = op.args.get("dim")
    if dims is None or dims == []:
        dims = list(range(origin.dim()))
    dims = [int(dim) % max(origin.dim(), 1) for dim in (dims if isinstance(dims, list) else [dims])]
    if any(varies(origin, dim) or varies(channel, dim) for dim in dims):
        return flow.source(op, output, text=place(op, op.name), interval=interval)
    for dim in dims:
        origin, channel = origin.narrow(dim, 0, 1), channel.narrow(dim, 0, 1)
    origin = _mapped(flow, op, origin.reshape(shape), interval=interval)
    return Pair(origin, channel.reshape(shape))


def _pooled(flow: Flow, op: Op) -> list[Pair]:
    x = next(op.refs())
    spatial = 1 if "1d" in op.name else 3 if "3d" in op.name else 2
    exact = "bicubic" not in op.name
    outputs = [ref for ref in op.outputs if ref is not None]
    interval = None if exact else ANY
    pair = _per_channel(flow, op, x, outputs[0], spatial=spatial, interval=interval)
    return [pair] + [flow.source(op, ref, text=place(op, op.name)) for ref in outputs[1:]]


def _indexed(flow: Flow, op: Op) -> list[Pair]:
    """Indexing is exact if the positions are known, or do not matter; else it is given up."""
    origin, channel = flow.pair(op.args["self"])
    output = _first(op)
    indices = op.args.get("indices", op.args.get("index"))
    entries = indices if isinstance(indices, list) else [indices]
    if any(isinstance(entry, Ref) for entry in entries):
        dims = _indexed_dims(op, entries, origin.dim())
        if any(varies(origin, dim) or varies(channel, dim) for dim in dims):
            return flow.give_up(op, reason="unknown positions")

    def moved(shadow: Tensor) -> Any:
        def swap(ref: Ref) -> Tensor:
            if ref == op.args["self"]:
                return shadow
            return torch.zeros(flow.shape(ref), dtype=torch.int64)

        return op.call(swap)

    pair = Pair(moved(origin), moved(channel))
    if pair.origin.shape != flow.shape(output):
        return flow.give_up(op, reason="unknown positions")
    return [pair]


def _indexed_dims(op: Op, entries: list[Any], rank: int) -> list[int]:
    if "dim" in op.args:
        return [int(op.args["dim"]) % rank]
    return [dim for dim, entry in enumerate(entries) if entry is not None]


def _complex_parts(flow: Flow, op: Op) -> list[Pair]:
    """view_as_complex joins the two numbers of the last axis, view_as_real doubles them."""
    x = next(op.refs())
    shape = flow.shape(_first(op))
    origin, channel = flow.pair(x)
    if op.name == "view_as_real":
        return [Pair(origin.unsqueeze(-1).expand(shape), channel.unsqueeze(-1).expand(shape))]
    flow.read(x)
    parts = [compress(part) for part in origin.unbind(-1)]

    def label(parents: tuple[int, ...]) -> int:
        text = place(op, "complex")
        return flow.labels.derived("complex", parents, text=text, interval=ANY, key=None)

    return [Pair(combine(parts, shape, label=label), uniform(0, shape))]


def _mixed(flow: Flow, op: Op) -> list[Pair]:
    return flow.mixed(op)


def _table() -> dict[str, tuple[bool, Rule]]:
    groups: list[tuple[bool, Rule, str]] = [
        (True, _linear, "linear"),
        (True, _matmul, "matmul mm bmm addmm baddbmm"),
        (True, _conv, "conv1d conv2d conv3d convolution"),
        (
            False,
            _attention,
            """scaled_dot_product_attention _scaled_dot_product_flash_attention
            _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_efficient_attention
            _scaled_dot_product_cudnn_attention _scaled_dot_product_attention_math""",
        ),
        (
            False,
            _norm,
            """layer_norm native_layer_norm group_norm native_group_norm rms_norm _fused_rms_norm
            batch_norm native_batch_norm _native_batch_norm_legit_no_training instance_norm""",
        ),
        (False, _softmax, "softmax _softmax log_softmax _log_softmax _safe_softmax"),
        (
            False,
            _reduced,
            """mean sum amax amin max min median var std var_mean norm linalg_vector_norm prod
            logsumexp any all argmax argmin""",
        ),
        (
            False,
            _pooled,
            """upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact2d
            upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d avg_pool1d avg_pool2d
            avg_pool3d max_pool2d max_pool2d_with_indices adaptive_avg_pool2d _adaptive_avg_pool2d
            adaptive_avg_pool1d _adaptive_avg_pool3d""",
        ),
        (False, _indexed, "index index_select gather take_along_dim"),
        (False, _complex_parts, "view_as_complex view_as_real"),
        (
            False,
            _mixed,
            """embedding einsum outer ger dot mv cumsum cumprod conv_transpose1d conv_transpose2d
            conv_transpose3d fft_fftn fft_ifftn polar complex cdist linalg_cross""",
        ),
    ]
    return {name: (always, rule) for always, rule, names in groups for name in names.split()}


MIXING = _table()
