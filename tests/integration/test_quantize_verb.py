"""`segbench quantize`: a pipeline's folder whose images are those that were measured."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, PipelineQuantizationConfig
from PIL import Image

import segquant.diffusers  # diffusers knows the format from here on
from experiments.cell.sweep import open_sweep
from experiments.config.request import read_request
from experiments.sampling.sample import generate_images
from experiments.store.paths import ROOT
from experiments.verbs.words import quiet
from segquant.core.linear import QuantLinear
from tests import micro_several
from tests.conftest import Answer, assert_refused

Run = Callable[..., Answer]
Small = Callable[..., list[str]]
FRESH = """
import sys
import torch
import segquant.diffusers
from diffusers import DiffusionPipeline, PipelineQuantizationConfig
folder, out = sys.argv[1:]
pipeline = DiffusionPipeline.from_pretrained(folder)
generator = torch.Generator().manual_seed(3)
made = pipeline("a red circle", height=16, width=16, num_inference_steps=2, generator=generator,
    output_type="pt").images
torch.save(made, out)
ours = {name.split(".")[0] for name in sys.modules} & {"experiments", "evaluation", "baselines"}
assert not ours, ours
"""


@pytest.mark.parametrize(
    ("model", "method", "bits", "dtype"),
    [
        ("tiny_mmdit", "segquant_a", "w8a8_int8", "float32"),
        ("tiny_unet", "svdquant", "w4a8_int", "float32"),
        ("tiny_flux", "rtn", "w4a4_int", "bfloat16"),
    ],
)
def test_a_finished_cells_images_come_out_of_its_folder(
    segbench: Run, small: Small, tmp_path: Path, model: str, method: str, bits: str, dtype: str
) -> None:
    asked = (f"method={method}", f"bits={bits}", f"model.dtype={dtype}")
    words = small(model, *asked, f"out={tmp_path / 'runs'}")
    run = segbench("run", *words)
    assert run.status == 0, run.err
    folder = tmp_path / "made"
    made = segbench("quantize", *words, "--to", str(folder), "--json")
    assert made.status == 0, made.err
    assert json.loads(made.out)["weight_bytes"] > 0
    card = (folder / "README.md").read_text()
    assert f"`{method}`" in card
    assert "Step error %" in card
    assert "PSNR dB" in card
    (cell,) = open_sweep(read_request(words, multirun=False)).cells
    pipeline = DiffusionPipeline.from_pretrained(folder, torch_dtype=getattr(torch, dtype))
    pipeline.set_progress_bar_config(disable=True)
    layers = [m for m in pipeline.components.values() if isinstance(m, torch.nn.Module)]
    assert any(isinstance(m, QuantLinear) for part in layers for m in part.modules())
    drawn = tmp_path / "drawn"
    drawn.mkdir()
    generate_images(
        pipeline,
        cell.around.dataset.evaluation,
        drawn,
        config=cell.config.model,
        seed=cell.config.seed,
        progress=quiet().part("images"),
    )
    for path in sorted(cell.images.build().path.glob("*.png")):
        assert (drawn / path.name).read_bytes() == path.read_bytes()


def test_a_fresh_process_needs_segquant_and_diffusers_alone(
    segbench: Run, small: Small, tmp_path: Path
) -> None:
    words = small("tiny_unet", "method=segquant_a", f"out={tmp_path / 'runs'}")
    folder = tmp_path / "made"
    made = segbench("quantize", *words, "--to", str(folder), "--shard", "100KB")
    assert made.status == 0, made.err
    assert len(list((folder / "unet").glob("*.safetensors"))) > 1
    assert "Not yet: `segbench run " in (folder / "README.md").read_text()
    given = [str(folder), str(tmp_path / "out.pt")]
    subprocess.run([sys.executable, "-c", FRESH, *given], check=True, capture_output=True)
    pipeline = DiffusionPipeline.from_pretrained(folder)
    generator = torch.Generator().manual_seed(3)
    asked = {"height": 16, "width": 16, "num_inference_steps": 2, "output_type": "pt"}
    wanted = pipeline("a red circle", generator=generator, **asked).images
    assert torch.equal(torch.load(tmp_path / "out.pt"), wanted)


def test_several_denoisers_are_saved_each_in_its_place(segbench: Run, tmp_path: Path) -> None:
    model = micro_several.save_sd3_controlnet(tmp_path / "sd3_control")
    words = [
        *(f"model.path={model}", "model.denoisers=[transformer,controlnet]", "method=rtn"),
        *(f"out={tmp_path / 'runs'}", "logger=none", "num_threads=1"),
    ]
    folder = tmp_path / "made"
    rows = tmp_path / "rows.jsonl"
    _write_rows(rows)
    given = ["dataset=prompts", f"dataset.path={rows}", "dataset.calibration_prompts=2"]
    given += ["dataset.evaluation_prompts=2", "model.num_inference_steps=1", "model.batch_size=2"]
    made = segbench("quantize", *words, *given, "--to", str(folder))
    assert made.status == 0, made.err
    pipeline = DiffusionPipeline.from_pretrained(folder)
    for part in (pipeline.transformer, pipeline.controlnet):
        assert any(isinstance(module, QuantLinear) for module in part.modules())


def _write_rows(path: Path) -> None:
    Image.new("RGB", (16, 16), "red").save(path.with_name("c.png"))
    lines = [
        {
            "id": f"p{number}",
            "prompt": f"a square {number}",
            "split": split,
            "control_image": "c.png",
        }
        for number, split in enumerate(["evaluation"] * 2 + ["calibration"] * 2)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))


def test_what_no_other_program_could_load_is_refused(
    segbench: Run, small: Small, tmp_path: Path
) -> None:
    folder, out = tmp_path / "made", f"out={tmp_path / 'runs'}"

    def asked(*words: str) -> Answer:
        return segbench("quantize", *small("tiny_unet", *words, out), "--to", str(folder))

    assert_refused(asked("method=fp"), "method=fp", "quantizes nothing")
    assert_refused(asked("method=ptqd"), "corrects the denoiser's output")
    assert_refused(asked("method=rtn", "--shard", "big"), "--shard big", "500MB")
    assert not folder.exists()
    folder.mkdir()
    (folder / "mine").write_text("kept")
    assert_refused(asked("method=rtn"), "is there already")
    assert (folder / "mine").read_text() == "kept"


def test_the_section_of_the_readme_runs_as_it_stands(
    segbench: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    section = (ROOT / "README.md").read_text().split("## Out of the harness", 1)[1]
    shell, code = (re.search(rf"```{kind}\n(.*?)```", section, re.S) for kind in ("sh", "python"))
    assert shell is not None
    assert code is not None
    assert len((shell.group(1) + code.group(1)).splitlines()) < 25
    monkeypatch.chdir(tmp_path)
    few = ["dataset.calibration_prompts=4", "model.num_inference_steps=2", "logger=none"]
    few.append("method.sample_rows=64")
    for line in shell.group(1).splitlines():
        program, *words = shlex.split(line)
        if program == "segbench":
            more = [*few, f"out={tmp_path / 'runs'}"] if words[0] == "quantize" else []
            made = segbench(*words, *more)
            assert made.status == 0, made.err
        else:
            subprocess.run([sys.executable, *words], check=True, capture_output=True)
    assert Image.open(tmp_path / "circle.png").size == (64, 64)
    given = code.group(1).replace("num_inference_steps=4", "num_inference_steps=1")
    names: dict[str, Any] = {}
    exec(compile(given, "README.md", "exec"), names)
    assert names["image"].size == (64, 64)
    assert (tmp_path / "unet-w8a8-again" / "unet").is_dir()


def test_a_part_of_a_pipeline_is_quantized_while_it_is_loaded(tmp_path: Path, zoo: Path) -> None:
    mapping = {"unet": segquant.diffusers.SegQuantConfig(weights=8, activations=8)}
    asked = {"height": 16, "width": 16, "num_inference_steps": 2, "output_type": "pt"}
    pipeline = DiffusionPipeline.from_pretrained(
        zoo / "tiny_unet",
        torch_dtype=torch.float32,
        quantization_config=PipelineQuantizationConfig(quant_mapping=mapping),
    )
    assert any(isinstance(module, QuantLinear) for module in pipeline.unet.modules())
    pipeline.save_pretrained(tmp_path / "made")
    again = DiffusionPipeline.from_pretrained(tmp_path / "made", torch_dtype=torch.float32)
    made = [
        pipe("a red circle", generator=torch.Generator().manual_seed(0), **asked).images
        for pipe in (pipeline, again)
    ]
    assert torch.equal(*made)
