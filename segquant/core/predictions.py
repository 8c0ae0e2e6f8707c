"""The prediction in what a denoiser returns, whatever its shape: tensors, lists, output classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def as_batch(value: Tensor | Sequence[Tensor]) -> Tensor:
    """Samples as one tensor: some denoisers (Z-Image's) take and return a list of them.

    Raises:
        ValueError: the samples are of several shapes.
    """
    if isinstance(value, Tensor):
        return value
    shapes = sorted({tuple(sample.shape) for sample in value})
    if len(shapes) != 1:
        raise ValueError(
            f"the denoiser's samples of one batch have the shapes {shapes}; this is done with "
            "samples of one shape: give all prompts of a batch the same size"
        )
    return torch.stack(list(value))


def like_batch(given: Tensor | Sequence[Tensor], batch: Tensor) -> Any:
    """The samples of a batch, held as `given` holds them."""
    return batch if isinstance(given, Tensor) else type(given)(batch.unbind(0))  # type: ignore[call-arg]


def first_of(output: Any) -> Tensor:
    """The prediction in a denoiser's output, a tuple or one of diffusers' output classes."""
    return as_batch(output if isinstance(output, Tensor) else output[0])


def said_by(module: nn.Module, output: Any) -> tuple[Tensor, ...]:
    """What counts of a denoiser's output: its prediction, or all residuals of a ControlNet.

    Every tensor's first dimension is the batch's.
    """
    kind = type(module).__name__
    if "ControlNet" in kind and "UNet" not in kind:  # one with its UNet inside predicts
        return tuple(tensors_in(output))
    return (first_of(output),)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor of nested arguments or outputs, in their order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from tensors_in(item)


def with_first(output: Any, value: Tensor) -> Any:
    """The same output with another prediction; the one given is left as it is."""
    if isinstance(output, Tensor):
        return value
    held = like_batch(output[0], value)
    if isinstance(output, tuple):
        return (held, *output[1:])
    name = next(iter(output.keys()))
    return type(output)(**{**output, name: held})
