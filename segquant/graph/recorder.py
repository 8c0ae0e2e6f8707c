"""The first front end: run the forward pass once, on fake weights, and write down what it does.

Floating point tensors are fake (a shape and no memory), integers and booleans are real, so that a
model whose control flow depends on a mask's contents runs too. Any Python control flow that runs
can be recorded. What is recorded is the path of this one call.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from segquant.graph.trace import Op, Ref, Trace, bind, may_alias, short_name

_aten = torch.ops.aten

# These would be split into their parts before they are seen; they are kept whole.
_WHOLE: dict[Callable[..., Any], OpOverload] = {
    F.linear: _aten.linear.default,
    F.scaled_dot_product_attention: _aten.scaled_dot_product_attention.default,
    F.rms_norm: _aten.rms_norm.default,
    F.layer_norm: _aten.layer_norm.default,
    torch.layer_norm: _aten.layer_norm.default,
    torch.rms_norm: _aten.rms_norm.default,
    torch.chunk: _aten.chunk.default,
    Tensor.chunk: _aten.chunk.default,
    F.conv1d: _aten.conv1d.default,
    F.conv2d: _aten.conv2d.default,
    F.conv3d: _aten.conv3d.default,
}
_INDEXING = {"index", "index_select", "gather", "repeat_interleave", "take_along_dim"}
_DEVICE = torch.device("cpu")


class Recorder:
    """Holds one trace while it is recorded; tensors are kept alive so that ids stay unique."""

    def __init__(self, module: nn.Module, *, fake: bool) -> None:
        self.trace = Trace(frontend="record" if fake else "observe")
        self.current = ""
        self._mode = FakeTensorMode(allow_non_fake_inputs=True) if fake else None
        self._refs: dict[int, Ref] = {}
        self._alive: list[Any] = []
        self._fakes: dict[int, Tensor] = {}
        self._names = {id(m): name for name, m in module.named_modules()}
        self._stack: list[str] = []
        self._whole = 0

    def stand_in(self, tensor: Tensor) -> Tensor:
        """A fake tensor of the same shape; integers and booleans with data stay as they are."""
        if self._mode is None or isinstance(tensor, FakeTensor):
            return tensor
        if not (tensor.is_floating_point() or tensor.is_complex()) and not tensor.is_meta:
            return tensor.to(_DEVICE)
        if id(tensor) not in self._fakes:
            size, stride = tensor.shape, tensor.stride()
            meta = torch.empty_strided(size, stride, dtype=tensor.dtype, device="meta")
            self._fakes[id(tensor)] = FakeTensor(self._mode, meta, _DEVICE)
            self._alive.append(tensor)
        return self._fakes[id(tensor)]

    def ref(self, tensor: Tensor) -> Ref:
        known = self._refs.get(id(tensor))
        if known is None:
            known = self._refs[id(tensor)] = self.trace.add(tensor.shape)
            self._alive.append(tensor)
        return known

    @property
    def module(self) -> str:
        return self._stack[-1] if self._stack else ""

    def enter(self, module: nn.Module, args: Any) -> None:
        self._stack.append(self._names.get(id(module), self.module))

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._stack.pop()

    def run_whole(self, func: OpOverload, call: Callable[[], Any], args: Any, kwargs: Any) -> Any:
        """Runs a call whose parts are not recorded, and records it as one operation."""
        self._whole += 1
        try:
            result = self._shape_only(func, bind(func, args, kwargs))
            if result is None:
                result = call()
        finally:
            self._whole -= 1
        self._note(func, args, kwargs, result)
        return result

    def _shape_only(self, func: OpOverload, bound: dict[str, Any]) -> Tensor | None:
        """The fake result of the most frequent calls, without running their parts."""
        x, weight = bound.get("input"), bound.get("weight")
        if self._mode is None or not isinstance(weight, FakeTensor) or not isinstance(x, Tensor):
            return None
        if x.dtype != weight.dtype or torch.is_autocast_enabled(_DEVICE.type):
            return None
        if func is _aten.linear.default and weight.dim() == 2 and x.shape[-1:] == weight.shape[1:]:
            return weight.new_empty((*x.shape[:-1], weight.shape[0]))
        if func is _aten.rms_norm.default and x.shape[-weight.dim() :] == weight.shape:
            return weight.new_empty(x.shape)
        return None

    def run_part(self, func: OpOverload, args: Any, kwargs: Any) -> Any:
        self.current = str(func)
        if self._mode is not None:
            args = [self._without_meta(value) for value in args]
            kwargs = {key: self._without_meta(value) for key, value in kwargs.items()}
        result = func(*args, **kwargs)
        if not self._whole:
            self._note(func, args, kwargs, result)
        return result

    def _without_meta(self, value: Any) -> Any:
        """A plain tensor on the meta device, such as a table kept as an attribute, made fake."""
        if isinstance(value, (list, tuple)):
            return [self._without_meta(item) for item in value]
        if not isinstance(value, Tensor) or isinstance(value, FakeTensor) or not value.is_meta:
            return value
        return self.stand_in(value)

    def _note(self, func: OpOverload, args: Any, kwargs: Any, result: Any) -> None:
        bound = bind(func, args, kwargs)
        name = short_name(func)
        values = {key: self._noted(value, name, key) for key, value in bound.items()}
        op = Op(func=func, name=name, args=values, outputs=[], module=self.module)
        results = list(result) if isinstance(result, (list, tuple)) else [result]
        for value in results:
            op.outputs.append(self.ref(value) if isinstance(value, Tensor) else None)
        if may_alias(func):
            tensors = [v for v in (*bound.values(), *results) if isinstance(v, Tensor)]
            op.is_view = len(tensors) > 1 and _share(tensors[0], tensors[-1])
        self.trace.ops.append(op)

    def _noted(self, value: Any, name: str, key: str) -> Any:
        if isinstance(value, Tensor):
            position = name in _INDEXING and key not in ("self", "input")
            if position and not isinstance(value, FakeTensor) and not value.is_floating_point():
                return value.clone()
            return self.ref(value)
        if isinstance(value, (list, tuple)):
            return [self._noted(item, name, key) for item in value]
        return value


def _share(a: Tensor, b: Tensor) -> bool:
    return bool(a.untyped_storage()._cdata == b.untyped_storage()._cdata)


class _Parts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, recorder: Recorder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recorder = recorder

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.recorder.run_part(func, args, kwargs or {})


class _Whole(TorchFunctionMode):
    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        overload = _WHOLE.get(func)
        if overload is None:
            return func(*args, **kwargs)
        return self.recorder.run_whole(overload, lambda: func(*args, **kwargs), args, kwargs)


@contextmanager
def _recording(recorder: Recorder) -> Iterator[None]:
    before = register_module_forward_pre_hook(recorder.enter)
    after = register_module_forward_hook(recorder.leave, always_call=True)
    try:
        with torch.no_grad(), _Parts(recorder), _Whole(recorder):
            yield
    finally:
        before.remove()
        after.remove()


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer once per module that holds it.

    A module known by two names must appear once: `functional_call` would swap its tensors twice
    and put a stand-in back in the end.
    """
    for prefix, child in module.named_modules():
        for name, tensor in (*child._parameters.items(), *child._buffers.items()):
            if tensor is not None:
                yield f"{prefix}.{name}" if prefix else name, tensor


def record(module: nn.Module, *, fake: bool = True) -> Recorder:
    """Prepares a recorder: names the inputs and the parameters. `run` does the pass."""
    recorder = Recorder(module, fake=fake)
    for name, tensor in module.named_parameters():
        recorder.trace.parameters[recorder.ref(recorder.stand_in(tensor))] = name
    return recorder


def run(recorder: Recorder, module: nn.Module, example_inputs: Mapping[str, Any]) -> Trace:
    """Runs the module once and returns the trace; the module itself is not changed."""
    inputs = tree_map(
        lambda v: recorder.stand_in(v) if isinstance(v, Tensor) else v, example_inputs
    )
    for name, value in inputs.items():
        for leaf in tree_leaves(value):
            if isinstance(leaf, Tensor):
                recorder.trace.inputs[recorder.ref(leaf)] = f"input {name}"
    stand_ins = {name: recorder.stand_in(tensor) for name, tensor in _own_tensors(module)}
    with _recording(recorder):
        if recorder.trace.frontend == "observe":
            outputs = module(**inputs)
        else:
            outputs = torch.func.functional_call(
                module, stand_ins, (), dict(inputs), tie_weights=False
            )
    leaves = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
    recorder.trace.results = [recorder.ref(leaf) for leaf in leaves]
    return recorder.trace
