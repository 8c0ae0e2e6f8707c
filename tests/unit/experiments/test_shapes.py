"""The procedural dataset: deterministic, disjoint, and what its captions say."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from evaluation.datasets import shapes
from evaluation.datasets.loading import load_dataset, prompts_hash
from experiments.sampling.sample import noise_seed
from experiments.tiny import text


def test_splits_share_no_prompt_in_whatever_order_objects_are_named() -> None:
    def canonical(scene: shapes.Scene) -> tuple[object, ...]:
        objects = sorted((o.cell, o.shape, o.colour, o.size) for o in scene.objects)
        return (scene.background, *objects)

    seen = {
        split: {canonical(s.scene) for seed in (0, 1) for s in shapes.take(split, 1500, seed=seed)}
        for split in shapes.SPLITS
    }
    for one, other in itertools.combinations(shapes.SPLITS, 2):
        assert not seen[one] & seen[other]


@pytest.mark.parametrize(
    ("calibration_seed", "calibration"), [(None, "0fd0b546fd7955b6"), (3, "9113e9102523276a")]
)
def test_prompts_and_images_are_those_of_every_published_row(
    calibration_seed: int | None, calibration: str, tmp_path: Path
) -> None:
    config = shapes.Shapes(
        name="shapes",
        evaluation_prompts=40,
        calibration_prompts=20,
        seed=1,
        calibration_seed=calibration_seed,
    )
    dataset = load_dataset(config)
    assert prompts_hash(dataset.evaluation) == "5c16bd0873374e9d"
    assert prompts_hash(dataset.calibration) == calibration
    config.write_true_images(tmp_path, dataset.evaluation)
    state = hashlib.sha256()
    for prompt in dataset.evaluation:
        with Image.open(tmp_path / f"{prompt.id}.png") as image:
            state.update(np.asarray(image).tobytes())
    assert state.hexdigest()[:16] == "57cf79672d36d269"
    assert len(list(tmp_path.iterdir())) == 40


def test_the_same_arguments_give_the_same_samples_and_images() -> None:
    one, other = shapes.take("train", 50), shapes.take("train", 80)
    assert one == other[:50]
    assert len({sample.prompt for sample in other}) == 80
    image = shapes.render(one[0].scene, key="a")
    assert np.array_equal(image, shapes.render(one[0].scene, key="a"))
    assert not np.array_equal(image, shapes.render(one[0].scene, key="b"))


@given(st.integers(0, 10_000))
def test_the_caption_says_what_is_drawn(seed: int) -> None:
    scene = shapes.take("train", 1, seed=seed)[0].scene
    image = shapes.render(scene, key="k").astype(int)
    for item in scene.objects:
        row, column = divmod(item.cell, 3)
        y, x = (round((i + 0.5) * shapes.IMAGE_SIZE / 3) for i in (row, column))
        near = image[y - 3 : y + 4, x - 3 : x + 4].reshape(-1, 3).tolist()
        assert list(list(shapes.COLOURS.values())[item.colour]) in near
        words = scene.caption
        assert shapes.CELLS[item.cell] in words
        assert shapes.SHAPES[item.shape] in words
    empty = set(range(9)) - {item.cell for item in scene.objects}
    row, column = divmod(min(empty), 3)
    y, x = (round((i + 0.5) * shapes.IMAGE_SIZE / 3) for i in (row, column))
    assert list(image[y, x]) == list(list(shapes.BACKGROUNDS.values())[scene.background])


def test_every_caption_fits_the_encoders_one_token_a_word() -> None:
    prompts = [sample.prompt for sample in shapes.take("train", 500)]
    for tokenizer in (text.build_clip_tokenizer(), text.build_t5_tokenizer()):
        ids = tokenizer(prompts).input_ids
        assert max(len(row) for row in ids) <= text.MAX_TOKENS
        unknown = tokenizer.unk_token_id
        assert all(row[:-1].count(unknown) == 0 for row in ids)


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="choose one of train"):
        shapes.take("test", 1)


def test_calibration_and_evaluation_prompts_are_apart_and_noise_is_by_id() -> None:
    config = shapes.Shapes(
        name="shapes",
        evaluation_prompts=300,
        calibration_prompts=300,
        calibration_seed=None,
        seed=0,
    )
    dataset = load_dataset(config)
    assert not {p.text for p in dataset.evaluation} & {p.text for p in dataset.calibration}
    seeds = {noise_seed(p.id, seed=0) for p in (*dataset.evaluation, *dataset.calibration)}
    assert len(seeds) == 600
    assert noise_seed("a", seed=0) != noise_seed("a", seed=1)
