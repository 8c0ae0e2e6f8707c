"""Pipelines of others: what cannot be run is refused beforehand; what can is run as it is meant."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPImageProcessor

from evaluation.images import write_png
from tests import micro
from tests.conftest import Answer, assert_refused

Segbench = Callable[..., Answer]
Small = Callable[..., list[str]]


def _save(folder: Path, kind: Any, **more: Any) -> Path:
    micro.stable_diffusion(kind, **more).save_pretrained(folder)
    return folder


@pytest.fixture
def words(small: Small, tmp_path: Path) -> Callable[..., list[str]]:
    """Arguments of a run of the pipeline in a folder."""

    def arguments(folder: Path | str, *more: str) -> list[str]:
        given = small("tiny_unet", f"out={tmp_path / 'out'}", *more)
        return ["run", f"model.path={folder}", "method=rtn", *given[1:]]

    return arguments


@pytest.fixture
def copied(zoo: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "copied"
    shutil.copytree(zoo / "tiny_unet", folder)
    return folder


def test_a_pipeline_without_prompts(segbench: Segbench, words: Any, tmp_path: Path) -> None:
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=16,
        out_channels=32,
        num_layers=1,
        sample_size=8,
        patch_size=2,
    )
    diffusers.DiTPipeline(
        transformer=transformer, vae=micro.parts()["vae"], scheduler=diffusers.DDIMScheduler()
    ).save_pretrained(tmp_path / "dit")
    answer = segbench(*words(tmp_path / "dit", "--dry-run"))
    assert_refused(answer, "DiTPipeline takes no prompt", "class_labels")
    assert not (tmp_path / "out").exists()


def test_an_image_that_is_needed_comes_from_the_rows(
    segbench: Segbench, words: Any, tmp_path: Path
) -> None:
    folder = _save(tmp_path / "img2img", diffusers.StableDiffusionImg2ImgPipeline)
    answer = segbench(*words(folder, "--dry-run"))
    assert_refused(answer, "StableDiffusionImg2ImgPipeline needs image", "rows")
    assert "segbench's own" in segbench(*words(folder, "model.call.image=x.png")).err
    listed = tmp_path / "mine.jsonl"
    splits = ["evaluation"] * 6 + ["calibration"] * 4
    for number in range(len(splits)):
        write_png(tmp_path / f"{number}.png", np.full((16, 16, 3), 20 * number, np.uint8))
    rows = [
        {"id": f"p{n}", "prompt": f"a square {n}", "split": split, "image": f"{n}.png"}
        for n, split in enumerate(splits)
    ]
    listed.write_text("\n".join(map(json.dumps, rows)))
    own = [f"dataset.path={listed}", "dataset=prompts", "model.call.strength=0.7"]
    given = [word for word in words(folder, *own) if not word.startswith(("model.h", "model.w"))]
    answer = segbench(*given, "--json")
    assert answer.status == 0, answer.err
    (record,) = answer.records
    assert record["status"] == "ok"
    pictures = sorted((tmp_path / "out").rglob("p?.png"))
    assert len({path.read_bytes() for path in pictures}) > 6
    text_to_image = tmp_path / "text"
    _save(text_to_image, diffusers.StableDiffusionPipeline)
    assert_refused(segbench(*words(text_to_image, *own[:2])), "takes no image", "rows")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"unet_2": ["diffusers", "UNet2DConditionModel"]}, "names unet_2, and"),
        ({"unet": None}, "unet is None; a part is a list"),
        ({"unet": []}, "unet is []; a part is a list"),
        ({"unet": 3}, "unet is 3; a part is a list"),
        ({"vae": None}, "vae is None; a part is a list"),
        ({"vae": ["diffusers"]}, "vae is ['diffusers']; a part is a list"),
        ({"text_encoder": 5}, "names no text_encoder, which StableDiffusionXLPipeline needs"),
        ({"_class_name": None}, "_class_name is None"),
        ({"_class_name": "NoSuchPipeline"}, "has no pipeline NoSuchPipeline"),
        ({"_class_name": "AutoencoderKL"}, "has no pipeline AutoencoderKL"),
        ({"../up": ["diffusers", "X"]}, "is no name of a part"),
    ],
    ids=str,
)
def test_an_index_that_is_none(
    segbench: Segbench, words: Any, copied: Path, change: dict[str, Any], said: str
) -> None:
    index = copied / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), **change}))
    assert_refused(segbench(*words(copied, "--dry-run")), said)


DAMAGE: dict[str, bytes] = {
    "list": b"[1]",
    "null": b"null",
    "text": b'"a"',
    "binary": bytes(range(256)),
    "utf-16": '{"a": 1}'.encode("utf-16"),
    "deep": b"[" * 100_000,
    "half": b'{"a": ',
    "empty": b"",
}


@pytest.mark.parametrize(
    "name", ["model_index.json", "scheduler/scheduler_config.json", "unet/config.json"]
)
@pytest.mark.parametrize("damage", list(DAMAGE))
def test_a_json_that_is_none(
    segbench: Segbench, words: Any, copied: Path, name: str, damage: str
) -> None:
    (copied / name).write_bytes(DAMAGE[damage])
    assert_refused(segbench(*words(copied, "--dry-run")), name.rpartition("/")[2])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}", "has no weight_map"),
        ('{"weight_map": []}', "has no weight_map"),
        ('{"weight_map": {"a": 3}}', "names what is no file"),
        ('{"weight_map": {"a": "../../x"}}', "names what is no file"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "gone.safetensors is missing"),
        ("[", "cannot be read as JSON"),
    ],
)
def test_a_list_of_shards_that_is_none(
    segbench: Segbench, words: Any, copied: Path, content: str, said: str
) -> None:
    (copied / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(content)
    assert_refused(segbench(*words(copied, "--dry-run")), said)


def _weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_a_tensor_that_is_missing_is_not_made_up(
    segbench: Segbench, words: Any, copied: Path
) -> None:
    _weights(copied, lambda tensors: tensors.pop("conv_in.weight"))
    assert_refused(
        segbench(*words(copied, "--dry-run")), "1 of", "tensors are missing (conv_in.weight)"
    )


def test_a_tensor_of_another_shape(segbench: Segbench, words: Any, copied: Path) -> None:
    _weights(copied, lambda tensors: tensors.update({"conv_in.bias": torch.zeros(3)}))
    assert_refused(segbench(*words(copied, "--dry-run")), "conv_in.bias has shape [3]")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors["conv_in.bias"].fill_(float("nan")), "conv_in.bias has values"),
        (lambda tensors: [t.zero_() for t in tensors.values()], "all weights of unet are zero"),
    ],
)
def test_weights_that_make_no_image(
    segbench: Segbench, words: Any, copied: Path, change: Any, said: str
) -> None:
    _weights(copied, change)
    assert_refused(segbench(*words(copied)), said)


def test_weights_of_a_variant_are_found(segbench: Segbench, words: Any, copied: Path) -> None:
    for path in copied.rglob("*.safetensors"):
        path.rename(path.with_name(path.name.replace(".safetensors", ".fp16.safetensors")))
    answer = segbench(*words(copied, "--json"))
    assert answer.status == 0, answer.err
    assert answer.records[0]["protocol"]["model_variant"] == "fp16"


def test_a_part_without_weights_of_any_name(segbench: Segbench, words: Any, copied: Path) -> None:
    path = copied / "unet" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_name("mine.safetensors"))
    assert_refused(segbench(*words(copied, "--dry-run")), "unet has a config.json and no weights")


def test_a_safety_checker_is_left_out_and_the_record_says_so(
    segbench: Segbench, words: Any, tmp_path: Path
) -> None:
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

    size = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    vision = {**size, "image_size": 32, "patch_size": 8}
    checker = StableDiffusionSafetyChecker(
        CLIPConfig(text_config=size, vision_config=vision, projection_dim=16)
    )
    checker.concept_embeds_weights.data.fill_(-2.0)  # flags everything
    folder = _save(
        tmp_path / "checked",
        diffusers.StableDiffusionPipeline,
        safety_checker=checker,
        feature_extractor=CLIPImageProcessor(size=32, crop_size=32),
        requires_safety_checker=True,
    )
    answer = segbench(*words(folder, "--json"))
    assert answer.status == 0, answer.err
    (record,) = answer.records
    assert record["protocol"]["safety_checker"] == "switched off"
    pictures = list((tmp_path / "out" / "stages" / "images").rglob("*.png"))
    assert pictures
    assert all(np.asarray(Image.open(path)).any() for path in pictures)


def test_a_revision_is_one_of_the_local_cache(
    segbench: Segbench, words: Any, zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(cache))
    repository = cache / "models--some--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(zoo / "tiny_unet", repository / "snapshots" / commit)
    answer = segbench(*words("some/model", "--json", "model.revision=main"))
    assert answer.status == 0, answer.err
    assert answer.records[0]["protocol"]["model_revision"] == commit
    assert answer.records[0]["model"] == "model"
    assert_refused(
        segbench(*words("some/model", "model.revision=old")), "model.revision=old", "cache"
    )
    assert_refused(segbench(*words("other/model", "--dry-run")), "other/model", "segbench fetch")
    assert_refused(
        segbench(*words(zoo / "tiny_unet", "model.revision=main")), "a folder has no revisions"
    )


def test_groups_ranks_and_patterns_fit_the_layers(
    segbench: Segbench, words: Any, zoo: Path
) -> None:
    folder = zoo / "tiny_unet"
    for what in ("weight", "activation"):
        group = [f"bits.{what}.granularity=per_group", f"bits.{what}.group_size=48"]
        answer = segbench(*words(folder, "--dry-run", "bits=w4a8_int", *group))
        assert_refused(answer, f"bits.{what}.group_size=48", "in_features=", "bits.keep")
    answer = segbench(*words(folder, "--dry-run", "method=svdquant", "method.rank=60000"))
    assert_refused(answer, "method.rank=60000", "largest layer")
    answer = segbench(*words(folder, "--dry-run", "bits.keep=[no_such_layer]"))
    assert_refused(answer, "'no_such_layer' names no layer")
    answer = segbench(*words(folder, "--dry-run", "bits.keep=['*.to_q']"))
    assert answer.status == 0, answer.err


@pytest.mark.parametrize("side", ["model.height=12", "model.width=18"])
def test_sides_that_the_parts_cannot_divide(
    segbench: Segbench, words: Any, zoo: Path, side: str
) -> None:
    assert_refused(segbench(*words(zoo / "tiny_unet", "--dry-run", side)), side, "multiple of 8")
