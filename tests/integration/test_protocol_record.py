"""What a row must say of its protocol, and what is never quantized: a run of the tiny pipeline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from evaluation.images import load_images
from evaluation.metrics.flat_images import find_damaged
from evaluation.records import Record, read_record
from evaluation.weight_files import weight_files
from experiments.sampling import sample as module
from experiments.store.paths import CONF
from tests.conftest import Answer
from tests.stand_ins import write_stand_ins

Segbench = Callable[..., Answer]
Small = Callable[..., list[str]]

# what a record has to hold, by the words of the protocol
OF_THE_PROTOCOL = (
    *("model_weights", "model_revision", "scheduler", "num_inference_steps", "guidance_scale"),
    *("resolution", "dtype", "attention", "prompts_hash", "calibration_prompts_hash", "n"),
    *("seed_rule", "image_format", "weight_bits", "activation_bits", "weight_granularity"),
    *("activation_granularity", "activation_dynamic", "symmetric", "keep_patterns", "batch_size"),
    *("linear_weights_quantized_fraction", "denoiser_weights_quantized_fraction", "device"),
    *("versions", "evaluator", "judges", "text_encoder_quantized", "vae_quantized"),
)


@pytest.fixture
def record(
    segbench: Segbench, small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Record:
    """With all metrics of a paper, on stand-ins of their weights."""
    table = write_stand_ins(tmp_path / "weights")
    monkeypatch.setattr("evaluation.weight_files.weight_files", lambda: table)
    monkeypatch.setattr("experiments.cell.surroundings.weight_files", lambda: table)
    monkeypatch.setenv("SEGBENCH_WEIGHTS", str(tmp_path / "weights"))
    words = ("metrics=paper", "metrics.teacher_forced_prompts=2", f"out={tmp_path / 'out'}")
    given = small("tiny_mmdit", "method=rtn", "bits=w4a8_int", *words)
    answer = segbench("run", *given)
    assert answer.status == 0, answer.err
    (path,) = (tmp_path / "out" / "cells").glob("*/record.json")
    return read_record(path)


def test_a_row_carries_its_protocol(record: Record) -> None:
    assert [name for name in OF_THE_PROTOCOL if name not in record.protocol] == []
    assert record.protocol["weight_bits"] == 4
    assert record.protocol["activation_bits"] == 8
    assert record.effective_bits_per_weight is not None
    assert 4 < record.effective_bits_per_weight < 8  # scales are counted, and what is kept is not
    assert record.execution == "simulated"
    assert record.calibration_forwards > 0
    assert {"torch", "diffusers"} <= set(record.protocol["versions"])
    assert record.environment
    judges = record.protocol["judges"]
    assert {name: len(sha256) for name, sha256 in judges.items()} == dict.fromkeys(
        weight_files(), 64
    )
    lost = {name for name, metric in record.metrics.items() if metric.value is None}
    assert lost == {"lpips", "ms_ssim"}  # the images are too small
    assert "fid_inception_dataset_same_prompts" in record.metrics
    # every Linear is in one of two lists, and what is kept says why
    assert record.layers_quantized
    assert all(layer["reason"] for layer in record.layers_kept)
    # the denoiser alone: neither text encoders nor the VAE
    assert record.protocol["text_encoder_quantized"] is False
    assert record.protocol["vae_quantized"] is False
    names = [layer["name"] for layer in (*record.layers_quantized, *record.layers_kept)]
    assert not [name for name in names if name.startswith(("text_encoder", "vae"))]


def test_an_image_of_nan_is_drawn_black_counted_and_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scored as data it would be: it is named instead, and its flat picture is found again."""
    from evaluation.datasets.interface import Prompt
    from experiments.config.compose import build, compose_config

    prompts = [Prompt(id=name, text=name) for name in ("fine", "lost")]
    rng = np.random.default_rng(0)

    def sampled(*_: Any, **__: Any) -> list[np.ndarray]:
        images = [rng.uniform(size=(16, 16, 3)) for _ in prompts]
        images[1][:] = np.nan
        images[1][:3] = np.inf
        return images

    monkeypatch.setattr(module, "sample", sampled)
    model = build(compose_config(["model=tiny_mmdit", "method=fp"]), method_name="fp").model
    notes = module.generate_images(
        None, prompts, folder=tmp_path, config=model, seed=0, progress=lambda _: None
    )
    assert notes["not_finite"] == ["lost"]
    found = find_damaged(load_images(tmp_path, ["fine", "lost"]), ids=["fine", "lost"])
    assert list(found) == ["lost"]


def test_models_whose_activations_overflow_in_float16_run_in_bfloat16() -> None:
    models = {path.stem: yaml.safe_load(path.read_text()) for path in CONF.glob("model/*.yaml")}
    large = ("sd3", "flux", "qwen", "sana", "zimage", "krea")
    checked = {n: m["dtype"] for n, m in models.items() if n.startswith(large)}
    assert len(checked) >= 8
    assert {name for name, dtype in checked.items() if dtype == "float16"} == set()
