"""The command under a row makes that cell and no other; where no words can, there is none."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.config.cell_words import cell_words, run_command, written
from experiments.config.overrides import parse_overrides
from experiments.config.request import read_request

ASKED = [
    ["model=tiny_unet", "method=smoothquant", "method.alpha=0.7", "dataset.calibration_seed=3"],
    ["model=tiny_flux", "bits=w4a4_mxfp4", "bits.weight.scale_rounding=ceil", "execution=auto"],
    ["model=flux1_dev", "metrics=paper", "dataset=prompts", "dataset.path='a b, c.jsonl'"],
    ["model=sd35_large", "model.scheduler.class=DDIMScheduler", "method=gptq", "seed=3"],
    ["model=tiny_mmdit", "model.call.negative_prompt='it\\'s <b>, [x]: $HOME \"y\"'", "method=fp"],
    ["model.path=/some/folder", "model.name=mine", "model.lora=a.safetensors", "latents=shared"],
    ["method=segquant_a", "metrics.measured=[psnr,ssim]", "out='a folder/runs'"],
]


@pytest.mark.parametrize("words", ASKED, ids=lambda words: words[0])
def test_the_words_make_the_cell(words: list[str]) -> None:
    (config,) = read_request(words, multirun=False).cells
    program, verb, *said = shlex.split(run_command(config))
    (again,) = read_request(said, multirun=False).cells
    assert (program, verb) == ("segbench", "run")
    assert repr(again) == repr(config)


def test_of_an_experiment_the_words_stand_alone() -> None:
    cells = read_request(["+experiment=demo"], multirun=True).cells
    said = [cell_words(cell) for cell in cells]
    assert all(words and not any("experiment" in word for word in words) for words in said)
    assert len({tuple(words or ()) for words in said}) == len(cells)
    assert said[2] == [
        "model=tiny_mmdit", "method=rtn", "bits=w8a8_int8", "dataset=shapes",
        "dataset.evaluation_prompts=128",
    ]  # fmt: skip


def test_what_no_words_can_say_has_no_command() -> None:
    (config,) = read_request(["method=rtn"], multirun=False).cells
    model = replace(config.model, keep={"blocks.*.proj": "kept by hand"})
    assert run_command(replace(config, model=model)) == ""


@given(st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=12))
def test_any_text_is_read_as_it_was(text: str) -> None:
    (parsed,) = parse_overrides([f"key={written(text)}"])
    assert parsed.value() == text


@pytest.mark.parametrize(
    "text", ["it's", "a\\", "a\\'b", "\\\\'", "'", "", "null", "1", "a,b", "${x}"]
)
def test_signs_of_the_grammar_are_text(text: str) -> None:
    (parsed,) = parse_overrides([f"key={written(text)}"])
    assert parsed.value() == text
