"""A denoiser, or another network of a pipeline, as an ONNX file.

The file has standard operators alone (opset 21), inputs by the names of the network's arguments,
and a batch of any size; other sizes are those of the example. Codes of four bits or fewer are
stored as INT4. Weights over a gigabyte go into a file beside it, which ONNX calls external data.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from segquant.core.layer_pass import replace_module
from segquant.core.linear import QuantLinear
from segquant.deploy.onnx_layer import OnnxLinear, why_not_onnx
from segquant.deploy.onnx_products import NIBBLES

if TYPE_CHECKING:
    import onnx_ir

OPSET = 21
BESIDE_BYTES = 2**30  # protobuf ends at 2 GB
BATCH = "batch"
METADATA = "segquant"  # the key of what is said of a file, JSON


@dataclass(kw_only=True)
class OnnxFile:
    """What a network takes and how its quantized layers run; it stands in the file too."""

    inputs: dict[str, list[int | str]]  # name -> shape; a text is a size that is free
    types: dict[str, str]  # name -> of the input
    outputs: list[str] = field(default_factory=lambda: ["out_sample"])
    fixed: dict[str, Any] = field(default_factory=dict)  # arguments that are part of the file
    integer_layers: list[str] = field(default_factory=list)  # quantized, multiplied as integers
    integer_products: int = 0  # of these layers: segments and DualScale have several
    float_layers: dict[str, str] = field(default_factory=dict)  # quantized, multiplied as floats


def refused_layers(denoiser: nn.Module) -> dict[str, str]:
    """Quantized layers that standard operators do not state, and why."""
    layers = {n: m for n, m in denoiser.named_modules() if isinstance(m, QuantLinear)}
    reasons = {name: why_not_onnx(layer) for name, layer in layers.items()}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def export_denoiser(
    denoiser: nn.Module, calls: Sequence[Mapping[str, Any]], path: Path
) -> OnnxFile:
    """Writes the file. The denoiser is used up: its layers are replaced, its type is float32.

    Args:
        denoiser: of diffusers; quantized layers are written as such.
        calls: the arguments of calls by name; a size that differs between them is free in the
            file, and all such sizes are one, the batch. The largest comes last.

    Raises:
        NotInOnnx: a layer's codes are small floats.
    """
    said = OnnxFile(inputs={}, types={})
    for name, module in list(denoiser.named_modules()):
        if isinstance(module, QuantLinear):
            layer = OnnxLinear(module)
            replace_module(denoiser, old=module, new=layer)
            if layer.float_because is None:
                said.integer_layers.append(name)
                said.integer_products += layer.integer_products
            else:
                said.float_layers[name] = layer.float_because
    return export_network(denoiser, calls, path, said=said)


def export_network(
    network: nn.Module, calls: Sequence[Mapping[str, Any]], path: Path, *, said: OnnxFile
) -> OnnxFile:
    """Any network of tensors by name, as `export_denoiser`; with the first of its outputs."""
    flat = [flat_arguments(call) for call in calls]
    tensors = {
        name: value.float() if value.is_floating_point() else value
        for name, value in flat[-1].items()
        if isinstance(value, Tensor)
    }
    said.fixed = {k: v for k, v in flat[-1].items() if not isinstance(v, Tensor) and v is not None}
    free = {name: _free_sizes([call[name] for call in flat]) for name in tensors}
    said.inputs = {
        name: [BATCH if at in free[name] else size for at, size in enumerate(value.shape)]
        for name, value in tensors.items()
    }
    said.types = {name: str(value.dtype).removeprefix("torch.") for name, value in tensors.items()}
    batch = torch.export.Dim.AUTO  # torch has bounds of its own for it: layouts change at 64
    with torch.no_grad(), _quiet():
        graph = torch.export.export(
            _Named(_widened(network), calls[-1], outputs=len(said.outputs)),
            (tensors,),
            dynamic_shapes=({name: dict.fromkeys(at, batch) for name, at in free.items()},),
            strict=False,
        )
        program = torch.onnx.export(
            graph,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(tensors),
            output_names=said.outputs,
            optimize=False,
            verbose=False,
        )
        assert program is not None
        _finish(program.model, said)
    _write(program.model, path)
    return said


def flat_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """By name, those of nested dicts too: UNets take `added_cond_kwargs={"time_ids": ...}`."""
    flat: dict[str, Any] = {}
    for name, value in arguments.items():
        opened = flat_arguments(value) if isinstance(value, Mapping) else {name: value}
        twice = flat.keys() & opened.keys()
        if twice:
            raise ValueError(f"two arguments of one name: {', '.join(sorted(twice))}")
        flat |= opened
    return flat


def _free_sizes(values: Sequence[Tensor]) -> list[int]:
    """Dimensions whose size is not the same in all calls."""
    return [
        at
        for at, sizes in enumerate(zip(*(v.shape for v in values), strict=True))
        if len(set(sizes)) > 1
    ]


def _widened(network: nn.Module) -> nn.Module:
    """In place: no tensor is a narrower float than float32."""
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_floating_point():
                wide = parameter.detach().float()
                module._parameters[name] = nn.Parameter(wide, requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                module._buffers[name] = buffer.float()
    return network.eval()


class _Named(nn.Module):
    """A network of tensors by name; what else the example has is part of it."""

    def __init__(self, network: nn.Module, example: Mapping[str, Any], *, outputs: int) -> None:
        super().__init__()
        self.network, self._example, self._outputs = network, example, outputs

    def forward(self, tensors: dict[str, Tensor]) -> tuple[Tensor, ...]:
        out = self.network(**_filled(self._example, tensors))
        return (out,) if isinstance(out, Tensor) else tuple(out[: self._outputs])


def _filled(example: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The example's arguments with these tensors in the place of its own."""
    return {
        name: _filled(value, tensors) if isinstance(value, Mapping) else tensors.get(name, value)
        for name, value in example.items()
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter reports its progress and what it lacks of torchvision."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _finish(model: onnx_ir.Model, said: OnnxFile) -> None:
    """Drops what the exporter leaves over, packs narrow codes, says what the file is."""
    from onnxscript import optimizer

    optimizer.optimize(model)
    _pack_nibbles(model)
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
    for value in [*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()
        value.doc_string = None
    model.graph.metadata_props.clear()
    model.metadata_props.clear()
    model.metadata_props[METADATA] = json.dumps(asdict(said), sort_keys=True)
    model.graph.name = "network"
    model.producer_name, model.doc_string = METADATA, None


def _pack_nibbles(model: onnx_ir.Model) -> None:
    """Codes of four bits or fewer: an INT4 initializer and its Cast to INT8."""
    import onnx_ir as ir

    for name, value in list(model.graph.initializers.items()):
        if NIBBLES not in name or value.const_value is None:
            continue
        codes = value.const_value.numpy()
        packed = ir.Tensor(
            codes.astype(ir.DataType.INT4.numpy()), dtype=ir.DataType.INT4, name=name
        )
        held = ir.Value(name=f"{name}_packed", const_value=packed)
        held.shape, held.dtype = value.shape, ir.DataType.INT4
        cast = ir.Node("", "Cast", [held], [ir.AttrInt64("to", ir.DataType.INT8.value)])
        del model.graph.initializers[name]
        value.replace_all_uses_with(cast.outputs[0])
        cast.outputs[0].name, cast.outputs[0].shape = name, value.shape
        cast.outputs[0].dtype = ir.DataType.INT8
        model.graph.register_initializer(held)
        model.graph.insert_before(model.graph[0], cast)


def _write(model: onnx_ir.Model, path: Path) -> None:
    import onnx_ir as ir

    held = [value.const_value for value in model.graph.initializers.values()]
    size = sum(tensor.nbytes for tensor in held if tensor is not None)
    beside = f"{path.name}.data" if size > BESIDE_BYTES else None
    ir.save(model, path, external_data=beside)
