"""A quantized layer for use outside the harness: codes alone, as parameters.

What moves models about (accelerate's and diffusers' offloading, device maps) looks for parameters
and may leave buffers where they are. So codes and bias are parameters here. Scales stay buffers in
float32, since a model takes its type from its first parameter in floats. The dense weight is
derived at each call and not kept: a loaded model is as large as its file.

The layer is an `nn.Linear` by name, so that PEFT puts an adapter beside it. An adapter cannot be
fused into codes; what tries to is told so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from segquant.core.declared_type import DECLARED
from segquant.core.layer_pass import replace_module
from segquant.core.linear import LinearSpec, QuantLinear

PARAMETERS = ("codes", "bias")


class _Derived(Tensor):
    """A weight that was derived from codes: to be read, for what is written to it would be lost."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment, unused-ignore]

    @property
    def data(self) -> Tensor:
        return self.as_subclass(Tensor).detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        raise ValueError(
            "a quantized layer's weight is derived from its codes and cannot be written: keep the "
            "adapter unfused, or fuse it before the denoiser is quantized (model.lora=...)"
        )


class _NamedLinear(nn.Linear):
    """A Linear without a weight of its own."""

    def __init__(self) -> None:
        nn.Module.__init__(self)


class StreamedLinear(QuantLinear, _NamedLinear):  # type: ignore[misc]
    """A QuantLinear whose outputs are the same bit for bit; made empty, `place` fills it.

    Its tensors keep their types, whatever the model around it is cast to.
    """

    def __init__(self, spec: LinearSpec, *, device: torch.device | str, dtype: torch.dtype) -> None:
        super().__init__(spec, device=device, dtype=dtype)
        for name in PARAMETERS:
            tensor = self._buffers.pop(name)
            self.register_parameter(
                name, None if tensor is None else nn.Parameter(tensor, requires_grad=False)
            )

        # accelerate moves what is not saved, whether it is there or not
        del self._buffers["_dense_OI"]
        self._non_persistent_buffers_set.discard("_dense_OI")

    @property
    def dense_OI(self) -> Tensor:  # noqa: N802 - a tensor with its shape
        """Derived at each call."""
        return self._derived()

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """As of a QuantLinear; read only."""
        return super().weight.as_subclass(_Derived)

    def place(self, name: str, value: Tensor) -> None:
        """Takes one of its tensors, in the type that it is to have."""
        own: Tensor | None = self._parameters.get(name)
        own = self._buffers.get(name) if own is None else own
        assert own is not None, name
        assert own.shape == value.shape, (name, own.shape, value.shape)
        if name in PARAMETERS:
            self._parameters[name] = nn.Parameter(value, requires_grad=False)
        else:
            self._buffers[name] = value

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in self._parameters.items():
            if parameter is not None and name != DECLARED:
                yield f"{prefix}.{name}" if prefix else name, parameter

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> StreamedLinear:
        def moved(tensor: Tensor) -> Tensor:
            out = fn(tensor)
            return out if out.dtype == tensor.dtype else tensor.to(out.device)

        nn.Module._apply(self, moved, recurse)  # type: ignore[no-untyped-call]
        return self


def stream(denoiser: nn.Module) -> None:
    """Replaces every QuantLinear by one that holds the same tensors as parameters."""
    for module in list(denoiser.modules()):
        if type(module) is QuantLinear:
            replace_module(denoiser, old=module, new=_streamed(module))


def _streamed(layer: QuantLinear) -> StreamedLinear:
    made = StreamedLinear(layer.spec, device="meta", dtype=layer.dtype)
    tensors: dict[str, Any] = layer.state_dict()
    for name, tensor in tensors.items():
        made.place(name, tensor)
    made.settle(layer.weight_scale.device)
    return made
