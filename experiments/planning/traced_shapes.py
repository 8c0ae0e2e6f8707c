"""What forwards on the meta device show of a denoiser: all that a plan of memory needs of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from experiments.planning.forward_memory import forward_bytes
from experiments.planning.memory_plan import DenoiserSizes
from segquant.core.memory import InputGroup, input_groups, largest_input


@dataclass(frozen=True, kw_only=True)
class TracedShapes:
    """Sizes of a denoiser, and of what its Linears read."""

    groups: Sequence[InputGroup]  # of a calibration's call
    sizes: DenoiserSizes
    forward_bytes: int


def trace_shapes(
    denoiser: nn.Module, *, recorded: Mapping[str, Any], sampled: Mapping[str, Any]
) -> TracedShapes:
    """From one call each; nothing takes memory.

    Args:
        denoiser: on the meta device, in the type that it will run in.
        recorded, sampled: arguments of a call of the calibration and of the images.
    """
    seen, run = (tree_map_only(Tensor, _on_meta, dict(given)) for given in (recorded, sampled))
    longest = largest_input(denoiser, forward=lambda module: module(**run))
    return TracedShapes(
        groups=input_groups(denoiser, lambda module: module(**seen)),
        sizes=DenoiserSizes.of(denoiser, longest_input=longest),
        forward_bytes=forward_bytes(denoiser, run),
    )


def _on_meta(tensor: Tensor) -> Tensor:
    return tensor.to("meta")
