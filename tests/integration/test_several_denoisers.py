"""Pipelines of which several networks are quantized, through the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.images import write_png
from tests import micro_several
from tests.conftest import Answer

BOTH = "model.denoisers=[transformer,controlnet]"
WORDS = (
    "model.num_inference_steps=2",
    "model.batch_size=2",
    "dataset.evaluation_prompts=2",
    "dataset.calibration_prompts=2",
    "metrics.teacher_forced_prompts=2",
    "metrics.bootstrap_resamples=200",
    "num_threads=1",
    "logger=none",
)
Run = Callable[..., Answer]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return micro_several.save_sd3_controlnet(tmp_path_factory.mktemp("models") / "sd3_control")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two prompts to evaluate on and two to calibrate with, each with a control image."""
    folder = tmp_path_factory.mktemp("rows")
    written = []
    for number, split in enumerate(["evaluation"] * 2 + ["calibration"] * 2):
        pixels = np.random.default_rng(number).integers(0, 255, (16, 16, 3), dtype=np.uint8)
        write_png(folder / f"{number}.png", pixels)
        row = {"id": f"p{number}", "prompt": f"a square {number}", "split": split}
        written.append(json.dumps({**row, "control_image": f"{number}.png"}))
    (folder / "rows.jsonl").write_text("\n".join(written))
    return folder / "rows.jsonl"


@pytest.fixture
def controlled(folder: Path, rows: Path, zoo: Path, out: Path, segbench: Run) -> Run:
    """`segbench run` of the pipeline with a ControlNet."""

    def call(*words: str) -> Answer:
        given = [f"model.path={folder}", f"metrics.evaluator={zoo / 'evaluator'}", *WORDS]
        given += ["dataset=prompts", f"dataset.path={rows}", "model.call.max_sequence_length=24"]
        given += ["model.height=16", "model.width=16", f"out={out}"]
        return segbench("run", *given, *words)

    return call


def _records(answer: Answer) -> dict[str, dict[str, Any]]:
    assert answer.status == 0, answer.err
    return {record["method"]: record for record in answer.records}


def _layers(record: dict[str, Any], part: str) -> list[dict[str, Any]]:
    return [layer for layer in record["layers_quantized"] if layer["name"].startswith(f"{part}.")]


def _step_error(record: dict[str, Any]) -> float:
    return float(record["metrics"]["step_error"]["value"])


def test_both_are_quantized(controlled: Run) -> None:
    methods = "method=rtn,segquant_a,segquant_g,tac"
    answer = controlled("-m", BOTH, methods, "bits=w4a8_int", "--json")
    records = _records(answer)
    for name in ("rtn", "segquant_a", "segquant_g"):
        record = records[name]
        assert record["status"] == "ok", record["reason"]
        assert record["protocol"]["denoisers"] == ["transformer", "controlnet"]
        assert record["protocol"]["denoisers_left_out"] == []
        parts = [len(_layers(record, part)) for part in ("transformer", "controlnet")]
        assert parts == [36, 20]
        assert record["protocol"]["linears_quantized"] == 56
        assert record["calibration_forwards"] == 10  # 2 batches x 2 steps x 2 networks, and 2 more
        assert 0 < _step_error(record) < 0.1
    segmented = {layer["name"]: layer for layer in records["segquant_a"]["layers_quantized"]}
    for part in ("transformer", "controlnet"):
        layer = segmented[f"{part}.transformer_blocks.0.norm1_context.linear"]
        assert layer["output_segments"] == [32] * 6
    assert "controlnet.controlnet_blocks.0" in segmented
    assert records["tac"]["status"] == "skipped"
    assert "transformer and controlnet are quantized" in records["tac"]["reason"]
    alone = controlled(BOTH, "method=tac", "bits=w4a8_int")
    assert alone.status == 2
    assert len(alone.err.strip().splitlines()) == 1
    assert "learned step by step" in alone.err


def test_what_is_not_chosen_stays_and_is_said(controlled: Run, out: Path) -> None:
    """Each choice gives other images, so that what is quantized is what the pipeline runs."""
    errors, images = {}, {}
    for chosen in ("null", "[controlnet]", "[transformer,controlnet]"):
        answer = controlled(f"model.denoisers={chosen}", "method=rtn", "bits=w4a8_int", "--json")
        record = _records(answer)["rtn"]
        errors[chosen] = _step_error(record)
        images[chosen] = record["metrics"]["psnr"]["value"]
        kept = {layer["name"]: layer["reason"] for layer in record["layers_kept"]}
        left_out = record["protocol"]["denoisers_left_out"]
        assert left_out == {"null": ["controlnet"], "[controlnet]": ["transformer"]}.get(chosen, [])
        assert [name for name in kept if kept[name].startswith("not chosen")] == left_out
        names = [layer["name"] for layer in record["layers_quantized"]]
        assert all(name.startswith(("transformer.", "controlnet.")) for name in names) == (
            chosen == "[transformer,controlnet]"
        )
    assert len(set(errors.values())) == len(set(images.values())) == 3
    # of equal numbers of calls: the mean over both is between them
    both = errors.pop("[transformer,controlnet]")
    assert both == pytest.approx(sum(errors.values()) / 2, rel=1e-6)


def test_the_unquantized_ones_repeat_their_own_calls(controlled: Run) -> None:
    record = _records(controlled(BOTH, "method=fp", "bits=w16a16", "--json"))["fp"]
    assert _step_error(record) < 1e-10  # tensors read from a file lie elsewhere in memory


def test_methods_that_run_the_stored_calls(controlled: Run) -> None:
    learned = ("method.iterations=2", "method.calls=1", "bits=w4a8_int", "--json")
    record = _records(controlled(BOTH, "method=adaround", *learned))["adaround"]
    assert record["status"] == "ok", record["reason"]
    for part in ("transformer", "controlnet"):
        assert {layer["rounding"] for layer in _layers(record, part)} == {"adaround"}
    words = ("method=gptq", "method.sequential=blocks", "bits=w4a8_int", "--json")
    record = _records(controlled(BOTH, *words))["gptq"]
    assert record["status"] == "ok", record["reason"]
    assert any("other denoisers" in item for item in record["method_elements"]["left_out"])


def test_kernels_and_keep(controlled: Run) -> None:
    """A pattern of a network's own names holds in each of several."""
    words = (BOTH, "method=rtn", "bits=w8a8_int8", "execution=auto", "--json")
    record = _records(controlled(*words, "+model.keep={context_embedder:sensitive}"))["rtn"]
    assert record["execution"] == "kernel"
    kept = {layer["name"]: layer["reason"] for layer in record["layers_kept"]}
    for part in ("transformer", "controlnet"):
        assert kept[f"{part}.context_embedder"] == "model.keep: context_embedder (sensitive)"
    answer = controlled(*words, "--dry-run", "+model.keep={no_such:why}")
    assert answer.status == 2
    assert "'no_such' names no layer" in answer.err


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ("[controlnet_2]", "has no controlnet_2; it has controlnet, transformer"),
        ("[transformer,vae]", "has no vae; it has controlnet, transformer"),
        ("[]", "nothing would be quantized"),
    ],
)
def test_what_is_not_there_is_refused(chosen: str, said: str, controlled: Run) -> None:
    answer = controlled(f"model.denoisers={chosen}", "method=rtn", "--dry-run")
    assert answer.status == 2
    assert len(answer.err.strip().splitlines()) == 1, answer.err
    assert said in answer.err


def test_several_control_networks_in_one_are_refused(
    folder: Path, controlled: Run, tmp_path: Path
) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    index["controlnet"] = ["diffusers", "SD3MultiControlNetModel"]
    copied = tmp_path / "multi"
    copied.mkdir()
    for path in folder.iterdir():
        (copied / path.name).symlink_to(path)
    (copied / "model_index.json").unlink()
    (copied / "model_index.json").write_text(json.dumps(index))
    answer = controlled(f"model.path={copied}", BOTH, "method=rtn", "--dry-run")
    assert answer.status == 2
    assert "several networks in one" in answer.err


def test_inspect_shows_all_that_would_be_quantized(folder: Path, segbench: Run) -> None:
    def names(*words: str) -> list[str]:
        answer = segbench("inspect", f"model.path={folder}", *words, "--json")
        assert answer.status == 0, answer.err
        layers = json.loads(answer.out)["layers"]
        assert all(layer["shared_input"] in {x["name"] for x in layers} for layer in layers)
        return [layer["name"] for layer in layers if layer["kind"] == "linear"]

    both = names(BOTH)
    assert len(both) == 56
    assert names() == [n.removeprefix("transformer.") for n in both if n.startswith("transf")]
    alone = names("model.denoisers=[controlnet]")
    assert alone == [n.removeprefix("controlnet.") for n in both if n.startswith("controlnet.")]


def test_a_prior_and_a_unet_within_a_combined_pipeline(
    segbench: Run, zoo: Path, tmp_path: Path
) -> None:
    """The pipelines within it run what is quantized: its own attributes alone would not do."""
    folder = micro_several.save_kandinsky(tmp_path / "kandinsky")
    given = [f"model.path={folder}", f"metrics.evaluator={zoo / 'evaluator'}", *WORDS]
    given += ["model.height=64", "model.width=64", "model.call.prior_num_inference_steps=2"]
    given += [f"out={tmp_path / 'out'}", "bits=w4a8_int", "--json"]
    found = {}
    for chosen in ("null", "[prior_prior,unet]"):
        words = ("run", *given, f"model.denoisers={chosen}", "method=segquant_a")
        found[chosen] = _records(segbench(*words))["segquant_a"]
        assert found[chosen]["status"] == "ok", found[chosen]["reason"]
        assert found[chosen]["metrics"]["psnr_identical"]["value"] == 0
    unet, both = found.values()
    assert unet["protocol"]["denoisers_left_out"] == ["prior_prior"]
    assert unet["metrics"]["psnr"]["value"] != both["metrics"]["psnr"]["value"]
    assert min(len(_layers(both, part)) for part in ("prior_prior", "unet")) > 5
    assert len(_layers(both, "unet")) == len(unet["layers_quantized"])
