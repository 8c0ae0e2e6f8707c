"""What the calibration saw of each Linear's input: negative share, range, a few histograms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from torch import Tensor

from evaluation.report.page_data import Histogram, InputRange
from experiments.cell.calibration_pass import calibration_of
from experiments.cell.sweep import union_of_needs
from experiments.pages.row_layers import histogram
from experiments.sampling.calibrate import load_calibration
from segquant.core.calibration import Calibration

if TYPE_CHECKING:
    from experiments.cell.cell import Cell
    from experiments.store.folders import Finished

_SAMPLED_ROWS = 256  # of those that the calibration kept: the first are a uniform sample too
_BINS = 60
_TAIL = 0.001  # of the values on either side, which a histogram's ends leave out


def find_calibration(cells: Sequence[Cell]) -> Finished | None:
    """What these cells, which are done, were calibrated with; None where it is gone.

    A sweep of which other cells are yet to be made may ask for more than its calibration holds.
    """
    around = cells[0].around
    configs = [cell.config for cell in cells]
    own = [union_of_needs([config]) for config in configs]
    for needs in (around.needs, union_of_needs(configs), *own):
        finished = calibration_of(replace(around, needs=needs)).find()
        if finished is not None:
            return finished
    return None


def read_seen(finished: Finished) -> Calibration | None:
    """The statistics of a finished calibration; None where they cannot be read."""
    try:
        return load_calibration(finished.path)
    except (OSError, ValueError, KeyError, SafetensorError):
        return None


def input_ranges(calibration: Calibration) -> dict[str, InputRange]:
    found = {}
    for name, seen in calibration.statistics.items():
        sample = seen.sample_TI[:_SAMPLED_ROWS]
        found[name] = InputRange(
            negative_share=float((sample < 0).float().mean()),
            low=float(seen.low_I.min()),
            high=float(seen.high_I.max()),
        )
    return found


def input_histograms(calibration: Calibration, layers: list[str]) -> list[Histogram]:
    known = [name for name in layers if name in calibration.statistics]
    return [_of(name, calibration.statistics[name].sample_TI[:_SAMPLED_ROWS]) for name in known]


def _of(name: str, sample: Tensor) -> Histogram:
    ordered = sample.flatten().sort().values
    cut = int(len(ordered) * _TAIL)
    low, high = float(ordered[cut]), float(ordered[len(ordered) - 1 - cut])
    inside = ordered[(ordered >= low) & (ordered <= high)]
    assert isinstance(inside, torch.Tensor)
    return histogram(name, inside, low=low, high=high, bins=_BINS)
