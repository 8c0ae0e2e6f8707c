"""Features and judges on a GPU are the CPU's but for the last digits: no TF32 on the way."""

from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.images import FolderPicture, write_png
from evaluation.measure import measure
from evaluation.metrics.metric_catalogue import chosen_metrics
from evaluation.metrics.metric_inputs import Inputs, MetricSettings
from tests.stand_ins import write_stand_ins

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]
IDS = [f"p{n}" for n in range(5)]
COLUMNS = ("clip_l14", "image_reward", "hps", "pick_score", "lpips", "lpips_vgg")
NAMES = ["clip_score_l14", "image_reward", "hps", "pick_score", "lpips", "lpips_vgg"]


def images(folder: Path, *, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    for name in IDS:
        coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        write_png(folder / f"{name}.png", np.kron(coarse, np.ones((8, 8, 1), dtype=np.uint8)))
    return folder


def test_scores_and_features_agree_with_the_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = write_stand_ins(tmp_path / "weights")
    monkeypatch.setattr("evaluation.weight_files.weight_files", lambda: table)
    own, reference = (images(tmp_path / str(seed), seed=seed) for seed in (0, 1))

    def inputs(device: str) -> Inputs:
        return Inputs(
            images=own,
            reference=reference,
            prompts={name: f"red circle {name}" for name in IDS},
            settings=MetricSettings(
                weights=tmp_path / "weights", device=device, cache=tmp_path / "kept", batch=2
            ),
        )

    on_cpu, on_gpu = inputs("cpu"), inputs("cuda")
    for each in (on_cpu, on_gpu):
        measure(chosen_metrics(NAMES), each)
    for column in COLUMNS:
        expected = on_cpu.values(column)
        assert on_gpu.values(column) == pytest.approx(expected, rel=1e-3, abs=1e-4), column
    for prefix in ("inception", "clip336", "dinov2"):
        expected_ND = on_cpu.features("images", prefix)
        found_ND = on_gpu.features("images", prefix)
        assert found_ND == pytest.approx(expected_ND, rel=1e-3, abs=1e-3), prefix
    kept = {path.name for path in (tmp_path / "kept").iterdir()}
    assert len([name for name in kept if name.startswith("features-")]) == 2 * 3 * 3
    assert FolderPicture(path=own / "p0.png").sha256() in on_gpu.contents("images", ["p0"])
