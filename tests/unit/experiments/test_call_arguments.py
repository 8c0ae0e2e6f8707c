"""What prompts give to a pipeline's call, read from its class alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
from PIL import Image

from evaluation.datasets.class_labels import ClassLabels
from evaluation.datasets.interface import Dataset, Prompt
from evaluation.datasets.loading import load_dataset
from evaluation.datasets.picture_files import PictureFile
from evaluation.images import write_png
from experiments.config.compose import build_cell
from experiments.errors import UserError
from experiments.sampling.call_arguments import call_arguments, takes_list
from experiments.sampling.model_call import check_batch, check_call

MODEL = build_cell(["model=tiny_unet"], method_name="x").model


def _of(name: str) -> Any:
    """A pipeline of that class, without parts: its call alone is looked at."""
    kind = getattr(diffusers, name)
    return object.__new__(kind)


def _rows(count: int = 2, **fields: Any) -> list[Prompt]:
    return [
        Prompt(id=f"e{n}", text=f"a {n}", arguments=tuple((k, v[n]) for k, v in fields.items()))
        for n in range(count)
    ]


def test_each_argument_is_a_list_in_the_prompts_order() -> None:
    given = call_arguments(
        _of("StableDiffusionXLPipeline"), _rows(negative_prompt=["x", "y"], prompt_2=["b", "c"])
    )
    assert given == {
        "prompt": ["a 0", "a 1"],
        "negative_prompt": ["x", "y"],
        "prompt_2": ["b", "c"],
    }


def test_what_takes_one_value_gets_the_one_that_all_have() -> None:
    rows = _rows(strength=[0.5, 0.5])
    given = call_arguments(_of("StableDiffusionImg2ImgPipeline"), rows)
    assert given["strength"] == 0.5
    check_batch(MODEL, diffusers.StableDiffusionImg2ImgPipeline, prompts=rows)
    other = _rows(strength=[0.5, 0.6])
    with pytest.raises(UserError, match=r"takes one strength a call.*set model.batch_size=1"):
        check_batch(MODEL, diffusers.StableDiffusionImg2ImgPipeline, prompts=other)
    alone = dataclasses.replace(MODEL, batch_size=1)
    check_batch(alone, diffusers.StableDiffusionImg2ImgPipeline, prompts=other)


@pytest.mark.parametrize(
    ("name", "argument", "several"),
    [
        ("StableDiffusionPipeline", "prompt", True),
        ("FluxFillPipeline", "image", True),  # whose annotation says a tensor
        ("QwenImageEditPipeline", "image", True),
        ("Flux2Pipeline", "image", False),  # a list would be one set for all prompts
        ("QwenImageEditPlusPipeline", "image", False),
        ("LongCatImageEditPipeline", "image", False),
        ("DiTPipeline", "class_labels", True),
        ("PixArtSigmaPipeline", "negative_prompt", False),
        ("FluxPipeline", "true_cfg_scale", False),
    ],
)
def test_which_arguments_take_a_list(name: str, argument: str, several: bool) -> None:
    assert takes_list(getattr(diffusers, name), argument) is several


def test_a_picture_of_a_pipeline_that_takes_one(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", np.zeros((4, 4, 3), np.uint8))
    row = Prompt(id="e0", text="a", files=(("image", PictureFile(path=tmp_path / "a.png")),))
    assert isinstance(call_arguments(_of("Flux2Pipeline"), [row])["image"], Image.Image)
    several = call_arguments(_of("QwenImageEditPipeline"), [row])["image"]
    assert [picture.size for picture in several] == [(4, 4)]


def test_noise_alone_is_a_count() -> None:
    rows = [Prompt(id=f"e{n}", text=None) for n in range(3)]
    assert call_arguments(_of("DDPMPipeline"), rows) == {"batch_size": 3}
    check_call(MODEL, diffusers.DDPMPipeline, prompts=rows)
    with pytest.raises(UserError, match=r"needs class_labels.*dataset=labels"):
        check_call(MODEL, diffusers.DiTPipeline, prompts=rows)


def test_an_argument_is_given_once() -> None:
    model = dataclasses.replace(MODEL, call={"negative_prompt": "x"})
    rows = _rows(negative_prompt=["x", "y"])
    with pytest.raises(UserError, match="data set's rows have it too"):
        check_call(model, diffusers.StableDiffusionXLPipeline, prompts=rows)


def _labels(**settings: Any) -> ClassLabels:
    given = {"evaluation_prompts": 50, "calibration_prompts": 20, "seed": 3}
    return ClassLabels(
        **{"name": "labels", "num_classes": 10, "calibration_seed": None, **given, **settings}
    )


def test_labels_are_drawn_by_the_seed_with_ids_of_their_own() -> None:
    config = _labels()
    assert isinstance(config, Dataset)
    dataset = load_dataset(config)
    labels = [dict(prompt.arguments)["class_labels"] for prompt in dataset.evaluation]
    assert len(labels) == 50
    assert set(labels) == set(range(10))
    ids = [prompt.id for prompt in (*dataset.evaluation, *dataset.calibration)]
    assert len(set(ids)) == 70
    assert load_dataset(_labels()).evaluation == dataset.evaluation
    assert load_dataset(_labels(seed=4)).evaluation != dataset.evaluation
    drawn = load_dataset(_labels(calibration_seed=9))
    assert drawn.evaluation == dataset.evaluation
    assert drawn.calibration != dataset.calibration


def test_no_classes_is_noise_alone() -> None:
    dataset = load_dataset(_labels(num_classes=None))
    assert {prompt.names for prompt in dataset.evaluation} == {()}
    with pytest.raises(ValueError, match="num_classes=0"):
        _labels(num_classes=0)


def test_one_noise_in_both_splits_is_seen() -> None:
    @dataclasses.dataclass(kw_only=True)
    class Same(ClassLabels):
        def prompts(self) -> dict[str, tuple[Prompt, ...]]:
            rows = tuple(Prompt(id=f"n{n}", text=None) for n in range(2))
            return {"evaluation": rows, "calibration": rows}

    config = Same(
        name="same",
        num_classes=None,
        evaluation_prompts=2,
        calibration_prompts=2,
        seed=0,
        calibration_seed=None,
    )
    with pytest.raises(ValueError, match="2 prompts are in both splits"):
        load_dataset(config)
