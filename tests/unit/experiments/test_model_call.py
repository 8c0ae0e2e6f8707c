"""What pipelines' calls need and make, read from their classes alone."""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest

from evaluation.datasets.interface import Prompt
from evaluation.datasets.picture_files import PictureFile
from experiments.config.run_config import ModelConfig
from experiments.errors import UserError
from experiments.sampling.model_call import check_call

MODEL = ModelConfig(
    path="/some/folder",
    revision=None,
    dtype="float32",
    height=None,
    width=None,
    num_inference_steps=2,
    guidance_scale=None,
    batch_size=1,
)


def _rows(names: list[str]) -> list[Prompt]:
    files = tuple((name, PictureFile(path=Path(f"{name}.png"))) for name in names)
    return [Prompt(id=f"e{number}", text="a red circle", files=files) for number in range(2)]


@pytest.mark.parametrize(
    "name",
    [
        *("StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline"),
        *("FluxPipeline", "PixArtSigmaPipeline", "SanaPipeline", "QwenImagePipeline"),
        *("FluxKontextPipeline", "Flux2Pipeline", "ZImagePipeline", "HunyuanDiTPipeline"),
    ],
)
def test_pipelines_that_prompts_are_enough_for(name: str) -> None:
    assert check_call(MODEL, getattr(diffusers, name), prompts=_rows([])) is None  # raises nothing


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("DiTPipeline", "takes no prompt .it takes class_labels.*classes: give dataset=labels"),
        ("DDPMPipeline", "takes no prompt"),
        ("StableVideoDiffusionPipeline", "takes no prompt"),
        ("LTXPipeline", "makes frames, and images are measured"),
        ("WanPipeline", "makes frames"),
        ("CogVideoXPipeline", "makes frames"),
        ("AudioLDM2Pipeline", "makes audios"),
        ("StableDiffusionImg2ImgPipeline", "needs image, which is not given; give it in"),
        ("StableDiffusionXLInpaintPipeline", "needs image"),
        ("FluxFillPipeline", "needs image"),
        ("FluxControlPipeline", "needs control_image"),
        ("QwenImageEditPipeline", "needs image"),
        ("StableDiffusionXLControlNetPipeline", "needs image"),
        (
            "StableDiffusionAttendAndExcitePipeline",
            "needs token_indices, which is not given; give ",
        ),
    ],
)
def test_pipelines_that_need_or_make_something_else(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        check_call(MODEL, getattr(diffusers, name), prompts=_rows([]))
    assert name in str(caught.value)


def test_pictures_of_the_rows_count_as_given() -> None:
    inpaint = diffusers.StableDiffusionXLInpaintPipeline
    check_call(MODEL, inpaint, prompts=_rows(["image", "mask_image"]))
    with pytest.raises(UserError, match="needs mask_image"):
        check_call(MODEL, inpaint, prompts=_rows(["image"]))
    with pytest.raises(UserError, match="takes no control_image, which rows"):
        check_call(MODEL, inpaint, prompts=_rows(["image", "mask_image", "control_image"]))
