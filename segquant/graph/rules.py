"""How each ATen operation moves the two shadows: the data-moving, elementwise and naming rules.

A rule takes the analysis and an operation and returns the shadows of its outputs. An operation
without a rule is reported in `unknown_ops`.
"""

from typing import Any

import torch
from torch import Tensor

from segquant.graph.flow import Flow, Pair, place
from segquant.graph.intervals import Interval, elementwise
from segquant.graph.labels import CONST, ZERO
from segquant.graph.mixing import MIXING
from segquant.graph.names import ACTIVATIONS, FACTORIES, GATES, MOVES, PASSES, RESHAPES
from segquant.graph.shadow import combine, reshape, uniform, varies
from segquant.graph.trace import Op, Ref

_ADDITIVE = frozenset(["add", "rsub", "sub"])
_SCALING = frozenset(["div", "mul"])
# The least value of x * sigmoid(k * x) is this over k.
_SILU_MINIMUM = -0.2785


def rule(flow: Flow, op: Op) -> list[Pair]:
    """The shadows of the outputs of `op`, in order."""
    name = op.name
    if name in FACTORIES:
        return _factory(flow, op)
    if name in MIXING and MIXING[name][0]:
        return MIXING[name][1](flow, op)
    if name == "copy":
        return [_copied(flow, op)]
    if name in PASSES:
        return _passed(flow, op)
    if name in RESHAPES or name in MOVES or name in ("constant_pad_nd", "pad"):
        return _moved(flow, op)
    if op.outputs and all(flow.is_const(ref) for ref in op.refs()):
        return [flow.plain(CONST, ref) for ref in op.outputs if ref is not None]
    if torch.Tag.pointwise in op.func.tags or name in ("lerp", "masked_fill", "gelu", "square"):
        return _pointwise(flow, op)
    if name in MIXING:
        return MIXING[name][1](flow, op)
    return flow.give_up(op)


def _factory(flow: Flow, op: Op) -> list[Pair]:
    zero = "zero" in op.name
    if op.name in ("full", "full_like", "new_full", "fill"):
        value = op.args.get("fill_value", op.args.get("value"))
        zero = isinstance(value, (int, float)) and value == 0
    outputs = [ref for ref in op.outputs if ref is not None]
    return [flow.plain(ZERO if zero else CONST, ref) for ref in outputs]


def _copied(flow: Flow, op: Op) -> Pair:
    shape = flow.shape(op.args["self"])
    pair = flow.pair(op.args["src"])
    return Pair(pair.origin.expand(shape), pair.channel.expand(shape))


def _passed(flow: Flow, op: Op) -> list[Pair]:
    source = next(op.refs())
    outputs = [ref for ref in op.outputs if ref is not None]
    flow.identity[outputs[0]] = flow.same(source)
    if source in flow.parameter:
        flow.parameter[outputs[0]] = flow.parameter[source]
    return [flow.pair(source)] + [flow.plain(CONST, ref) for ref in outputs[1:]]


def _moved(flow: Flow, op: Op) -> list[Pair]:
    refs = list(op.refs())
    outputs = [ref for ref in op.outputs if ref is not None]
    if len(refs) == 1 and refs[0] in flow.parameter:
        flow.parameter.update(dict.fromkeys(outputs, flow.parameter[refs[0]]))
    if op.name in RESHAPES:
        shape = flow.shape(outputs[0])
        origin, channel = flow.pair(refs[0])
        move = Tensor.view if op.is_view and origin.is_contiguous() else reshape
        return [Pair(move(origin, shape), move(channel, shape))]
    if op.name in ("constant_pad_nd", "pad"):
        return _padded(flow, op)
    if op.name in ("repeat_interleave", "tensor_split") and len(refs) > 1:
        return flow.give_up(op, reason="unknown positions")
    origins = _tensors(op.call(lambda ref: flow.pair(ref).origin))
    channels = _tensors(op.call(lambda ref: flow.pair(ref).channel))
    return [Pair(*pair) for pair in zip(origins, channels, strict=True)]


def _padded(flow: Flow, op: Op) -> list[Pair]:
    if op.args.get("mode", "constant") != "constant":
        return flow.give_up(op, reason=f"mode={op.args['mode']}")
    fill = ZERO if op.args.get("value") in (None, 0) else CONST
    origin, channel = flow.pair(op.args["self"])
    pad = [int(size) for size in op.args["pad"]]
    padded = torch.nn.functional.pad
    return [Pair(padded(origin, pad, value=fill), padded(channel, pad, value=0))]


def _tensors(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def _pointwise(flow: Flow, op: Op) -> list[Pair]:
    outputs = [ref for ref in op.outputs if ref is not None]
    names, refs, numbers = _operands(op)
    shape = flow.shape(outputs[0])
    shadows = [flow.pair(ref).origin for ref in refs]
    sizes = tuple(shadow.numel() == _count(shape) for shadow in shadows)
    key = (sizes, tuple(sorted(numbers.items())), tuple(names))
    fixed = {name: (value, value) for name, value in numbers.items() if not isinstance(value, str)}
    text = f"{op.module}({op.name})" if op.name in ACTIVATIONS else place(op, op.name)
    floor = _product_floor(flow, op, refs)

    def label(parents: tuple[int, ...]) -> int:
        intervals: dict[str, Interval] = {
            name: flow.labels[parent].interval for name, parent in zip(names, parents, strict=True)
        }
        low, high = elementwise(op.name, {**fixed, **intervals})
        named = _gate(flow, op, parents) or text
        return flow.labels.derived(
            op.name, parents, text=named, interval=(max(low, floor), high), key=(*key, floor)
        )

    if "rounding_mode" in numbers:
        fixed["rounding_mode"] = (1.0, 1.0)
    origin = combine(shadows, shape, label=label)
    channel = _joined_channels(flow, op, refs, shape)
    _note_scaling(flow, op, refs, numbers, outputs[0])
    return [Pair(origin, channel)] * len(outputs)


def _gate(flow: Flow, op: Op, parents: tuple[int, ...]) -> str:
    """The words for a product with an activation, as in GEGLU, whose sign nothing bounds."""
    if op.name != "mul" or len(parents) != 2:
        return ""
    names = [name for name in (flow.labels[parent].name for parent in parents) if name in GATES]
    return f"{op.module}(gated {names[0]})" if len(names) == 1 else ""


def _operands(op: Op) -> tuple[list[str], list[Ref], dict[str, Any]]:
    """Names and references of the tensor operands, and the numbers and words beside them."""
    names: list[str] = []
    refs: list[Ref] = []
    numbers: dict[str, Any] = {}
    for name, value in op.args.items():
        if isinstance(value, Ref):
            names.append(name)
            refs.append(value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            numbers[name] = float(value)
        elif isinstance(value, str):
            numbers[name] = value
    return names, refs, numbers


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _product_floor(flow: Flow, op: Op, refs: list[Ref]) -> float:
    """A lower bound that holds since both factors are functions of the same element."""
    if op.name != "mul" or len(refs) != 2:
        return -float("inf")
    first, second = (flow.same(ref) for ref in refs)
    if first == second:
        return 0.0
    for x, gate in ((first, second), (second, first)):
        inner, factor = flow.sigmoid.get(gate, (None, 0.0))
        if inner == x and factor > 0.0:
            return _SILU_MINIMUM / factor
    return -float("inf")


def _note_scaling(
    flow: Flow, op: Op, refs: list[Ref], numbers: dict[str, Any], output: Ref
) -> None:
    """Remembers `k * x` and `sigmoid(k * x)`, so that a hand-written SiLU is known as one."""
    if len(refs) != 1:
        return
    x, factor = flow.scaled.get(flow.same(refs[0]), (flow.same(refs[0]), 1.0))
    if op.name == "sigmoid":
        flow.sigmoid[output] = (x, factor)
    elif op.name in _SCALING and numbers.get("other"):
        other = numbers["other"]
        flow.scaled[output] = (x, factor * other if op.name == "mul" else factor / other)


def _joined_channels(flow: Flow, op: Op, refs: list[Ref], shape: tuple[int, ...]) -> Tensor:
    """The channels that survive an elementwise operation; the others are read by it."""
    none = uniform(0, shape)
    coded = [ref for ref in refs if flow.is_coded(ref)]
    if not coded:
        return none
    codes = [flow.pair(ref).channel for ref in coded]
    others = [ref for ref in refs if ref not in coded]
    large = all(code.shape == shape for code in codes)
    kept = len(coded) == 1 or (large and _matched(flow, op, codes))
    if kept and all(_harmless(flow, other, codes[0], large=large) for other in others):
        return codes[0].expand(shape)
    for ref in coded:
        flow.read(ref)
    return none


def _matched(flow: Flow, op: Op, codes: list[Tensor]) -> bool:
    if all(torch.equal(code, codes[0]) for code in codes[1:]):
        return True
    return op.name in _ADDITIVE and len(codes) == 2 and flow.channels.join(codes[0], codes[1])


def _harmless(flow: Flow, other: Ref, codes: Tensor, *, large: bool) -> bool:
    """A constant operand, or one that is the same for all channels, mixes no channels."""
    if flow.is_const(other):
        return True
    shape = flow.shape(other)
    lead = codes.dim() - len(shape)
    aligned = (1,) * lead + shape if lead >= 0 else shape[-codes.dim() :]
    return large and all(
        size == 1 for dim, size in enumerate(aligned) if codes.dim() and varies(codes, dim)
    )
