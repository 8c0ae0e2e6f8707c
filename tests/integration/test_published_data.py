"""A run on a published data set in its own layout: prompts, true images, edges for a ControlNet."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from experiments.cell.true_images import LISTING
from tests import micro
from tests.conftest import Answer, assert_refused
from tests.unit.evaluation.datasets import layouts

Segbench = Callable[..., Answer]
Small = Callable[..., list[str]]
FID = "fid_shapes_dataset_same_prompts"


def _record(answer: Answer) -> dict[str, Any]:
    assert answer.status == 0, answer.err
    (record,) = answer.records
    assert record["status"] == "ok", record["reason"]
    return record


def _images(out: Path) -> set[str]:
    return {path.parent.name for path in out.glob("stages/images/*/*.png")}


@pytest.mark.slow
def test_a_run_on_mjhq_reads_its_zip_and_copies_nothing(
    segbench: Segbench, small: Small, tmp_path: Path
) -> None:
    root, out = layouts.write_mjhq(tmp_path / "mjhq"), tmp_path / "out"
    given = ["run", *small("tiny_mmdit", "method=rtn", "dataset=mjhq", f"dataset.root={root}")]
    given += ["dataset.evaluation_prompts=3", "dataset.calibration_prompts=2", f"out={out}"]
    given += ["model.num_inference_steps=2", "metrics.teacher_forced_prompts=2", "--json"]
    record = _record(segbench(*given))
    assert (record["dataset"], record["protocol"]["n"]) == ("mjhq", 3)
    assert record["protocol"]["dataset"]["selection"] == "deepcompressor"
    assert record["metrics"][FID]["n"] == 3
    (listing,) = out.glob(f"stages/dataset/*/{LISTING}")
    rows = json.loads(listing.read_text())
    assert [row["size"] for row in rows] == [[24, 16]] * 3
    assert {row["path"] for row in rows} == {str(root / "mjhq30k_imgs.zip")}
    assert {path.suffix for path in listing.parent.iterdir()} == {".json"}
    before = _images(out)

    pictures = {row["member"]: layouts.jpeg(100 + n) for n, row in enumerate(rows)}
    layouts.write_zip(root / "mjhq30k_imgs.zip", pictures)  # the originals are others now
    again = _record(segbench(*given))
    assert again["metrics"][FID]["value"] != record["metrics"][FID]["value"]
    assert again["stages"]["images"] == record["stages"]["images"]
    assert again["protocol"]["prompts_hash"] == record["protocol"]["prompts_hash"]
    assert _images(out) == before

    (root / "mjhq30k_imgs.zip").unlink()
    answer = segbench(*given)
    assert_refused(answer, "dataset.root=", "mjhq30k_imgs.zip: ", "is missing (3 of 3 are)")


@pytest.mark.slow
def test_edges_of_a_data_sets_pictures_steer_a_controlnet(
    segbench: Segbench, small: Small, tmp_path: Path
) -> None:
    pytest.importorskip("cv2", reason="opencv-python-headless is not installed")
    torch.manual_seed(1)
    net = diffusers.SD3ControlNetModel.from_transformer(
        micro.denoiser("tiny_mmdit"), num_layers=1, num_extra_conditioning_channels=0
    )
    for part in (net.pos_embed_input, net.controlnet_blocks):
        for parameter in part.parameters():  # zeros before training: edges would do nothing
            torch.nn.init.normal_(parameter, std=0.5)
    net.save_pretrained(tmp_path / "net")
    root, out = layouts.write_dci(tmp_path / "dci"), tmp_path / "out"
    given = ["run", *small("tiny_mmdit", "method=rtn", "dataset=dci", f"dataset.root={root}")]
    given += ["dataset.evaluation_prompts=3", "dataset.calibration_prompts=2", f"out={out}"]
    given += ["model.num_inference_steps=2", "metrics.teacher_forced_prompts=2", "--json"]
    given += ["model.pipeline=StableDiffusion3ControlNetPipeline", "dataset.control=canny"]
    given += [f"model.parts.controlnet={tmp_path / 'net'}"]
    record = _record(segbench(*given))
    jpeg = _record(segbench(*given, "dataset.control_format=jpeg"))
    assert jpeg["stages"]["images"] != record["stages"]["images"]
    assert len({path.read_bytes() for path in out.glob("stages/images/*/*.png")}) == 2 * 2 * 3


def test_check_says_which_files_of_a_data_set_are_missing(
    segbench: Segbench, small: Small, tmp_path: Path
) -> None:
    given = small("tiny_flux", "method=rtn", "dataset=mjhq", f"dataset.root={tmp_path}")
    answer = segbench("check", *given, f"out={tmp_path / 'out'}")
    assert answer.status == 2, answer.err
    for name in ("meta_data.json", "mjhq30k_imgs.zip"):
        (line,) = (line for line in answer.out.splitlines() if f"{tmp_path / name}: miss" in line)
        assert "get it from https://huggingface.co/datasets/playgroundai/MJHQ-30K" in line
    assert_refused(segbench("run", *given, "--dry-run"), "meta_data.json: no such file")
    layouts.write_mjhq(tmp_path)
    answer = segbench("check", *given, f"out={tmp_path / 'out'}")
    assert answer.status == 0, answer.out
    assert "mjhq: 6 prompts, 4 to calibrate with" in answer.out
    assert_refused(segbench("run", *given, "dataset.selection=best"), "dataset.selection='best'")
