"""Pipelines that need more than prompts, or are put together of more than one folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from evaluation.images import write_png
from tests import micro
from tests.conftest import Answer, assert_refused

Segbench = Callable[..., Answer]
SPLITS = ["evaluation"] * 6 + ["calibration"] * 4


@pytest.fixture
def words(small: Any, tmp_path: Path) -> Callable[..., list[str]]:
    """Arguments of a run of the pipeline in a folder, with a data set of its own."""

    def arguments(folder: Path, *more: str, method: str = "rtn", out: str = "out") -> list[str]:
        given = [*small("tiny_unet", f"out={tmp_path / out}")[1:], *more]
        changed = {word.partition("=")[0] for word in more}
        kept = [w for w in given if w in more or w.partition("=")[0] not in changed]
        return ["run", f"model.path={folder}", f"method={method}", *kept]

    return arguments


def _listed(path: Path, **fields: Callable[[int], Any]) -> list[str]:
    """A file of prompts with these fields, each a function of the row's number."""
    rows = [
        {"id": f"p{n}", "split": split, **{key: made(n) for key, made in fields.items()}}
        for n, split in enumerate(SPLITS)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return ["dataset=prompts", f"dataset.path={path}"]


def _images(out: Path, names: str) -> set[bytes]:
    return {path.read_bytes() for path in (out / "stages" / "images").rglob(names)}


@pytest.fixture(scope="module")
def dit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=16,
        out_channels=32,
        num_layers=1,
        sample_size=8,
        patch_size=2,
    )
    folder = tmp_path_factory.mktemp("models") / "dit"
    diffusers.DiTPipeline(
        transformer=transformer.eval(),
        vae=micro.parts()["vae"],
        scheduler=diffusers.DDIMScheduler(),
    ).save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    names = {"0": "tench, Tinca tinca", "1": "goldfish", "2": "shark"}
    (folder / "model_index.json").write_text(json.dumps(index | {"id2label": names}))
    return folder


def test_classes_are_sampled_without_a_prompt(
    segbench: Segbench, words: Any, dit: Path, tmp_path: Path
) -> None:
    given = ["dataset=labels", "dataset.num_classes=1000", "model.guidance_scale=2"]
    answer = segbench(*words(dit, *given, "--json", method="segquant_a"))
    assert answer.status == 0, answer.err
    (record,) = answer.records
    assert record["status"] == "ok", record["reason"]
    assert record["layers_quantized"]
    assert record["metrics"]["psnr"]["value"] > 0
    clip = record["metrics"]["clip_score"]
    assert clip["value"] is None
    assert "takes no prompts" in clip["note"]
    assert len(_images(tmp_path / "out", "evaluation-*.png")) >= 6


def test_classes_by_name_and_number(
    segbench: Segbench, words: Any, dit: Path, tmp_path: Path
) -> None:
    names = ["Tinca tinca", 1, "shark"]
    own = _listed(tmp_path / "a.jsonl", class_labels=lambda n: names[n % 3])
    assert segbench(*words(dit, *own, "--json")).status == 0
    numbers = _listed(tmp_path / "b.jsonl", class_labels=lambda n: n % 3)
    assert segbench(*words(dit, *numbers, out="other")).status == 0
    assert _images(tmp_path / "out", "p?.png") == _images(tmp_path / "other", "p?.png")


@pytest.mark.parametrize(
    ("label", "said"),
    [(1000, "is 1000; the model's classes are 0 to 999"), ("goldfsh", "did you mean 'goldfish'?")],
)
def test_classes_that_the_model_lacks(
    segbench: Segbench, words: Any, dit: Path, tmp_path: Path, label: Any, said: str
) -> None:
    own = _listed(tmp_path / "a.jsonl", class_labels=lambda _: label)
    assert_refused(segbench(*words(dit, *own, "--dry-run")), "class_labels of id 'p0'", said)


def test_data_sets_that_do_not_fit_a_pipeline(
    segbench: Segbench, words: Any, dit: Path, zoo: Path, tmp_path: Path
) -> None:
    assert_refused(segbench(*words(dit, "--dry-run")), "takes no prompt", "give dataset=labels")
    nothing = ["dataset=labels", "dataset.num_classes=null", "--dry-run"]
    assert_refused(segbench(*words(dit, *nothing)), "needs class_labels", "dataset=labels")
    text = zoo / "tiny_unet"
    assert_refused(segbench(*words(text, "dataset=labels", "--dry-run")), "takes no class_labels")
    assert_refused(segbench(*words(text, *nothing)), "needs more than noise")
    own = _listed(tmp_path / "a.jsonl", prompt=lambda n: f"square {n}", negative_promt=str)
    assert_refused(segbench(*words(text, *own)), "takes no negative_promt", "mean negative_prompt?")
    reserved = _listed(tmp_path / "b.jsonl", prompt=lambda n: f"square {n}", height=lambda _: 32)
    assert_refused(
        segbench(*words(text, *reserved)), "rows of the data set have height", "model.height"
    )


def test_noise_alone(segbench: Segbench, words: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=16,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )
    folder = tmp_path / "ddpm"
    diffusers.DDPMPipeline(unet=unet.eval(), scheduler=diffusers.DDPMScheduler()).save_pretrained(
        folder
    )
    assert_refused(segbench(*words(folder)), "takes no prompt", "dataset.num_classes=null")
    given = ["dataset=labels", "dataset.num_classes=null", "--json"]
    answer = segbench(*words(folder, *given))
    assert answer.status == 0, answer.err
    (record,) = answer.records
    assert record["status"] == "ok", record["reason"]
    other = segbench(*words(folder, *given, "model.batch_size=1", out="one"))
    assert other.status == 0, other.err
    assert len(_images(tmp_path / "out", "evaluation-*.png")) >= 6


def test_every_prompt_has_arguments_of_its_own(
    segbench: Segbench, words: Any, zoo: Path, tmp_path: Path
) -> None:
    def run(out: str, **fields: Callable[[int], Any]) -> set[bytes]:
        own = _listed(tmp_path / f"{out}.jsonl", prompt=lambda n: f"a square {n}", **fields)
        given = [*own, "model.guidance_scale=3", "bits=w16a16"]
        answer = segbench(*words(zoo / "tiny_unet", *given, method="fp", out=out))
        assert answer.status == 0, answer.err
        return _images(tmp_path / out, "p?.png")

    plain = run("plain", negative_prompt=lambda _: "red")
    assert len(plain) == 6
    mixed = run("mixed", negative_prompt=lambda n: "red" if n % 2 else "a large green circle")
    assert len(plain & mixed) == 3  # those whose own it still is
    assert not run("second", negative_prompt=lambda _: "red", prompt_2=lambda n: f"b {n}") & plain


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ControlNet for the small MMDiT."""
    torch.manual_seed(1)
    own = micro.denoiser("tiny_mmdit")
    net = diffusers.SD3ControlNetModel.from_transformer(
        own, num_layers=1, num_extra_conditioning_channels=0
    )
    for parameter in net.controlnet_blocks.parameters():
        torch.nn.init.normal_(parameter, std=0.5)  # zeros before training: they would do nothing
    folder = tmp_path_factory.mktemp("parts") / "controlnet"
    net.save_pretrained(folder)
    return folder


def test_a_controlnet_joins_another_pipeline(
    segbench: Segbench, words: Any, small: Any, zoo: Path, control: Path, tmp_path: Path
) -> None:
    for number in range(len(SPLITS)):
        pixels = np.full((16, 16, 3), 20 * number, np.uint8)
        write_png(tmp_path / f"{number}.png", pixels)
    own = _listed(
        tmp_path / "mine.jsonl",
        prompt=lambda n: f"a square {n}",
        control_image=lambda n: f"{n}.png",
    )
    other = "model.pipeline=StableDiffusion3ControlNetPipeline"
    part = f"model.parts.controlnet={control}"
    given = ["run", *small("tiny_mmdit", *own, "method=rtn", f"out={tmp_path / 'out'}")]
    answer = segbench(*given, other, part, "--json")
    assert answer.status == 0, answer.err
    (record,) = answer.records
    assert record["status"] == "ok", record["reason"]
    assert record["protocol"]["pipeline"] == "StableDiffusion3ControlNetPipeline"
    said = record["protocol"]["parts"]["controlnet"]
    assert said["class"] == "SD3ControlNetModel"
    pictures = _images(tmp_path / "out", "p?.png")

    net = diffusers.SD3ControlNetModel.from_pretrained(control)
    net.controlnet_blocks[0].weight.data *= -1
    net.save_pretrained(tmp_path / "changed")
    changed = f"model.parts.controlnet={tmp_path / 'changed'}"
    again = segbench(*given, other, changed, "--json")
    assert again.records[0]["protocol"]["model_weights"] != record["protocol"]["model_weights"]
    assert again.records[0]["protocol"]["parts"]["controlnet"]["weights"] != said["weights"]
    assert len(_images(tmp_path / "out", "p?.png")) > len(pictures)

    assert_refused(segbench(*given, other), "needs; give model.parts.controlnet=FOLDER")
    assert_refused(segbench(*given, part), "StableDiffusion3Pipeline has no such part")
    assert_refused(
        segbench(*given, f"{other}x", part), "did you mean StableDiffusion3ControlNetPipeline"
    )
    assert_refused(
        segbench(*given, other, "model.parts.controlnet=/no/such"), "model.parts.controlnet"
    )
    (tmp_path / "changed" / "diffusion_pytorch_model.safetensors").unlink()
    assert_refused(segbench(*given, other, changed), "no weights")


def test_another_scheduler_is_what_samples(
    segbench: Segbench, words: Any, zoo: Path, tmp_path: Path
) -> None:

    def sampled(*more: str) -> Answer:
        return segbench(*words(zoo / "tiny_unet", *more, "bits=w16a16", "--json", method="fp"))

    plain = sampled()
    (own,) = plain.records
    first = _images(tmp_path / "out", "*.png")
    answer = sampled("model.scheduler.class=EulerAncestralDiscreteScheduler")
    assert answer.status == 0, answer.err
    (record,) = answer.records
    said = record["protocol"]["scheduler"]
    assert said["_class_name"] == "EulerAncestralDiscreteScheduler"
    assert said["beta_start"] == own["protocol"]["scheduler"]["beta_start"]  # the model's own
    assert _images(tmp_path / "out", "*.png") > first
    spaced = sampled("model.scheduler.timestep_spacing=trailing")
    (other,) = spaced.records
    assert other["protocol"]["scheduler"]["timestep_spacing"] == "trailing"
    assert other["run_id"] != own["run_id"]
    assert_refused(
        sampled("model.scheduler.class=DDIMSheduler", "--dry-run"),
        "model.scheduler.class=DDIMSheduler",
        "did you mean DDIMScheduler?",
    )
