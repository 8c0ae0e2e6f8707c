"""Layers quantized in the order in which they run, each on what the quantized ones before it give.

In parallel, all layers are quantized on the unquantized denoiser's inputs. In sequence, the
denoiser is run over the calibration's inputs again before each stage, with all earlier stages
quantized already, and the stage's statistics are recorded anew. Of several denoisers, each is run
on what the unquantized others gave it. Source: GPTQ (arXiv 2210.17323),
section 4: one Transformer block after the other. The first stage's inputs are the unquantized
ones, so it takes no run; every other stage takes one over the whole set, each forward of which ends
before the stage's last Linear, if all forwards of the calibration called the same Linears.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from segquant.core.calibration import Calibration
from segquant.core.early_end import ending_after, is_steady
from segquant.core.input_statistics import LayerStatistics, StatisticsRecorder
from segquant.core.linear import QuantLinear
from segquant.core.mismatch import MismatchRecorder
from segquant.core.plain_linears import linear_layers
from segquant.core.several import Denoisers, called_parts, part_of_layer

logger = logging.getLogger(__name__)

LEAST_LINEARS_OF_BLOCK = 2


class Sequential(Enum):
    """What is quantized before the denoiser runs again. Member names are what a yaml says."""

    none = "none"  # everything: all layers see the unquantized denoiser's inputs
    blocks = "blocks"  # one block, as GPTQ does
    inputs = "inputs"  # in a block, the layers that share an input: many more runs


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Layers to quantize now, what is known of their inputs, and the forwards that this took."""

    layers: tuple[str, ...]
    statistics: Mapping[str, LayerStatistics]
    forwards: int = 0


def stages(
    denoiser: nn.Module,
    *,
    calibration: Calibration,
    sequential: Sequential,
    wanted: Sequence[str],
    gram: bool,
    mismatch: bool = False,
) -> Iterator[Stage]:
    """The wanted layers, stage by stage; the caller quantizes each before it asks for the next.

    Args:
        wanted: names of Linears that were called during calibration.
        gram: whether Gram matrices are to be recorded again.
        mismatch: whether to record how inputs differ from the unquantized denoiser's, of which a
            copy is kept and run beside the quantized one: twice the forwards.

    Raises:
        ValueError: the calibration holds nothing to run the denoiser on.
    """
    if sequential is Sequential.none or not wanted:
        yield Stage(layers=tuple(wanted), statistics=calibration.statistics)
        return
    replay = calibration.replay
    if replay is None:
        raise ValueError(
            f"sequential={sequential.name} runs the denoiser on the calibration's inputs, and this "
            "calibration kept none; set calibration.replay, or sequential=none"
        )
    once, forwards = calls_of_one_forward(denoiser, calibration=calibration)
    order = [*once, *(name for name in calibration.statistics if name not in once)]
    calls, rows = _calls_and_rows(calibration.statistics, wanted=set(wanted))
    # the parts of several may be called with what others return
    steady = not isinstance(denoiser, Denoisers) and is_steady(once=once, calls=calls)
    plan = stage_layers(
        denoiser, order=order, calibration=calibration, sequential=sequential, wanted=set(wanted)
    )
    unquantized = copy.deepcopy(denoiser) if mismatch else None
    for number, layers in enumerate(plan):
        if number == 0:
            yield Stage(layers=layers, statistics=calibration.statistics, forwards=forwards)
            continue
        recorder = StatisticsRecorder(denoiser, layers=layers, gram=gram, sample_rows=rows)
        differences: dict[str, Tensor] = {}
        ending = partial(ending_after, layers=layers, once=once) if steady else nullcontext
        with torch.no_grad(), recorder:
            if unquantized is None:
                with ending(denoiser):
                    replay(denoiser)
            else:
                beside = MismatchRecorder(denoiser, unquantized, layers=layers)
                with beside, ending(unquantized), ending(denoiser):
                    replay(denoiser)
                differences = beside.mismatches()
        for module in denoiser.modules():
            if isinstance(module, QuantLinear):
                module.release()
        logger.info("stage %d of %d: %s", number + 1, len(plan), ", ".join(layers))
        seen = {
            name: replace(one, mismatch_II=differences.get(name))
            for name, one in recorder.statistics().items()
        }
        forwards = recorder.forwards * (1 if unquantized is None else 2)
        yield Stage(layers=layers, statistics=seen, forwards=forwards)


def _calls_and_rows(
    statistics: Mapping[str, LayerStatistics], *, wanted: set[str]
) -> tuple[dict[str, int], int]:
    """Calls of each layer, and the most sampled rows of a wanted one; each layer is read once."""
    calls, rows = {}, 0
    for name, seen in statistics.items():
        calls[name] = seen.calls
        if name in wanted:
            rows = max(rows, seen.sample_TI.shape[0])
    return calls, rows


def calls_of_one_forward(
    denoiser: nn.Module, *, calibration: Calibration
) -> tuple[dict[str, int], int]:
    """Linears in the order of their first call, how often one forward of each denoiser calls them.

    Also the number of forwards.
    """
    once: dict[str, int] = {}
    called: list[nn.Module] = []

    def count(module: nn.Module, args: tuple[Any, ...]) -> None:
        called.append(module)

    handles = [p.register_forward_pre_hook(count) for p in called_parts(denoiser).values()]
    for name, linear in linear_layers(denoiser).items():

        def see(module: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
            once[name] = once.get(name, 0) + 1

        handles.append(linear.register_forward_pre_hook(see))
    assert calibration.replay is not None
    try:
        with torch.no_grad():
            calibration.replay(denoiser, calls=1)
    finally:
        for handle in handles:
            handle.remove()
    return once, len(called)


def stage_layers(
    denoiser: nn.Module,
    *,
    order: Sequence[str],
    calibration: Calibration,
    sequential: Sequential,
    wanted: set[str],
) -> list[tuple[str, ...]]:
    """Neighbours in the calls' order that belong to one block, cut by shared input if asked."""
    blocks = block_of_layers(denoiser)
    stages: list[tuple[str, ...]] = []
    for _, members in groupby((n for n in order if n in wanted), key=blocks.__getitem__):
        layers = tuple(members)
        if sequential is Sequential.blocks:
            stages.append(layers)
            continue
        left = dict.fromkeys(layers)
        while left:
            first = next(iter(left))
            sharing = {first, *calibration.statistics[first].shared_with}
            together = tuple(name for name in left if name in sharing)
            stages.append(together)
            left = dict.fromkeys(name for name in left if name not in sharing)
    return stages


def block_of_layers(denoiser: nn.Module) -> dict[str, str]:
    """Per Linear its block: the innermost member of a ModuleList with two Linears or more.

    The attention's list of output projection and dropout is thus no block of its own. A layer
    outside of any block belongs to the block "", or of several denoisers to its own one's.
    """
    linears = linear_layers(denoiser)
    members = {
        f"{name}.{child}".removeprefix(".")
        for name, module in denoiser.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential)
        for child, _ in module.named_children()
    }
    holds = {member: sum(name.startswith(f"{member}.") for name in linears) for member in members}
    blocks = {member for member, count in holds.items() if count >= LEAST_LINEARS_OF_BLOCK}
    return {
        name: max(
            (b for b in blocks if name.startswith(f"{b}.")),
            key=len,
            default=part_of_layer(denoiser, name),
        )
        for name in linears
    }
