"""One layer under its own plan: other bits, a transformed input, scales per step, or none of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from segquant.core.activation import stacked_scales, static_scales
from segquant.core.input_statistics import LayerStatistics
from segquant.core.layer import QuantizedLayer, quantize_linear, relative_error
from segquant.core.linear import LinearSpec, QuantLinear
from segquant.core.recipe import LayerRecipe
from segquant.core.rounding import FactorCache
from segquant.core.schemes import Bits
from segquant.core.segments import LayerShape
from segquant.core.smoothing import Smoothing
from segquant.core.stepwise import LayerSteps
from segquant.core.transforms import InputTransform


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """What one layer gets that others do not; None: as the run and the method have it."""

    bits: Bits | None = None
    recipe: LayerRecipe | None = None
    transform: InputTransform | None = None
    steps: LayerSteps | None = None  # static activation scales for each of these steps
    power_I: Tensor | None = None  # factors, powers of two, of the input's common step
    keep: str | None = None  # the reason for leaving the layer in 16 bit
    notes: tuple[str, ...] = ()


PlanOf = Callable[[str, nn.Linear], LayerPlan]


def quantize_planned(
    linear: nn.Linear,
    *,
    name: str,
    seen: LayerStatistics,
    shape: LayerShape,
    plan: LayerPlan,
    bits: Bits,
    recipe: LayerRecipe,
    factors: FactorCache | None = None,
    smoothing: Smoothing | None = None,
) -> tuple[QuantLinear, QuantizedLayer]:
    """As `quantize_linear`, under the layer's plan."""
    bits, transform = plan.bits or bits, plan.transform
    target, inputs = linear, seen
    if transform is not None:
        _check_uncut(shape, transform, name=name)
        target, inputs = transform.of_linear(linear), transform.of_statistics(seen)
    quant, entry = quantize_linear(
        target,
        name=name,
        seen=inputs,
        shape=shape,
        bits=bits,
        recipe=plan.recipe or recipe,
        factors=factors,
        smoothing=smoothing,
    )
    entry.notes.extend(plan.notes)
    if transform is not None:
        quant = with_transform(quant, transform, dtype=linear.weight.dtype)
    if plan.power_I is not None:
        quant = with_power(quant, plan.power_I)
    if plan.steps is not None and bits.activation.calibrated:
        quant = with_step_scales(quant, plan.steps)
        entry.notes.append(f"activation scales of its own for each of {quant.spec.steps} steps")
    if plan != LayerPlan():
        entry.relative_error = relative_error(linear, quant, seen.sample_TI, with_bias=True)
    return quant.train(linear.training), entry


def _check_uncut(shape: LayerShape, transform: InputTransform, *, name: str) -> None:
    if transform.permutation_I is not None and len(shape.input) > 1:
        raise ValueError(
            f"{name}: its input is cut into {len(shape.input)} segments and its channels are to be "
            "reordered across them; leave it uncut, or its channels in their order"
        )


def with_transform(
    quant: QuantLinear, transform: InputTransform, *, dtype: torch.dtype
) -> QuantLinear:
    """A layer that transforms its input first, from one whose weight is transformed already."""
    rotation = transform.rotation_NBB
    spec = replace(
        quant.spec,
        input_shift=transform.shift_I is not None,
        input_scale=transform.scale_I is not None,
        input_permuted=transform.permutation_I is not None,
        rotation_blocks=0 if rotation is None else rotation.shape[0],
        rotation_hadamard=transform.hadamard,
    )
    return rebuilt(quant, spec=spec, dtype=dtype, **transform.buffers())


def with_power(quant: QuantLinear, power_I: Tensor) -> QuantLinear:
    """The layer whose input channels have steps `power_I` times the common static one.

    Unlike a scale it is no equivalence: the weight stays as it is, the common step too, and integer
    products would be shifted. A channel with a finer step clips earlier.
    """
    assert quant.spec.activation.calibrated, "a common step that is known beforehand"
    assert quant.spec.smoothing_count == 0, "smoothing would come between"
    spec = replace(quant.spec, input_power=True)
    return rebuilt(quant, spec=spec, dtype=quant.dtype, input_power=power_I)


def with_step_scales(quant: QuantLinear, steps: LayerSteps) -> QuantLinear:
    """The layer with static activation scales for each step, from that step's extremes alone."""
    grid, transform = quant.spec.activation_grid, quant.transform
    assert grid is not None
    assert quant.spec.smoothing_count <= 1, "one smoothing vector, if any"
    low_SI, high_SI = steps.low_SI, steps.high_SI
    if transform is not None:
        assert quant.input_rotation is None, "extremes of a rotated input are not recorded"
        low_SI, high_SI = transform.of_input(low_SI), transform.of_input(high_SI)
    if quant.smoothing is not None:
        low_SI, high_SI = low_SI / quant.smoothing, high_SI / quant.smoothing
    by_step = [
        static_scales(low, high, grid=grid) for low, high in zip(low_SI, high_SI, strict=True)
    ]
    stacked = stacked_scales(by_step).items()
    tensors = {name: tensor for name, tensor in stacked if tensor is not None}
    tensors["step_timesteps"] = torch.tensor(steps.timesteps)
    spec = replace(quant.spec, steps=len(steps.timesteps))
    return rebuilt(quant, spec=spec, dtype=quant.dtype, **tensors)


def rebuilt(
    quant: QuantLinear,
    *,
    spec: LinearSpec,
    dtype: torch.dtype,
    codes_OI: Tensor | None = None,
    **changed: Tensor,
) -> QuantLinear:
    """The same layer under another spec, with some of its tensors (and its codes) replaced."""
    device = quant.device
    if codes_OI is None:
        codes_OI = quant.spec.weight.grid.restore(quant.integer_codes())
    tensors = quant.tensors() | {name: tensor.to(device) for name, tensor in changed.items()}
    made = QuantLinear(spec, device=device, dtype=dtype)
    return made.fill(codes_OI=codes_OI.to(device), tensors=tensors)
