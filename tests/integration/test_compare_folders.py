"""`segbench compare A B`: folders of images, pipelines, a pipeline and its checkpoint."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import SETTINGS, Answer, assert_refused

Segbench = Callable[..., Answer]
Small = Callable[..., list[str]]
COUNT = 12


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A, B in JPEG and farther off, N a second run of A."""
    root = tmp_path_factory.mktemp("pictures")
    for folder, noise, suffix in (("a", 0, "png"), ("b", 8, "jpg"), ("n", 1, "png")):
        (root / folder).mkdir()
        for number in range(COUNT):
            pixels = np.random.default_rng(number).uniform(40, 210, (32, 32, 3))
            pixels += np.random.default_rng([number, noise]).normal(0, noise, pixels.shape)
            Image.fromarray(pixels.astype(np.uint8)).save(root / folder / f"p{number}.{suffix}")
    return root


def test_two_folders_give_a_page(segbench: Segbench, pictures: Path, tmp_path: Path) -> None:
    given = ("--noise", str(pictures / "n"), "--out", str(tmp_path / "out"))
    answer = segbench("compare", str(pictures / "a"), str(pictures / "b"), *given)
    assert answer.status == 0, answer.err
    assert answer.out.startswith("**B differs from A beyond the noise floor (n) in PSNR dB")
    assert f"n = {COUNT} pairs of 32x32" in answer.out
    assert "B holds JPEG: what compression lost" in answer.out
    assert f"B: {COUNT} pairs of 32x32 in" in answer.err  # its pace
    out = tmp_path / "out"
    assert (out / "comparison.md").read_text().strip() == answer.out.strip()
    assert Image.open(out / "contact_sheet.png").size[0] > 300
    assert len((out / "per_image.csv").read_text().splitlines()) == COUNT + 1
    with (out / "comparison.csv").open(newline="") as file:
        rows = {row["metric"]: row for row in csv.DictReader(file)}
    assert rows["psnr"]["verdict"] == "beyond the noise"
    assert float(rows["psnr"]["b_low"]) < float(rows["psnr"]["b"]) < 40
    assert not list(tmp_path.glob("segbench-*"))


def test_thresholds_decide_the_exit_status(segbench: Segbench, pictures: Path) -> None:
    two = ("compare", str(pictures / "a"), str(pictures / "b"))
    kept = segbench(*two, "--threshold", "psnr=10", "--json")
    assert kept.status == 0
    broken = segbench(*two, "--threshold", "psnr=90", "--threshold", "ssim=0.1", "--json")
    assert broken.status == 1
    said = {one["metric"]: one["broken"] for one in json.loads(broken.out)["thresholds"]}
    assert said == {"psnr": True, "ssim": False}
    assert_refused(segbench(*two, "--threshold", "psnr=1", "--threshold", "psnr=2"), "has one")
    for wrong in ("psnr", "psnr=x", "=3", "psnr=nan"):
        assert_refused(segbench(*two, "--threshold", wrong), "METRIC=VALUE")
    unknown = segbench(*two, "--threshold", "clip_score=0.1")
    assert unknown.status == 2
    assert "clip_score: not measured here (no evaluator was named" in unknown.err
    assert unknown.out == ""


def test_what_has_no_partner_is_refused(segbench: Segbench, pictures: Path, tmp_path: Path) -> None:
    for number in range(3, COUNT):
        source = pictures / "a" / f"p{number}.png"
        Image.open(source).save(tmp_path / source.name)
    two = ("compare", str(pictures / "a"), str(tmp_path))
    assert_refused(segbench(*two), "3 in A (p0, p1, p2)", "--common compares the 9")
    answer = segbench(*two, "--common")
    assert answer.status == 0, answer.err
    assert "B is A: all 9 images are equal" in answer.out
    plain = json.loads(segbench(*two, "--common", "--json").out, parse_constant=pytest.fail)
    assert plain["metrics"][0]["b"] == "Infinity"
    assert "Left out of A, as not every folder has them: 3 images." in answer.out


@pytest.mark.parametrize("kind", ["md", "csv", "tex"])
def test_formats(segbench: Segbench, pictures: Path, kind: str) -> None:
    answer = segbench("compare", str(pictures / "a"), str(pictures / "b"), "--format", kind)
    assert answer.status == 0
    assert {"md": "| PSNR dB", "csv": "psnr,", "tex": r"\begin{table}"}[kind] in answer.out


def test_bad_requests_are_one_line(segbench: Segbench, pictures: Path, tmp_path: Path) -> None:
    a, b = str(pictures / "a"), str(pictures / "b")
    assert_refused(segbench("compare", a, str(tmp_path / "none")), "no such folder")
    assert_refused(segbench("compare", a, str(tmp_path)), "holds no picture")
    assert_refused(segbench("compare", a, b, a), "takes two")
    assert_refused(segbench("compare", a, b, "--against", "rtn"), "of a sweep")
    assert_refused(segbench("compare", "demo", "--common"), "of two folders")
    assert_refused(segbench("compare", a, b, "--prompts", "4"), "of pipelines")
    (tmp_path / "texts.jsonl").write_text('{"id": "p0", "prompt": "a"}\n')
    texts = ("--prompt-texts", str(tmp_path / "texts.jsonl"))
    assert_refused(segbench("compare", a, b, *texts), f"no text for {COUNT - 1}")
    (tmp_path / "damaged").mkdir()
    for path in (pictures / "a").iterdir():
        (tmp_path / "damaged" / path.name).write_bytes(path.read_bytes()[:400])
    assert_refused(segbench("compare", a, str(tmp_path / "damaged")), "damaged/p", ".png")


def test_true_images_and_texts_bring_their_metrics(
    segbench: Segbench, pictures: Path, zoo: Path, tmp_path: Path
) -> None:
    texts = {f"p{number}": "a red circle" for number in range(COUNT)}
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    answer = segbench(
        "compare", str(pictures / "a"), str(pictures / "b"), "--json",
        "--dataset", str(pictures / "n"), "--prompt-texts", str(tmp_path / "texts.json"),
        f"metrics.evaluator={zoo / 'evaluator'}", "metrics.bootstrap_resamples=200",
    )  # fmt: skip
    assert answer.status == 0, answer.err
    rows = {row["metric"]: row for row in json.loads(answer.out)["metrics"]}
    assert rows["clip_score"]["a"] is not None
    assert rows["fid_shapes_dataset_same_prompts"]["difference"]["n"] == COUNT
    assert rows["fid_shapes_reference"]["to_a"]


def test_a_pipeline_and_its_checkpoint(
    segbench: Segbench, small: Small, zoo: Path, tmp_path: Path
) -> None:
    run = small("tiny_mmdit", "method=rtn", "bits=w4a8_int", f"out={tmp_path / 'runs'}")
    assert segbench("run", *run).status == 0
    (checkpoint,) = (tmp_path / "runs" / "stages" / "quantized").iterdir()
    words = [word for word in run if not word.startswith(("model.path", "method", "bits", "out"))]
    work = tmp_path / "work"
    answer = segbench(
        "compare", str(zoo / "tiny_mmdit"), str(checkpoint), *words, "--prompts", "6", "--json",
        "--noise", "again", "--work", str(work),
    )  # fmt: skip
    assert answer.status == 0, answer.err
    found = json.loads(answer.out)
    assert found["n"] == 6
    assert found["identical"] < 6
    assert {row["metric"] for row in found["metrics"]} >= {"psnr", "ssim", "clip_score"}
    made = {path.read_bytes() for path in (tmp_path / "runs" / "stages" / "images").rglob("*.png")}
    again = {path.read_bytes() for path in (work / "stages" / "images").rglob("*.png")}
    assert made <= again  # the run's own images, of both, bit for bit


def test_two_pipelines(segbench: Segbench, zoo: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\n\na blue square\n")
    unet = str(zoo / "tiny_unet")
    words = [word for word in SETTINGS if not word.startswith("dataset")]
    answer = segbench("compare", unet, unet, *words, "--prompts", str(prompts))
    assert answer.status == 0, answer.err
    assert answer.out.startswith("**B is A: all 2 images are equal in every pixel.**")
    assert "Sampled here: 2 prompts, 3 steps, seed 0, float32" in answer.out
    assert_refused(segbench("compare", unet, str(tmp_path)), "A is a pipeline, B images")
    assert_refused(segbench("compare", unet, unet, "--common"), "of images")
    assert_refused(segbench("compare", unet, unet, "method=rtn"), "method=rtn: A, B and --work")
