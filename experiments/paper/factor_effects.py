"""Which switch carries the gain: a full factorial of granularity, rotation, low rank and rounding.

Every cell of the sweep is one setting of the switches and one calibration draw. An effect is the
ratio of step errors with a switch on to those with it off, prompt by prompt and draw by draw.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from evaluation.statistics import paired_ratio
from experiments.config.plain import plain
from experiments.errors import UserError
from experiments.paper.studies_of_stages import Measured, text_table

if TYPE_CHECKING:
    from evaluation.report.tables import Table
    from experiments.cell.cell import Cell
    from experiments.cell.sweep import Sweep
    from experiments.paper.joined_table import Asked
    from experiments.paper.paper_setup import PaperSetup

FACTORS = ("granularity", "rotation", "low rank", "rounding")
_SETTINGS = {"rotation": "rotation", "low rank": "rank", "rounding": "rounding"}
_HEAD = ("model", *FACTORS, "draw", "prompt", "error")
_TITLES = ("Model", "Switch", "Off", "On", "Others off", "Others on", "On average")
_LEGEND = (
    "Ratio of step errors, on over off: below 1, the switch gains; geometric mean over prompts and "
    "calibration draws, which are crossed, [95 % interval, Student's t].",
    "Others off: that switch alone; others on: added to the three others; on average: over all "
    "settings of the others.",
    "A x B: how the two go together: the ratio of A with B on over the ratio of A with B off, on "
    "average; above 1, each leaves the other less to gain.",
)
Setting = tuple[str, ...]  # of the factors, in their order
Errors = dict[Setting, dict[tuple[str, str], float]]  # (draw, prompt) -> step error


def measure(sweep: Sweep) -> Measured:
    """A cell without scores is a missing row."""
    measured = Measured(head=_HEAD)
    for cell in sweep.cells:
        said = {"model": cell.names[0], "draw": cell.config.dataset.calibration_seed}
        said |= dict(zip(FACTORS, _setting(cell), strict=True))
        try:
            record = cell.read_record()
            scores = cell.read_scores(record)["step_error"] if record is not None else {}
        except (KeyError, UserError) as error:
            measured.add(**said, missing=" ".join(str(error).split()))
            continue
        if not scores:
            measured.add(**said, missing="no step errors in the store")
        for prompt, value in scores.items():
            measured.add(**said, prompt=prompt, error=value)
    return measured


def _setting(cell: Cell) -> Setting:
    weight = cell.config.bits.weight
    size = f" {weight.group_size}" if weight.group_size else ""
    values = [plain(getattr(cell.config.method, name)) for name in _SETTINGS.values()]
    return (f"{weight.granularity.name}{size}", *map(str, values))


def table(measured: Measured, *, asked: Asked, setup: PaperSetup) -> Table:
    body = []
    for model in dict.fromkeys(str(row["model"]) for row in measured.there):
        errors = _errors(row for row in measured.there if row["model"] == model)
        levels = [list(dict.fromkeys(setting[at] for setting in errors)) for at in range(4)]
        whole = all(len(own) == 2 for own in levels) and len(errors) == 2 ** len(FACTORS)
        if not whole:
            body.append([model, "not all settings are there yet", *[""] * 5])
            continue
        signs = {
            setting: tuple(levels[at].index(value) for at, value in enumerate(setting))
            for setting in errors
        }
        by_sign = {signs[setting]: own for setting, own in errors.items()}
        for at, name in enumerate(FACTORS):
            body.append([model, name, *levels[at], *_effects(by_sign, at=at)])
        for one, other in itertools.combinations(range(len(FACTORS)), 2):
            name = f"{FACTORS[one]} x {FACTORS[other]}"
            body.append([model, name, *[""] * 4, _interaction(by_sign, one=one, other=other)])
    return text_table(
        _TITLES,
        body,
        caption=f"{asked.name}: what each switch does to the step error at w4a4.",
        legend=_LEGEND,
        asked=asked,
        measured=measured,
    )


def _errors(rows: Iterator[Mapping[str, Any]]) -> Errors:
    found: Errors = {}
    for row in rows:
        setting = tuple(str(row[name]) for name in FACTORS)
        found.setdefault(setting, {})[str(row["draw"]), str(row["prompt"])] = float(row["error"])
    return found


_BySign = Mapping[tuple[int, ...], Mapping[tuple[str, str], float]]


def _effects(by_sign: _BySign, *, at: int) -> list[str]:
    """The switch's ratio with the others off, with them on, and over all of their settings."""
    others = [sign for sign in by_sign if sign[at] == 0]
    alone = [sign for sign in others if not any(sign)]
    last = [sign for sign in others if sum(sign) == len(sign) - 1]
    return [
        _ratio(by_sign, on=[_with(sign, at, 1) for sign in chosen], off=chosen)
        for chosen in (alone, last, others)
    ]


def _interaction(by_sign: _BySign, *, one: int, other: int) -> str:
    """Ratio of ratios: settings where both switches are alike over those where they differ."""
    alike = [sign for sign in by_sign if sign[one] == sign[other]]
    apart = [sign for sign in by_sign if sign[one] != sign[other]]
    return _ratio(by_sign, on=alike, off=apart, power=2.0)


def _with(sign: tuple[int, ...], at: int, value: int) -> tuple[int, ...]:
    return (*sign[:at], value, *sign[at + 1 :])


def _ratio(
    by_sign: _BySign,
    *,
    on: Sequence[tuple[int, ...]],
    off: Sequence[tuple[int, ...]],
    power: float = 1.0,
) -> str:
    """Of the geometric means over settings, cell by cell of draws x prompts."""
    keys = list(by_sign[on[0]])
    draws = sorted({draw for draw, _ in keys})
    prompts = sorted({prompt for _, prompt in keys})

    def means(signs: Sequence[tuple[int, ...]]) -> list[list[float]]:
        return [
            [
                math.exp(
                    power * sum(math.log(by_sign[s][draw, prompt]) for s in signs) / len(signs)
                )
                for prompt in prompts
            ]
            for draw in draws
        ]

    found = paired_ratio(means(on), means(off))
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"
