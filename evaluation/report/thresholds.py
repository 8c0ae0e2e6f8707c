"""Whether B has dropped farther from A than is allowed, beyond the noise.

The rule: a threshold is broken where the whole 95 % interval lies beyond it (the end that is nearer
to A counts), and a second run of A, where there is one, is told from B in that metric. Of what is
measured to A (`psnr`, `lpips`, ...), the threshold is the value itself; of what each folder has by
itself (`clip_score`, ...), it is the drop from A to B that is allowed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from evaluation.report.folder_pair import FolderPair, Line, Said

RULE = (
    "broken where the whole 95 % interval is beyond it and B is told from the noise; of a metric "
    "to A it is the value, else the drop from A"
)
_EXCUSED = (Said.within, Said.identical, Said.nearer)


@dataclass(frozen=True, kw_only=True)
class Checked:
    """One threshold: `near` is the interval's end that counts, None where nothing can drop."""

    metric: str
    allowed: float
    near: float | None
    broken: bool
    why: str


def check_thresholds(pair: FolderPair, given: Mapping[str, float]) -> list[Checked]:
    """Each threshold against its metric.

    Raises:
        ValueError: a metric that was not measured, or that knows no better and worse.
    """
    known = {line.name: line for line in pair.lines if line.better is not None}
    for name in given:
        if name not in known:
            why = f" ({pair.reasons[name]})" if name in pair.reasons else ""
            raise ValueError(
                f"{name}: not measured here{why}; thresholds may be on "
                f"{', '.join(known) or 'nothing'}"
            )
    return [_check(known[name], allowed) for name, allowed in given.items()]


def _check(line: Line, allowed: float) -> Checked:
    interval = line.estimate if line.to_a else line.difference
    if interval is None:
        raise ValueError(f"{line.name}: has no interval here, so that no threshold can be judged")
    near = interval.high if line.better else interval.low
    if line.to_a:
        beyond = near < allowed if line.better else near > allowed
    else:
        near = -near if line.better else near  # the least drop
        beyond = near > allowed
    excused = line.said in _EXCUSED
    why = "beyond it" if beyond else "kept"
    if beyond and excused:
        why = f"kept: {line.said.value}"
    return Checked(
        metric=line.name, allowed=allowed, near=near, broken=beyond and not excused, why=why
    )
