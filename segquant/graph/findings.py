"""From what the dataflow noted to one `LayerInfo` per layer, with a readable proof per finding."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from math import inf

from torch import nn

from segquant.graph.channels import Read, output_cuts
from segquant.graph.conditioning import conditioning_layers
from segquant.graph.flow import Call, Flow
from segquant.graph.foldable import find_folds
from segquant.graph.intervals import hull
from segquant.graph.labels import Boundary
from segquant.graph.mixing import layer_of
from segquant.graph.trace import Op, Ref
from segquant.graph.types import LayerGraph, LayerInfo, Segment

_MAX_STEPS = 6
_MAX_PATHS = 4
_SILENT = frozenset(
    [
        "to",
        "_to_copy",
        "clone",
        "contiguous",
        "dropout",
        "native_dropout",
        "unsqueeze",
        "squeeze",
        "expand",
        "alias",
        "detach",
        "copy",
    ]
)
_MANY = frozenset({"cat", "concat", "concatenate", "stack"})
_SHOWN = ("chunks", "split_size", "split_sizes", "split_size_or_sections", "index")
_LARGE = 2**31


def layers_of(module: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    modules = module.named_modules()
    return {name: child for name, child in modules if isinstance(child, (nn.Linear, nn.Conv2d))}


def report(
    flow: Flow, layers: Mapping[str, nn.Linear | nn.Conv2d], *, frontend: str, latents: str
) -> LayerGraph:
    """Every layer's findings.

    Args:
        latents: the denoiser's argument that holds them.
    """
    reads = flow.channels.reads()
    first_reader: dict[tuple[Ref, ...], str] = {}
    for name in flow.calls:
        first_reader.setdefault(_inputs(flow, name), name)
    tied = _by_weight(layers)
    conditioning = conditioning_layers(
        flow.trace, latents=latents, layer_of=lambda op: _called(flow, op)
    )
    infos = {
        name: replace(
            _layer(flow, name, layer, reads, first_reader, tied[id(layer.weight)]),
            conditioning=conditioning.get(name, ""),
        )
        for name, layer in layers.items()
    }
    folds, obstacles = find_folds(flow.trace, layer_of=lambda op: _called(flow, op))
    return LayerGraph(
        infos,
        unknown_ops=flow.unknown,
        folds=folds,
        fold_obstacles=obstacles,
        frontend=frontend,
    )


def _called(flow: Flow, op: Op) -> str | None:
    return layer_of(flow, op, op.args["weight"]) if op.name == "linear" else None


def blank(name: str, layer: nn.Linear | nn.Conv2d, *, reason: str) -> LayerInfo:
    """A layer of which nothing is known."""
    kind, size_in, size_out = _sizes(layer)
    return LayerInfo(
        name=name,
        kind=kind,
        in_features=size_in,
        out_features=size_out,
        calls=0,
        output_segments=(size_out,),
        input_segments=(Segment(size=size_in, low=-inf, high=inf, producer=reason),),
        head_segments=(size_in,),
        shared_input=name,
        paths=(),
    )


def _sizes(layer: nn.Linear | nn.Conv2d) -> tuple[str, int, int]:
    if isinstance(layer, nn.Linear):
        return "linear", layer.in_features, layer.out_features
    return "conv2d", layer.in_channels, layer.out_channels


def _by_weight(layers: Mapping[str, nn.Linear | nn.Conv2d]) -> dict[int, list[str]]:
    tied: dict[int, list[str]] = {}
    for name, layer in layers.items():
        tied.setdefault(id(layer.weight), []).append(name)
    return tied


def _inputs(flow: Flow, name: str) -> tuple[Ref, ...]:
    return tuple(call.input for call in flow.calls[name])


def _layer(
    flow: Flow,
    name: str,
    layer: nn.Linear | nn.Conv2d,
    reads: Mapping[int, list[Read]],
    first_reader: Mapping[tuple[Ref, ...], str],
    tied: list[str],
) -> LayerInfo:
    calls = flow.calls.get(name, [])
    if not calls:
        return blank(name, layer, reason="never called")
    kind, size_in, size_out = _sizes(layer)
    out_cuts: dict[int, Read] = {}
    in_cuts: dict[int, Boundary] = {}
    for call in (call for other in tied for call in flow.calls.get(other, [])):
        out_cuts = {**output_cuts(reads[call.space], size=size_out), **out_cuts}
        for cut, boundary in _input_cuts(flow, call).items():
            in_cuts[cut] = max(boundary, in_cuts.get(cut, boundary))
    cuts = sorted(cut for cut, boundary in in_cuts.items() if boundary is Boundary.PRODUCER)
    heads = sorted(cut for cut, boundary in in_cuts.items() if boundary >= Boundary.HEAD)
    segments = tuple(
        _segment(flow, calls, low, high)
        for low, high in zip([0, *cuts], [*cuts, size_in], strict=True)
    )
    has_heads = any(boundary is Boundary.HEAD for boundary in in_cuts.values())
    paths = [_output_path(flow, name, read) for read in out_cuts.values()]
    if len(segments) > 1 or has_heads or any(segment.one_sided for segment in segments):
        paths += [f"{_input_path(flow, call.op)} -> {name}" for call in calls]
    return LayerInfo(
        name=name,
        kind=kind,
        in_features=size_in,
        out_features=size_out,
        calls=len(calls),
        output_segments=_differences(sorted(out_cuts), size_out),
        input_segments=segments,
        head_segments=_differences(heads, size_in) if has_heads else (size_in,),
        shared_input=first_reader[_inputs(flow, name)],
        paths=tuple(dict.fromkeys(paths))[:_MAX_PATHS],
    )


def _differences(cuts: list[int], size: int) -> tuple[int, ...]:
    return tuple(high - low for low, high in zip([0, *cuts], [*cuts, size], strict=True))


def _input_cuts(flow: Flow, call: Call) -> dict[int, Boundary]:
    cuts: dict[int, Boundary] = {}
    for row in call.rows:
        for (_, before), (start, label) in pairwise(row):
            boundary = flow.labels.boundary(before, label)
            cuts[start] = max(boundary, cuts.get(start, boundary))
    return cuts


def _segment(flow: Flow, calls: list[Call], low: int, high: int) -> Segment:
    """The hull of all that any row of any call holds in features [low, high)."""
    labels: dict[int, None] = {}
    for call in calls:
        for row in call.rows:
            ends = [start for start, _ in row[1:]] + [high]
            for (start, label), end in zip(row, ends, strict=True):
                if start < high and max(end, start + 1) > low and end > low:
                    labels[label] = None
    expressions = [flow.labels[label] for label in labels]
    interval = expressions[0].interval
    for expression in expressions[1:]:
        interval = hull(interval, expression.interval)
    producer = " | ".join(dict.fromkeys(expression.text for expression in expressions))
    return Segment(size=high - low, low=interval[0], high=interval[1], producer=producer)


def _output_path(flow: Flow, name: str, read: Read) -> str:
    steps, _ = _walk(flow, read.ref)
    return " -> ".join([name, *steps])


def _input_path(flow: Flow, op: int) -> str:
    call = flow.trace.ops[op]
    steps, start = _walk(flow, next(call.refs()))
    return " -> ".join([start, *steps])


def _walk(flow: Flow, ref: Ref) -> tuple[list[str], str]:
    """Back from a tensor to what made it: the steps between, first to last, and the maker."""
    steps: list[str] = []
    while ref in flow.maker and len(steps) < _MAX_STEPS:
        op = flow.trace.ops[flow.maker[ref]]
        if op.name in _MANY:
            operands = ", ".join(_maker(flow, operand) for operand in op.refs())
            return steps[::-1], f"{op.name}([{operands}], dim={op.args.get('dim', 0)})"
        if _is_source(flow, op) or ref not in flow.parent:
            break
        if op.name not in _SILENT:
            steps.append(_step(flow, op, ref))
        ref = flow.parent[ref]
    return steps[::-1], _maker(flow, ref)


_SOURCES = frozenset({"linear", "conv1d", "conv2d", "conv3d", "convolution", "addmm", "mm", "bmm"})
_SOURCES |= {"matmul", "baddbmm", "embedding", "einsum"}


def _is_source(flow: Flow, op: Op) -> bool:
    return op.name in _SOURCES or "attention" in op.name


def _maker(flow: Flow, ref: Ref) -> str:
    """What made a tensor, in words."""
    while ref in flow.maker:
        op = flow.trace.ops[flow.maker[ref]]
        moved = op.name in _SILENT or op.is_view
        if not moved or ref not in flow.parent:
            what = "sdpa" if "attention" in op.name else op.name
            return op.module if op.name in _SOURCES and op.module else f"{op.module}.{what}"
        ref = flow.parent[ref]
    return flow.trace.inputs.get(ref, "constant")


def _step(flow: Flow, op: Op, ref: Ref) -> str:
    name = op.name.lstrip("_").removeprefix("unsafe_")
    if name in ("view", "reshape", "flatten", "unflatten"):
        shape = flow.trace.shapes[ref.index]
        return f"{name}(..., {', '.join(map(str, shape[-2:]))})"
    shown = [str(op.args[key]) for key in _SHOWN if isinstance(op.args.get(key), (int, list))]
    if name == "slice":
        start, end, step = op.args["start"] or 0, op.args["end"], op.args["step"]
        to = "" if end is None or end > _LARGE else end
        shown = [f"{start}:{to}" if step == 1 else f"{start}:{to}:{step}"]
    if op.args.get("dim") is not None and (shown or name == "unbind"):
        shown.append(f"dim={op.args['dim']}")
    return f"{name}({', '.join(shown)})" if shown else name
