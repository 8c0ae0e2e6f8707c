"""The factorial's effects, on errors whose effects are known."""

from __future__ import annotations

import itertools

from evaluation.report.render import to_markdown
from experiments.config.request import read_request
from experiments.paper import factor_effects
from experiments.paper.factor_effects import FACTORS
from experiments.paper.joined_table import Asked
from experiments.paper.paper_setup import PaperSetup
from experiments.paper.studies_of_stages import Measured

ASKED = Asked(name="tiny_factorial", words=(), configs=())
LEVELS = (("per_channel", "per_group 32"), ("none", "hadamard"), ("0", "8"), ("rtn", "gptq"))
GAINS = (0.5, 0.8, 0.25, 0.9)


def measured(*, together: float = 1.0, left_out: int = 0) -> Measured:
    """Switches multiply the error; rotation and low rank on together by `together` more."""
    made = Measured(head=factor_effects._HEAD)
    settings = list(itertools.product((0, 1), repeat=4))
    for signs in settings[left_out:]:
        gain = together if signs[1] and signs[2] else 1.0
        for at, on in enumerate(signs):
            gain *= GAINS[at] if on else 1.0
        names = {name: LEVELS[at][signs[at]] for at, name in enumerate(FACTORS)}
        for draw, prompt in itertools.product(range(3), range(4)):
            error = gain * (1 + 0.3 * prompt + 0.1 * draw)
            made.add(**names, model="m", draw=draw, prompt=f"p{prompt}", error=error)
    return made


def rows(measured: Measured) -> dict[str, list[str]]:
    table = factor_effects.table(measured, asked=ASKED, setup=PaperSetup())
    lines = [line for line in to_markdown(table).splitlines() if line.startswith("| m ")]
    split = [[text.strip() for text in line.strip("|").split("|")] for line in lines]
    return {line[1]: line[2:] for line in split}


def test_effects_are_what_was_put_in() -> None:
    found = rows(measured())
    for name, gain, levels in zip(FACTORS, GAINS, LEVELS, strict=True):
        assert found[name] == [*levels, *[f"{gain:.2f} [{gain:.2f}, {gain:.2f}]"] * 3]
    assert found["rotation x low rank"][-1] == "1.00 [1.00, 1.00]"


def test_what_two_switches_share_is_their_interaction() -> None:
    found = rows(measured(together=2.0))
    assert found["rotation"][2:4] == ["0.80 [0.80, 0.80]", "1.60 [1.60, 1.60]"]
    assert found["rotation x low rank"][-1] == "2.00 [2.00, 2.00]"
    assert found["granularity x rounding"][-1] == "1.00 [1.00, 1.00]"


def test_a_setting_that_is_not_there_leaves_no_effect() -> None:
    assert rows(measured(left_out=1)) == {
        "not all settings are there yet": ["-"] * 5,
    }


def test_the_experiment_is_a_whole_factorial() -> None:
    cells = read_request(["+experiment=tiny_factorial"], multirun=True).cells
    found = {
        (
            c.bits.weight.granularity,
            c.method.rotation,  # type: ignore[attr-defined]
            c.method.rank,  # type: ignore[attr-defined]
            c.method.rounding,  # type: ignore[attr-defined]
            c.dataset.calibration_seed,
        )
        for c in cells
    }
    assert len(found) == len(cells) == 2**4 * 3
