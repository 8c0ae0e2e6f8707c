"""How many images it takes to tell two rows apart.

The test is Student's on paired differences at 5 %, two-sided; power is the share of samples in
which it finds a difference that is there.

Source: Lehr 1992; Student's quantiles in the normal ones' place, which is right to a prompt or two.
"""

from __future__ import annotations

import math

from scipy.special import ndtri, stdtrit

from evaluation.statistics import CONFIDENCE, Estimate

POWER = 0.8
FEWEST = 3  # below which Student's quantiles say nothing of use
MOST = 10_000_000


def images_needed(
    found: Estimate, *, size: float | None = None, power: float = POWER
) -> int | None:
    """The n at which a difference would be told from 0.

    Args:
        found: of paired differences, one a prompt, whose spread tells that of others.
        size: of the difference; None for the one that was seen.

    Returns:
        None where no number is enough or nothing is known: no difference, or a spread of infinity.
    """
    looked_for = abs(found.value if size is None else size)
    spread = found.standard_error * math.sqrt(found.n)
    if not (math.isfinite(spread) and math.isfinite(looked_for)) or looked_for == 0 or found.n < 2:
        return None
    ratio = spread / looked_for
    count = max(FEWEST, math.ceil(_reach(None, power) ** 2 * ratio**2))
    while count < MOST and _reach(count, power) ** 2 * ratio**2 > count:
        count += max(1, count // 100)
    return count if count < MOST else None


def ratio_needed(found: Estimate, *, ratio: float | None = None) -> int | None:
    """The n at which a ratio would be told from 1, by a paired ratio's interval on logarithms.

    Args:
        ratio: None for the one that was seen.
    """
    error = found.standard_error / found.value
    logs = Estimate(value=math.log(found.value), low=0, high=0, standard_error=error, n=found.n)
    return images_needed(logs, size=None if ratio is None else math.log(ratio))


def smallest_told(found: Estimate, *, power: float = POWER) -> float | None:
    """The difference that as many images as these would tell from 0."""
    if found.n < 2 or not math.isfinite(found.standard_error):
        return None
    return _reach(found.n, power) * found.standard_error


def _reach(count: int | None, power: float) -> float:
    """Standard errors between 0 and a difference that is told with this power."""
    tails = ((1 + CONFIDENCE) / 2, power)
    if count is None:
        return float(sum(ndtri(tail) for tail in tails))
    return float(sum(stdtrit(count - 1, tail) for tail in tails))
