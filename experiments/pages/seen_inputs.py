"""What the calibration saw of each Linear's input: negative share, range, a few histograms."""

from __future__ import annotations

import torch
from safetensors import SafetensorError
from torch import Tensor

from evaluation.report.page_data import Histogram, InputRange
from experiments.pages.row_layers import histogram
from experiments.sampling.calibrate import load_calibration
from experiments.store.folders import Finished
from segquant.core.calibration import Calibration

_SAMPLED_ROWS = 256  # of those that the calibration kept: the first are a uniform sample too
_BINS = 60
_TAIL = 0.001  # of the values on either side, which a histogram's ends leave out


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
