"""Which recipe fits which format, by trying.

    python -m experiments.studies.recipe_formats

writes `experiments/results/recipe_formats.md` and, beside it, `recipe_formats.csv`: recipes of
the transformer of tiny_mmdit, and of a wider one (random weights, bfloat16) whose layers nunchaku's
kernels could take. Each quantized denoiser is written in each format, loaded by the library that
the format is of, and run once on the same inputs. What is refused is there with its reasons.

Calibrated on a few calls with noise, and searches are short: what fits is a matter of structure.
"""

from __future__ import annotations

import argparse
import copy
import csv
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import torch
from torch import nn

from evaluation.report.markdown import pipe_table
from experiments.config.compose import build, compose_config
from experiments.config.run_config import RunConfig
from experiments.store.folders import write_text
from experiments.store.paths import RESULTS, ROOT
from experiments.studies.csv_text import csv_text
from experiments.studies.form_trials import TRIALS, Outcome, Result, Subject, try_forms
from experiments.zoo import example_inputs
from segquant.core.calibration import Calibration
from segquant.core.input_statistics import StatisticsRecorder
from segquant.graph import analyze

log = logging.getLogger(__name__)

COMMAND = "python -m experiments.studies.recipe_formats"
NAME = "recipe_formats"
TINY, WIDE = "tiny_mmdit", "wide"
SHORT = ("method.iterations=1", "method.smooth_grids=2")
EVERY = (  # at the paper's own bits
    *(("rtn",), ("gptq",), ("smoothquant",), ("smoothquant", "method.fold=false")),
    *(("smooth_search",), ("quarot",), ("svdquant", *SHORT), ("segquant_seg_only",)),
    *(
        ("segquant_dual_only",),
        ("segquant_a",),
        ("segquant_g",),
        ("segquant_g", "method.fold=true"),
    ),
)
FEW = (("rtn",), ("smoothquant",))  # what other bits ask is asked of every method
METHODS = {
    "w8a8_int8": EVERY,
    "w8a8_int8_channel": FEW,
    "w8a8_int8_token": FEW,
    "w8a16_int": FEW,
    "w4a8_int": FEW,
    "w4a8_int_tensor": FEW,
    "w4a4_int_group32": FEW,
    "w8a8_fp8": FEW,
    "w8a8_mxfp8": FEW,
    "w4a4_mxfp4": FEW,
    "w4a4_nvfp4": FEW,
}
WIDE_METHODS = (
    *(("rtn",), ("smoothquant",), ("segquant_a",), ("svdquant", *SHORT)),
    ("svdquant", *SHORT, "method.unsigned_shift=false", "method.modulation_in_16_bit=false"),
)
WIDE_BITS = ("w4a4_int_group64", "w8a8_int8")
CALLS = 2  # of the calibration
ROWS = 32  # kept of each layer's input
_HEAD = (
    *("model", "method", "settings", "bits", "format", "result", "layers", "refused"),
    *("difference", "layer_difference", "nudge", "reasons"),
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A method with its settings at some bits, of one model."""

    model: str
    method: str
    settings: tuple[str, ...]
    bits: str

    @property
    def words(self) -> tuple[str, ...]:
        return (f"method={self.method}", f"bits={self.bits}", *self.settings)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One recipe in every format."""

    recipe: Recipe
    nudge: float
    outcomes: Mapping[str, Outcome]


def recipes() -> list[Recipe]:
    """Those that there are: a method is left out at bits that it does not have."""
    asked: list[tuple[str, tuple[str, ...], str]] = []
    asked += [(TINY, own, bits) for bits, methods in METHODS.items() for own in methods]
    asked += [(WIDE, own, bits) for bits in WIDE_BITS for own in WIDE_METHODS]
    found = []
    for model, (method, *settings), bits in asked:
        recipe = Recipe(model=model, method=method, settings=tuple(settings), bits=bits)
        config = _config(recipe)
        if config.method.unsupported(config.bits) is None:
            found.append(recipe)
    return found


def _config(recipe: Recipe) -> RunConfig:
    line = [f"model={TINY}", *recipe.words]
    return build(compose_config(line), method_name=recipe.method)


def subjects(wanted: Sequence[Recipe]) -> Iterator[tuple[Recipe, Subject]]:
    """Each recipe's quantized denoiser; all of one model share a calibration."""
    for model, load in ((TINY, _tiny), (WIDE, _wide)):
        own = [recipe for recipe in wanted if recipe.model == model]
        if not own:
            continue
        denoiser = load()
        calibration = _calibration(denoiser)
        for recipe in own:
            config, quantized = _config(recipe), copy.deepcopy(denoiser)
            config.method.quantize(quantized, calibration=calibration, bits=config.bits)
            yield recipe, Subject.of(quantized, _inputs(quantized, seed=0))


def _calibration(denoiser: nn.Module) -> Calibration:
    with torch.no_grad(), StatisticsRecorder(denoiser, gram=True, sample_rows=ROWS) as recorder:
        for seed in range(1, 1 + CALLS):
            denoiser(**_inputs(denoiser, seed=seed))
    return Calibration(
        statistics=recorder.statistics(),
        forwards=recorder.forwards,
        graph=analyze(denoiser, example_inputs(denoiser)),
    )


def _inputs(denoiser: nn.Module, *, seed: int) -> dict[str, Any]:
    """Noise of the shapes that the denoiser takes."""
    generator = torch.Generator().manual_seed(seed)
    given: dict[str, Any] = example_inputs(denoiser)
    for name, value in given.items():
        if torch.is_tensor(value) and value.is_floating_point() and value.dim() > 1:
            given[name] = torch.randn(value.shape, generator=generator).to(value.dtype)
    return given


def _tiny() -> nn.Module:
    from diffusers import SD3Transformer2DModel

    folder = (
        ROOT / _config(Recipe(model=TINY, method="rtn", settings=(), bits="w8a8_int8")).model.path
    )
    denoiser: nn.Module = SD3Transformer2DModel.from_pretrained(folder, subfolder="transformer")
    return denoiser.eval()


def _wide() -> nn.Module:
    """128 features and their multiples in every layer, in bfloat16."""
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(0)
    denoiser: nn.Module = SD3Transformer2DModel(
        sample_size=4,
        patch_size=4,
        in_channels=8,
        out_channels=8,
        num_layers=2,
        attention_head_dim=64,
        num_attention_heads=2,
        joint_attention_dim=128,
        caption_projection_dim=128,
        pooled_projection_dim=128,
        pos_embed_max_size=4,
    )
    return denoiser.to(torch.bfloat16).eval()


def measure(wanted: Sequence[Recipe], *, forms: Sequence[str]) -> Iterator[Row]:
    for recipe, subject in subjects(wanted):
        outcomes = try_forms(subject, forms=forms)
        yield Row(recipe=recipe, nudge=subject.nudged(), outcomes=outcomes)


def to_csv(rows: Sequence[Row]) -> str:
    body: list[list[str | float]] = []
    for row in rows:
        recipe = row.recipe
        named = [recipe.model, recipe.method, " ".join(recipe.settings), recipe.bits]
        for form, outcome in row.outcomes.items():
            told = [_told(outcome.difference), _told(outcome.layer_difference), _told(row.nudge)]
            reasons = "; ".join(f"{count} x {why}" for why, count in outcome.reasons)
            counts = [outcome.layers, outcome.refused]
            body.append([*named, form, outcome.result.name, *counts, *told, reasons])
    return csv_text(_HEAD, body)


def _told(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def to_markdown(rows: Sequence[Row]) -> str:
    """The table; reasons are lettered, and told below it."""
    letters: dict[str, str] = {}
    body = []
    for row in rows:
        recipe = row.recipe
        cells = [_cell(row.outcomes[form], letters) for form in TRIALS]
        nudge = f"{row.nudge:.0e}" if recipe.model == TINY else ""
        method = " ".join([recipe.method, *(s.removeprefix("method.") for s in recipe.settings)])
        body.append([recipe.model, recipe.bits, method, *cells, nudge])
    head = ["model", "bits", "method", *TRIALS, "nudge"]
    lines = [
        "# Which recipe fits which format",
        "",
        f"Made by `{COMMAND}`: each quantized denoiser is written in each format, loaded by the",
        "format's library and run on the same input. `same` is bit for bit; a number is the "
        "relative",
        "difference of the denoiser's output, in brackets that of a layer's on the same input (the",
        "median); `written` means that its library runs on a GPU alone and the file was not run;",
        "`18/96 a b`: so many of the quantized layers fit, the others do not for the reasons",
        "named, and nothing is written. `nudge`: what moving the input by 1e-6 of itself does to",
        "the simulation, where a rounding tips. `wide`: random weights in bfloat16, every layer of",
        "128 features or a multiple.",
        "",
        pipe_table(head, body),
        "",
        *(f"- {letter}: {why}" for why, letter in letters.items()),
    ]
    return "\n".join(lines) + "\n"


def _cell(outcome: Outcome, letters: dict[str, str]) -> str:
    if outcome.result is Result.written:
        return "written"
    if outcome.result is Result.loaded:
        assert outcome.difference is not None
        told = f"{outcome.difference:.0e} ({outcome.layer_difference:.0e})"
        return told if outcome.difference else "same"
    for why, _ in outcome.reasons:
        letters.setdefault(why, _letter(len(letters)))
    named = " ".join(sorted(letters[why] for why, _ in outcome.reasons))
    return f"{outcome.layers - outcome.refused}/{outcome.layers} {named}"


def _letter(number: int) -> str:
    """a to z, then aa to zz."""
    return ascii_lowercase[number % 26] * (1 + number // 26)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog=COMMAND)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    rows: list[Row] = []
    for row in measure(recipes(), forms=list(TRIALS)):
        rows.append(row)
        log.info("%s", row.recipe)
        write_text(given.out / f"{NAME}.md", to_markdown(rows))
        write_text(given.out / f"{NAME}.csv", to_csv(rows))


if __name__ == "__main__":
    main()
