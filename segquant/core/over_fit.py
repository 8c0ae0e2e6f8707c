"""How far a search for alpha fits the rows that it was judged on, over all layers of a denoiser.

A static scale reaches exactly as far as the calibration did. Judged on the rows that the scale
comes from, a range that is tight in every channel costs nothing; on other prompts it clips.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from segquant.core.smoothing import SearchFit

REMEDY = "method.held_out=true"
MET = 0.05  # of the error on the search's own rows: so near, the two count as met
# With fewer calibration prompts the published search can be worse than rounding to nearest, if its
# ranges are static (experiments/results/overfit.md, held_out.md). A rule for before the run: the
# record has what was measured of it.
ENOUGH_PROMPTS = 32


@dataclass(frozen=True, kw_only=True)
class OverFit:
    """Geometric means over layers of their `SearchFit`'s ratios."""

    held_out_over_in_sample: float
    held_out_over_unsmoothed: float  # above 1: rounding to nearest would do better
    layers: int
    layers_worse_than_unsmoothed: int
    meets_at_times: float  # as many prompts, and the two errors meet; 1 where they have
    remedy: str  # empty where the search was held out

    @classmethod
    def of(cls, fits: Sequence[SearchFit], *, held_out: bool) -> OverFit | None:
        """None where nothing was searched, or the calibration was in one part.

        `meets_at_times` is an estimate: what lies beyond the extremes of n prompts has a chance of
        about 1 / n, so that the excess of the held-out error falls as 1 / n. On tiny_unet it does:
        the excess times n is 12.2, 12.8, 12.2 and 12.6 at 2, 4, 8 and 16 prompts, and 8.4 at 64.
        On tiny_mmdit and tiny_flux it falls faster, so that what 2 prompts tell is about twice what
        16 do (experiments/results/overfit.md).
        """
        usable = [
            fit for fit in fits if min(fit.in_sample, fit.held_out, fit.held_out_unsmoothed) > 0
        ]
        if not usable:
            return None
        excess = _mean([fit.held_out / fit.in_sample for fit in usable]) - 1
        return cls(
            held_out_over_in_sample=excess + 1,
            held_out_over_unsmoothed=_mean(
                [fit.held_out / fit.held_out_unsmoothed for fit in usable]
            ),
            layers=len(usable),
            layers_worse_than_unsmoothed=sum(
                fit.held_out > fit.held_out_unsmoothed for fit in usable
            ),
            meets_at_times=max(1.0, excess / MET),
            remedy="" if held_out else REMEDY,
        )


def over_fit_fields(over_fit: dict[str, Any] | None, *, prompts: int) -> dict[str, Any]:
    """For a record: `meets_at_times` as a number of prompts, that of the calibration given."""
    if over_fit is None:
        return {}
    times = over_fit["meets_at_times"]
    met = {"calibration_prompts": prompts, "meets_at_prompts": math.ceil(times * prompts)}
    return {"search_over_fit": {**over_fit, **met}}


def _mean(ratios: Sequence[float]) -> float:
    return math.exp(sum(math.log(ratio) for ratio in ratios) / len(ratios))
