"""`segbench export` and `execution=onnx`: a quantized pipeline in other runtimes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

import segquant.diffusers  # noqa: F401 - diffusers knows the format from here on
from evaluation.records import read_record
from experiments.deployment.generate import Pipeline
from tests.conftest import Answer, assert_refused

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

Run = Callable[..., Answer]
Small = Callable[..., list[str]]
PROMPT = "a red circle"
# imports fail as if it were not installed
WITHOUT_TORCH = """
import runpy, sys
sys.modules["torch"] = sys.modules["diffusers"] = sys.modules["transformers"] = None
script, *sys.argv[1:] = sys.argv[1:]
runpy.run_path(script, run_name="__main__")
"""


def _quantized(segbench: Run, small: Small, tmp_path: Path, *words: str) -> Path:
    folder = tmp_path / "made"
    asked = small("tiny_unet", *words, f"out={tmp_path / 'runs'}")
    made = segbench("quantize", *asked, "--to", str(folder))
    assert made.status == 0, made.err
    return folder


def test_a_pipeline_makes_its_images_without_torch(
    segbench: Run, small: Small, tmp_path: Path
) -> None:
    folder = _quantized(segbench, small, tmp_path, "method=segquant_a")
    out = tmp_path / "onnx"
    call = ("height=16", "width=16", "num_inference_steps=2", "guidance_scale=3")
    told = segbench("export", str(folder), *call, "--to", "onnx", "--out", str(out), "--json")
    assert told.status == 0, told.err
    said = json.loads(told.out)
    assert said["integer_layers"]
    assert said["float_layers"] == {}
    assert said["difference"] <= max(2 * said["nudged"], 1e-5)
    image = tmp_path / "image.png"
    words = [str(out / "generate.py"), PROMPT, "--seed", "3", "--threads", "1", "--to", str(image)]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *words], check=True, capture_output=True, text=True
    )
    assert "step 2 of 2" in done.stderr
    made = Pipeline(out, num_threads=1)
    noise = made.noise(3)
    here = np.round(made(PROMPT, noise=noise) * 255).astype(np.uint8)
    assert np.array_equal(np.asarray(Image.open(image)), here)
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    wanted = pipeline(
        PROMPT,
        height=16,
        width=16,
        num_inference_steps=2,
        guidance_scale=3.0,
        latents=torch.from_numpy(noise),
        output_type="np",
    ).images[0]
    error = float(((made(PROMPT, noise=noise) - wanted) ** 2).mean())
    assert error < 1e-4  # 40 dB: codes on a border move
    other = float(((made("a blue square", noise=noise) - wanted) ** 2).mean())
    assert other > error


def test_a_row_is_made_by_the_runtime_and_says_so(
    segbench: Run, small: Small, tmp_path: Path
) -> None:
    steps = {}
    for execution, runtime in (("simulated", ""), ("onnx", "onnxruntime")):
        words = small("tiny_unet", "method=segquant_a", f"execution={execution}", "device=cpu")
        run = segbench("run", *words, f"out={tmp_path / 'runs'}")
        assert run.status == 0, run.err
        records = [read_record(p) for p in (tmp_path / "runs" / "cells").glob("*/record.json")]
        (record,) = [r for r in records if r.execution == (runtime or "simulated")]
        steps[execution] = record.metrics["step_error"].value
    assert record.protocol["runtime"]["name"] == "onnxruntime"
    (said,) = record.execution_by_layer_class.values()
    assert "products of integers" in said
    assert not any("kernels" in item for item in record.method_elements["left_out"])
    assert record.seconds["seconds_per_image"] > 0
    assert steps["onnx"] == pytest.approx(steps["simulated"], rel=0.2)
    assert steps["onnx"] > 0


def test_what_no_runtime_multiplies_is_refused_or_a_skipped_row(
    segbench: Run, small: Small, tmp_path: Path
) -> None:
    given = ("method=rtn", "bits=w8a8_fp8", "device=cpu", f"out={tmp_path / 'runs'}")
    words = small("tiny_unet", *given)
    reason = "execution=onnx: runtimes have no product of fp8_e4m3 on a CPU"
    assert_refused(segbench("run", *words, "execution=onnx"), reason)
    run = segbench("run", "-m", *words, "execution=simulated,onnx")
    records = [read_record(p) for p in (tmp_path / "runs" / "cells").glob("*/record.json")]
    (skipped,) = [record for record in records if record.status == "skipped"]
    assert run.status == 0, run.err
    assert skipped.reason == reason
    refused = segbench("run", *small("tiny_unet", "execution=onnx", "fuse_activations=true"))
    assert_refused(refused, "fuse_activations=true with execution=onnx", "execution=kernel")


def test_other_libraries_formats_where_the_recipe_fits(
    segbench: Run, small: Small, tmp_path: Path
) -> None:
    pytest.importorskip("torchao")
    folder = _quantized(segbench, small, tmp_path, "method=rtn")
    out = tmp_path / "torchao"
    call = ("height=16", "width=16")
    made = segbench("export", str(folder), *call, "--to", "torchao", "--out", str(out))
    assert made.status == 0, made.err
    assert json.loads((out / "config.json").read_text())["quantization_config"]
    refused = segbench(
        *("export", str(folder), *call, "--to", "nunchaku-lite", "--out", str(tmp_path / "no"))
    )
    assert_refused(refused, "nunchaku-lite cannot hold", "groups of 64", "nothing was written")
    assert not (tmp_path / "no").exists()


def test_a_request_that_is_wrong_is_one_line(
    segbench: Run, small: Small, tmp_path: Path, zoo: Path
) -> None:
    out = ("--to", "onnx", "--out", str(tmp_path / "onnx"))
    assert_refused(segbench("export", *out), "takes a folder that segbench quantize wrote")
    assert_refused(segbench("export", str(tmp_path), *out), "no model_index.json there")
    model = str(zoo / "tiny_unet")
    assert_refused(segbench("export", model, "depth=3", *out), "depth=3", "height")
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "mine").write_text("kept")
    assert_refused(segbench("export", model, *out), "is there already")
    assert (tmp_path / "onnx" / "mine").read_text() == "kept"
