"""The yamls of real models: what each says is true of the model's published parts."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from experiments.config.compose import build, compose_config
from experiments.config.places import options
from experiments.zoo import build as build_denoiser
from experiments.zoo.published import PUBLISHED, weights_bytes

CONF = Path(__file__).parents[3] / "conf" / "model"
NO_REAL_MODEL = {"folder", "tiny_flux", "tiny_mmdit", "tiny_unet"}
# Where SegQuant's segments are: they must stay quantizable.
MODULATION = {
    "StableDiffusion3": ("transformer_blocks.0.norm1.linear", "norm_out.linear"),
    "Flux": ("transformer_blocks.0.norm1.linear", "single_transformer_blocks.0.norm.linear"),
    "Flux2": ("double_stream_modulation_img.linear", "single_stream_modulation.linear"),
    "QwenImage": ("transformer_blocks.0.img_mod.1", "norm_out.linear"),
    "ZImage": ("layers.0.adaLN_modulation.0",),
    "DiT": ("transformer_blocks.0.norm1.linear", "proj_out_1"),
}


def config_of(name: str) -> Any:
    return build(compose_config([f"model={name}"]), method_name="").model


def test_every_yaml_of_a_real_model_says_what_it_is_made_of() -> None:
    assert set(PUBLISHED) == set(options("model")) - NO_REAL_MODEL


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_yaml_says_what_is_known_of_its_model(name: str) -> None:
    model, published = config_of(name), PUBLISHED[name]
    assert model.name == name
    first = (CONF / f"{name}.yaml").read_text().splitlines()[0]
    assert first.startswith(f"# {published.pipeline}, "), first
    assert model.licence
    assert (model.revision is None) == bool(model.unpinned)
    assert model.weights_bytes == weights_bytes(published)
    assert set(model.published_calibration_prompts) <= set(options("bits"))
    # latents and texts of these overflow in float16
    overflow = not published.pipeline.startswith(("StableDiffusionX", "StableDiffusionP", "DiT"))
    assert model.dtype == ("bfloat16" if overflow else "float16")
    apart = published.controlnet is not None
    assert (model.pipeline is not None, set(model.parts)) == (
        apart,
        {"controlnet"} if apart else set(),
    )
    assert model.pipeline in (None, published.pipeline)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_pattern_that_keeps_layers_names_some_and_says_why(name: str) -> None:
    keep = config_of(name).keep
    denoiser = build_denoiser(next(iter(PUBLISHED[name].denoisers.values())))
    linears = [n for n, layer in denoiser.named_modules() if isinstance(layer, nn.Linear)]
    kept = {p: [n for n in linears if fnmatchcase(n, p)] for p in keep}
    assert all(kept.values()), kept
    assert all(len(reason) > 20 for reason in keep.values())
    assert 0 < sum(map(len, kept.values())) < 0.25 * len(linears)
    kind = PUBLISHED[name].pipeline.removesuffix("Pipeline").replace("ControlNet", "")
    for layer in MODULATION.get(kind.removesuffix("Klein"), ()):
        assert layer in linears
        assert not any(fnmatchcase(layer, pattern) for pattern in keep)


def test_the_papers_numbers_of_calibration_prompts() -> None:
    said = {name: config_of(name).published_calibration_prompts for name in PUBLISHED}
    assert said["sd35_medium"] == {"w8a8_int8": 256, "w4a8_int": 256}
    assert said["flux1_dev"] == {"w8a8_int8": 64, "w4a8_int": 32}
    assert said["sdxl"] == {"w8a8_fp8": 256}
    assert not said["qwen_image"]


def test_inspect_reads_both_denoisers_of_a_model_that_is_not_here(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from experiments.cli import main

    assert main(["inspect", "model=sd3_canny"]) == 0
    table = capsys.readouterr().out
    transformer, controlnet = table.split("## controlnet")
    assert "linear: 340" in transformer
    assert "kept in 16 bit, time_text_embed.*: 4 Linears (once a step" in transformer
    assert "linear: 95" in controlnet
    assert "as a whole, unless model.denoisers names it" in controlnet
