"""Every yaml of a real model on its small twin: the same classes, the same path, seconds each."""

from __future__ import annotations

import json
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.images import write_png
from experiments.config.compose import build, compose_config
from experiments.store.paths import resolve_path
from experiments.zoo.published import PUBLISHED
from experiments.zoo.twins import make_twin
from tests.conftest import Answer

Segbench = Callable[..., Answer]

FEW = (
    "model.height=64",
    "model.width=64",
    "model.dtype=float32",
    "model.num_inference_steps=2",
    "dataset.evaluation_prompts=2",
    "dataset.calibration_prompts=2",
    "metrics.teacher_forced_prompts=1",
    "metrics.bootstrap_resamples=100",
    "num_threads=1",
    "logger=none",
)


# What their calls take beside a prompt, or in its place, by the pipeline's class.
ROWS: dict[str, str] = {
    "DiTPipeline": "class_labels",
    "StableDiffusion3ControlNetPipeline": "control_image",
    "FluxControlNetPipeline": "control_image",
    "StableDiffusionXLControlNetPipeline": "image",
}


def of_the_twin(name: str, folder: Path) -> list[str]:
    apart = make_twin(name, folder)
    words = [f"model={name}", f"model.path={folder}"]
    words += [f"model.parts.{part}={place}" for part, place in apart.items()]
    if "max_sequence_length" in build(compose_config(words), method_name="").model.call:
        words.append("model.call.max_sequence_length=192")  # as many bytes hold any prompt here
    return words


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_twin_is_made_of_the_published_classes(
    segbench: Segbench, name: str, tmp_path: Path
) -> None:
    words = of_the_twin(name, tmp_path / "twin")
    published = PUBLISHED[name]
    index = json.loads((tmp_path / "twin" / "model_index.json").read_text())
    assert index["_class_name"] == published.pipeline.replace("ControlNet", "")
    networks = {"vae", *published.encoders, *published.denoisers} - {"controlnet"}
    assert all((tmp_path / "twin" / part / "config.json").is_file() for part in networks)
    size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert size < 4e6
    model = build(compose_config(words), method_name="").model
    assert all(resolve_path(place).is_dir() for place in model.parts.values())
    answer = segbench("inspect", *words, "--json")
    assert answer.status == 0, answer.err
    layers = json.loads(answer.out)["layers"]
    linears = [layer["name"] for layer in layers if layer["kind"] == "linear"]
    for pattern in model.keep:
        assert any(fnmatchcase(layer, pattern) for layer in linears), pattern
    assert any(len(layer["output_segments"]) > 1 for layer in layers)


def test_a_controlnet_that_is_named_is_quantized_too(
    segbench: Segbench, zoo: Path, tmp_path: Path
) -> None:
    words = [*of_the_twin("sd3_canny", tmp_path / "twin"), *rows_of("sd3_canny", tmp_path)]
    words += ["model.denoisers=[transformer,controlnet]", "method=rtn", "--json"]
    places = [f"metrics.evaluator={zoo / 'evaluator'}", f"out={tmp_path / 'out'}"]
    answer = segbench("run", *words, *FEW, *places)
    assert answer.status == 0, answer.err
    (record,) = answer.records
    names = [layer["name"] for layer in record["layers_quantized"]]
    for part in ("transformer", "controlnet"):
        assert f"{part}.transformer_blocks.0.norm1.linear" in names
        assert f"{part}.context_embedder" not in names  # the yaml's pattern holds for both


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_twin_runs_from_end_to_end(
    segbench: Segbench, name: str, zoo: Path, tmp_path: Path
) -> None:
    words = [*of_the_twin(name, tmp_path / "twin"), *rows_of(name, tmp_path)]
    places = [f"metrics.evaluator={zoo / 'evaluator'}", f"out={tmp_path / 'out'}"]
    answer = segbench("run", "-m", *words, *FEW, *places, "method=rtn,segquant_a", "--json")
    assert answer.status == 0, answer.err
    keep = build(compose_config(words), method_name="").model.keep
    errors = {}
    for record in answer.records:
        assert record["status"] == "ok"
        assert record["model"] == "twin"  # another folder than the yaml's is another model
        check_kept(record, keep)
        errors[record["method"]] = record["metrics"]["step_error"]["value"]
    assert set(errors) == {"rtn", "segquant_a"}
    assert all(0 < error < 1 for error in errors.values()), errors
    assert errors["rtn"] != errors["segquant_a"]


def rows_of(name: str, folder: Path) -> list[str]:
    """A data set with what the pipeline's call takes beside a prompt, where it takes more."""
    needed = ROWS.get(PUBLISHED[name].pipeline)
    if needed is None:
        return []
    rows: list[dict[str, Any]] = []
    for number, split in enumerate(["evaluation", "evaluation", "calibration", "calibration"]):
        row = {"id": f"p{number}", "split": split, "prompt": f"a red circle {number}"}
        if needed == "class_labels":
            rows.append({"id": row["id"], "split": split, needed: number})
            continue
        edges = np.zeros((64, 64, 3), np.uint8)
        edges[8 * number + 4 :: 8] = 255
        write_png(folder / f"{number}.png", edges)
        rows.append({**row, needed: f"{number}.png"})
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return ["dataset=prompts", f"dataset.path={folder / 'rows.jsonl'}"]


def check_kept(record: dict[str, Any], keep: dict[str, str]) -> None:
    """Every pattern of the yaml kept a layer, and the record gives the yaml's reason."""
    for pattern, reason in keep.items():
        said = [
            layer["reason"]
            for layer in record["layers_kept"]
            if fnmatchcase(layer["name"], pattern) and layer["reason"].startswith("model.keep")
        ]
        assert said, pattern
        assert all(reason in one for one in said), said


def test_a_twin_is_the_same_from_the_same_seed(tmp_path: Path) -> None:
    weights = Path("transformer") / "diffusion_pytorch_model.safetensors"
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        make_twin("pixart_sigma", tmp_path / folder, seed=seed)
    one, again, other = ((tmp_path / folder / weights).read_bytes() for folder in "abc")
    assert one == again
    assert one != other


def test_a_name_that_has_no_twin_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"did you mean sd3_medium\?"):
        make_twin("sd3_mediun", tmp_path / "twin")
