"""The second front end: `torch.export.export(strict=False)`, whose graph is read as a trace."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils._pytree import tree_map

from segquant.graph.trace import Op, Ref, Trace, bind, may_alias, short_name

_REPEATED = re.compile(r"@\d+$")


def export_trace(module: nn.Module, example_inputs: Mapping[str, Any]) -> Trace:
    """Exports on the device of the module's weights; no weight is read."""
    device = next((p.device for p in module.parameters()), torch.device("cpu"))

    def placed(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) else value

    with torch.no_grad():
        inputs = tree_map(placed, dict(example_inputs))
        program = torch.export.export(module, (), inputs, strict=False)
    trace = Trace(frontend="export")
    refs: dict[fx.Node, Any] = {}
    _name_placeholders(trace, program, refs)
    _add_graph(trace, program.graph_module, refs)
    return trace


def _name_placeholders(trace: Trace, program: ExportedProgram, refs: dict[fx.Node, Any]) -> None:
    nodes = [node for node in program.graph.nodes if node.op == "placeholder"]
    for node, spec in zip(nodes, program.graph_signature.input_specs, strict=True):
        if not isinstance(node.meta.get("val"), Tensor):
            refs[node] = node.meta.get("val")
            continue
        ref = refs[node] = trace.add(node.meta["val"].shape)
        if spec.kind is InputKind.PARAMETER:
            trace.parameters[ref] = str(spec.target)
        elif spec.kind is InputKind.USER_INPUT:
            trace.inputs[ref] = f"input {node.name}"


def _add_graph(trace: Trace, graph_module: fx.GraphModule, refs: dict[fx.Node, Any]) -> Any:
    """Adds a graph's operations and returns its results; sub-graphs are inlined."""
    for node in graph_module.graph.nodes:
        if node.op == "get_attr":
            value = getattr(graph_module, str(node.target))
            refs[node] = trace.add(value.shape) if isinstance(value, Tensor) else value
        elif node.op == "call_function":
            refs[node] = _add_call(trace, node, refs)
        elif node.op == "output":
            results = _resolved(node.args[0], refs)
            trace.results = [ref for ref in _flat(results) if isinstance(ref, Ref)]
            return results
    raise AssertionError("a graph without an output")


def _add_call(trace: Trace, node: fx.Node, refs: dict[fx.Node, Any]) -> Any:
    args: Any = _resolved(node.args, refs)
    kwargs: Any = _resolved(node.kwargs, refs)
    if not isinstance(node.target, OpOverload):
        graphs = [arg for arg in args if isinstance(arg, fx.GraphModule)]
        if getattr(node.target, "__name__", "") == "getitem":
            return args[0][args[1]]
        if len(graphs) == 1:
            operands = args[args.index(graphs[0]) + 1 :]
            return _inline(trace, graphs[0], operands)
        if isinstance(node.meta.get("val"), Tensor):
            return trace.add(node.meta["val"].shape)
        return node.meta.get("val")
    values = node.meta.get("val")
    results = list(values) if isinstance(values, (list, tuple)) else [values]
    outputs = [trace.add(v.shape) if isinstance(v, Tensor) else None for v in results]
    op = Op(
        func=node.target,
        name=short_name(node.target),
        args=bind(node.target, args, kwargs),
        outputs=list(outputs),
        module=_module_of(node),
    )
    if may_alias(node.target):
        op.is_view = _is_view(node, results)
    trace.ops.append(op)
    if isinstance(values, (list, tuple)):
        return outputs
    return outputs[0] if outputs[0] is not None else values


def _inline(trace: Trace, graph_module: fx.GraphModule, operands: Any) -> Any:
    nodes = [node for node in graph_module.graph.nodes if node.op == "placeholder"]
    return _add_graph(trace, graph_module, dict(zip(nodes, operands, strict=True)))


def _flat(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return [leaf for item in value for leaf in _flat(item)]
    return [value]


def _resolved(value: Any, refs: dict[fx.Node, Any]) -> Any:
    """The arguments of a node with every node replaced by what stands for it."""
    if isinstance(value, dict):
        return {key: _resolved(item, refs) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_resolved(item, refs) for item in value]
    if isinstance(value, fx.Node):
        return refs[value]
    return int(value) if isinstance(value, torch.SymInt) else value


def _is_view(node: fx.Node, results: list[Any]) -> bool:
    first = next((n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)), None)
    if first is None:
        return False
    storage = first.meta["val"].untyped_storage()._cdata
    tensors = [value for value in results if isinstance(value, Tensor)]
    return any(value.untyped_storage()._cdata == storage for value in tensors)


def _module_of(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    if not stack:
        return ""
    path = str(list(stack.values())[-1][0])
    return _REPEATED.sub("", path)
