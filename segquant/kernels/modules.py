"""KernelLinear: a QuantLinear that multiplies codes, and the pass that puts it in place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from segquant.core.declared_type import TypeDeclared, declare_type
from segquant.core.layer_pass import replace_module
from segquant.core.linear import QuantLinear
from segquant.kernels.choice import Device, choose
from segquant.kernels.door import quantized_linear
from segquant.kernels.encode import Producer
from segquant.kernels.packed import PackedLinear, pack_linear, why_not


class KernelLinear(TypeDeclared):
    """Holds codes and steps alone: no weight in 16 bit. Its numbers keep their types."""

    def __init__(self, packed: PackedLinear) -> None:
        super().__init__()
        items = packed.tensor_items()
        # The structure alone: the tensors are the buffers, wherever they have been moved.
        self._structure = packed.with_tensors(dict.fromkeys(items))
        self.in_features, self.out_features = packed.plan.in_features, packed.out_features
        for name, value in items.items():
            self.register_buffer(name, value)
        declare_type(self, packed.dtype, device=packed.weight.device)
        self._assembled: PackedLinear | None = None
        self.producer = Producer.none  # an activation taken in by `fuse.fuse_activations`

    @property
    def packed(self) -> PackedLinear:
        """The layer on its present device."""
        if torch.compiler.is_compiling():
            return self._structure.with_tensors(dict(self._buffers))
        # Putting the parts together takes longer than the launch of a kernel.
        assembled = self._assembled
        if assembled is None or assembled.weight is not self._buffers["weight"]:
            assembled = self._structure.with_tensors(dict(self._buffers))
            self._assembled = assembled
        return assembled

    def forward(self, input: Tensor) -> Tensor:
        return quantized_linear(input, self.packed, producer=self.producer)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> KernelLinear:
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, exact in before.items():
            moved = self._buffers[name]
            if exact is not None and moved is not None and moved.dtype != exact.dtype:
                self._buffers[name] = exact.to(moved.device)
        return self

    def extra_repr(self) -> str:
        plan = self._structure.plan
        taken = "" if self.producer is Producer.none else f", {self.producer.name} before"
        return f"{self.in_features} -> {self.out_features}, {plan.name()}{taken}"


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How one layer runs."""

    layer: str
    kind: str  # what it computes, such as `int8 dual static`
    execution: str  # kernel or simulated
    way: str
    reason: str
    warning: str = ""
    products: float = 1.0  # of the layer's size; 1 where it is simulated


Packer = Callable[[str, QuantLinear], PackedLinear]


def _as_it_is(name: str, quant: QuantLinear) -> PackedLinear:
    return pack_linear(quant)


def use_kernels(
    denoiser: nn.Module,
    *,
    rows: Mapping[str, int] | None = None,
    required: bool = False,
    pack: Packer = _as_it_is,
) -> list[Execution]:
    """Turns the QuantLinears of a denoiser into KernelLinears, in place, where there is a kernel.

    Args:
        rows: rows that each layer is going to see, where that is known; it decides on a GPU.
        required: a layer without a kernel is an error rather than left as it is.
        pack: how a layer that has a kernel is packed; see `recode` for other codes.

    Raises:
        ValueError: with `required`, the first layer that has no kernel, and why. The denoiser is
            then unchanged.
    """
    layers = {n: m for n, m in denoiser.named_modules() if isinstance(m, QuantLinear)}
    executions: list[Execution] = []
    made: dict[str, PackedLinear] = {}
    for name, quant in layers.items():
        packed = None if why_not(quant) else pack(name, quant)
        entry = explain(name, quant, packed=packed, rows=(rows or {}).get(name))
        if packed is not None and entry.execution == "kernel":
            made[name] = packed
        if required and entry.execution != "kernel":
            raise ValueError(
                f"{name}: execution=kernel is not possible: {entry.reason}; use execution=auto to "
                "simulate such layers"
            )
        executions.append(entry)
    for name, packed in made.items():
        replace_module(denoiser, old=layers[name], new=KernelLinear(packed))
    return executions


# Above this a product is bound by arithmetic on every device; what a layer is taken to see.
MANY_ROWS = 4096


def explain(
    name: str, quant: QuantLinear, *, packed: PackedLinear | None, rows: int | None = None
) -> Execution:
    """What `use_kernels` makes of a layer; `packed` is None where there is no kernel."""
    if packed is None:
        return Execution(
            layer=name,
            kind=quant.spec.activation.describe(),
            execution="simulated",
            way="simulated",
            reason=why_not(quant) or "",
        )
    device = Device.of(quant.device)
    choice = choose(packed, rows=MANY_ROWS if rows is None else rows, device=device)
    return Execution(
        layer=name,
        kind=f"w{quant.spec.weight.num_bits} {packed.plan.name()}",
        execution=choice.way.execution,
        way=choice.way.name,
        reason=choice.reason,
        warning=choice.warning,
        products=packed.plan.products,
    )


def summarize(executions: list[Execution]) -> dict[str, str]:
    """For a record: by what a layer computes, how it runs, how many do, and why."""
    groups = Counter((e.kind, e.execution, e.way, e.reason, e.warning) for e in executions)
    said: dict[str, str] = {}
    for (kind, execution, way, reason, warning), count in groups.items():
        text = f"{execution} ({way}), {count} layers: {reason}" + (f"; {warning}" * bool(warning))
        said[kind] = f"{said[kind]}; {text}" if kind in said else text
    return said


def weight_bytes(denoiser: nn.Module) -> int:
    """Bytes that the KernelLinears of a denoiser hold."""
    tensors: list[torch.Tensor] = [
        value
        for module in denoiser.modules()
        if isinstance(module, KernelLinear)
        for value in module.buffers(recurse=False)
    ]
    return sum(value.numel() * value.element_size() for value in tensors)
