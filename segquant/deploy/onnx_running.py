"""An exported denoiser at work: in ONNX Runtime or in OpenVINO, in a diffusers pipeline's hands."""

from __future__ import annotations

import importlib.util
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segquant.deploy.onnx_export import BATCH, METADATA, OPSET, OnnxFile, flat_arguments
from segquant.deploy.onnx_products import CODE_MIDDLE

Feed = Mapping[str, Tensor]  # on the CPU, in the types that the file takes
RUNTIMES = ("onnxruntime", "openvino")
_WRITERS = ("onnx", "onnxscript")


@dataclass(frozen=True, kw_only=True)
class Session:
    """A file in a runtime, on the CPU."""

    said: OnnxFile
    native: Any  # the runtime's own
    runtime: str

    def run(self, feed: Feed) -> Tensor:
        """The file's first output."""
        return _first(self.native, feed, output=self.said.outputs[0])


def open_session(
    path: Path,
    *,
    runtime: str = "onnxruntime",
    num_threads: int | None = None,
    precision: str = "f32",
    profile: Path | None = None,
) -> Session:
    """A file that `export_denoiser` wrote.

    Args:
        runtime: one of RUNTIMES.
        num_threads: None leaves it to the runtime.
        precision: of OpenVINO's products of floats, f32 or bf16.
        profile: the beginning of the name of ONNX Runtime's profile, which `end_profiling` writes;
            OpenVINO keeps its own.

    Raises:
        ValueError: the file is of another program.
        ModuleNotFoundError: the runtime is not installed.
    """
    load = _in_openvino if runtime == "openvino" else _in_onnxruntime
    said = read_said(path)
    native = load(str(path), num_threads=num_threads, precision=precision, profile=profile)
    return Session(said=said, native=native, runtime=runtime)


def _in_onnxruntime(
    model: str | bytes, *, num_threads: int | None, precision: str, profile: Path | None
) -> Any:
    import onnxruntime

    del precision  # what is no product of codes is in float32
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    if num_threads is not None:
        options.intra_op_num_threads = num_threads
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _in_openvino(
    model: str | bytes, *, num_threads: int | None, precision: str, profile: Path | None
) -> Any:
    import openvino

    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": precision}
    if profile is not None:
        settings["PERF_COUNT"] = True
    if num_threads is not None:
        settings["INFERENCE_NUM_THREADS"] = num_threads
    core = openvino.Core()
    return core.compile_model(core.read_model(model), "CPU", settings)


def _first(native: Any, feed: Feed, *, output: str) -> Tensor:
    given = {name: value.numpy() for name, value in feed.items()}
    if hasattr(native, "run"):
        return torch.from_numpy(native.run([output], given)[0])
    # a copy: the array is the runtime's own, which its next call overwrites
    return torch.from_numpy(native(given)[output]).clone()


def why_not_installed(runtime: str = "onnxruntime") -> str | None:
    """What is missing to write a file and to run it there, or None."""
    lost = [name for name in (*_WRITERS, runtime) if importlib.util.find_spec(name) is None]
    if not lost:
        return None
    extras = "onnx" if runtime == "onnxruntime" else f"onnx,{runtime}"
    return f"{' and '.join(lost)} not installed: pip install 'segquant-bench[{extras}]'"


def read_said(path: Path) -> OnnxFile:
    """What a file says of itself; its weights are not read.

    Raises:
        ValueError: it says nothing.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)
    said = {entry.key: entry.value for entry in model.metadata_props}.get(METADATA)
    if said is None:
        raise ValueError(f"{path}: an ONNX file of another program; segbench export writes them")
    return OnnxFile(**json.loads(said))


def products_are_exact(runtime: str) -> bool:
    """Whether 8-bit products keep their sums here: some CPUs without VNNI stop them at 16 bits."""
    size, largest = 64, 127
    load = _in_openvino if runtime == "openvino" else _in_onnxruntime
    native = load(_largest_product(size, largest), num_threads=1, precision="f32", profile=None)
    found = _first(native, {"x": torch.full((1, 1, size), float(largest))}, output="y")
    return bool((found == size * largest**2).all())


def _largest_product(size: int, largest: int) -> bytes:
    """x W with the operators of a quantized layer, where all codes are the largest."""
    from onnx import TensorProto, helper, numpy_helper

    constants = {
        "one": torch.tensor(1.0),
        "middle": torch.tensor(CODE_MIDDLE, dtype=torch.uint8),
        "zero": torch.tensor(0, dtype=torch.int8),
        "w": torch.full((size, size), largest, dtype=torch.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "middle"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "one", "middle"], ["back"]),
        helper.make_node("DequantizeLinear", ["w", "one", "zero"], ["weight"]),
        helper.make_node("MatMul", ["back", "weight"], ["y"]),
    ]
    shape = [1, 1, size]
    graph = helper.make_graph(
        nodes,
        "largest",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(v.numpy(), name) for name, v in constants.items()],
    )
    opset = helper.make_opsetid("", OPSET)
    made: bytes = helper.make_model(graph, opset_imports=[opset], ir_version=10).SerializeToString()
    return made


class OtherCall(ValueError):  # noqa: N818 - it is what was found
    """A call that the file was not exported for; the message says what differs."""


def feed_of(said: OnnxFile, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    """A call's arguments as the file takes them.

    Raises:
        OtherCall: an argument is missing, has another size, or is another constant of the file.
    """
    given = {k: v for k, v in flat_arguments(arguments).items() if v is not None}
    feed: dict[str, Tensor] = {}
    for name, shape in said.inputs.items():
        value = given.pop(name, None)
        if not isinstance(value, Tensor):
            raise OtherCall(f"the exported denoiser needs a tensor {name}; got {value!r}")
        fits = value.dim() == len(shape) and all(
            free in (BATCH, size) for free, size in zip(shape, value.shape, strict=True)
        )
        if not fits:
            raise OtherCall(
                f"{name} of size {list(value.shape)}; the file was exported for {shape}: export it "
                "again with the height, width and length that you call it with"
            )
        feed[name] = value.detach().to("cpu", getattr(torch, said.types[name]))
    for name, value in given.items():
        if name != "return_dict" and said.fixed.get(name) != value:
            raise OtherCall(
                f"{name}={value!r}; the file was exported with {said.fixed.get(name)!r}, which is "
                "part of it: export it again"
            )
    return feed


def run_elsewhere(denoiser: nn.Module, session: Session) -> nn.Module:
    """Something that a pipeline calls as it calls this denoiser; a session makes the outputs.

    It is of the denoiser's class and has its config and type, and no weights. Its outputs have the
    type of the first input.
    """
    kind: Any = type(denoiser)
    given: Any = denoiser
    config = {k: v for k, v in given.config.items() if k != "quantization_config"}

    def forward(self: nn.Module, *args: Any, **arguments: Any) -> Any:
        names = list(inspect.signature(kind.forward).parameters)[1:]
        arguments |= dict(zip(names, args, strict=False))
        feed = feed_of(session.said, arguments)
        first = next(value for value in arguments.values() if isinstance(value, Tensor))
        sample = session.run(feed).to(first.device, given_dtype)
        return (sample,) if arguments.get("return_dict") is False else output_class(sample=sample)

    given_dtype = given.dtype
    output_class = _output_class(kind)
    there = {
        "forward": forward,
        "device": property(lambda self: torch.device("cpu")),
        "to": lambda self, *args, **kwargs: self,
    }
    with torch.device("meta"):
        made = kind.from_config(config)
    made.to(given_dtype).eval().requires_grad_(False)
    made.__class__ = type(f"{kind.__name__}InSession", (kind,), there)
    out: nn.Module = made
    return out


def _output_class(kind: type) -> Any:
    """What the denoiser's forward returns: a class of its module, with a field `sample`."""
    found = [
        value
        for value in vars(inspect.getmodule(kind)).values()
        if isinstance(value, type) and "sample" in getattr(value, "__annotations__", {})
    ]
    assert found, kind
    return found[0]
