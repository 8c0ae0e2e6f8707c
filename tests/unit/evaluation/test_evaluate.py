import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation import paired
from evaluation.clip import Evaluator
from evaluation.evaluate import evaluate_images
from evaluation.images import write_png
from evaluation.per_image import compare_per_image, read_per_image, write_per_image
from evaluation.records import Metric

IDS = [f"p{i:02d}" for i in range(8)]
PROMPTS = {name: f"red {i}" for i, name in enumerate(IDS)}


@pytest.fixture(autouse=True)
def without_lpips_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no_weights"))


def run(images: Path, evaluator: Evaluator, *, reference: Path, **changes) -> dict[str, Metric]:
    arguments = {
        "reference_dir": reference, "dataset_dir": None, "prompts": PROMPTS,
        "evaluator": evaluator, "prefix": "shapes", "lpips": True, "seed": 0, "resamples": 200,
        "spread_resamples": 10,
    }  # fmt: skip
    return evaluate_images(images, **{**arguments, **changes})


def test_the_reference_against_itself(evaluator: Evaluator, image_folder) -> None:
    reference = image_folder("reference", ids=IDS)
    dataset = image_folder("dataset", ids=["x1", "x2", "x3", "x4", "x5"], seed=5)
    metrics = run(reference, evaluator, reference=reference, dataset_dir=dataset)
    assert metrics["psnr"].value == math.inf
    assert metrics["ssim"].value == pytest.approx(1.0)
    assert metrics["fid_shapes_reference"].value == 0.0
    assert metrics["fid_shapes_reference"].standard_error == 0.0
    assert metrics["clip_score_delta"].value == 0.0
    assert metrics["clip_score_delta"].interval == [0.0, 0.0]
    assert metrics["damaged_images"].value == 0
    assert (metrics["fid_shapes_dataset"].value or 0) > 0
    assert "fid" not in metrics
    assert "fid_dataset" not in metrics
    assert {metric.n for name, metric in metrics.items() if name != "lpips"} == {8}


def test_more_damage_is_worse_in_every_metric(evaluator: Evaluator, image_folder) -> None:
    reference = image_folder("reference", ids=IDS)
    near = run(image_folder("near", ids=IDS, noise=5), evaluator, reference=reference)
    far = run(image_folder("far", ids=IDS, noise=60), evaluator, reference=reference)
    for name in ("psnr", "psnr_p10", "ssim", "fid_shapes_reference", "kid_shapes_reference"):
        sign = 1 if near[name].higher_is_better else -1
        assert sign * (near[name].value or 0) > sign * (far[name].value or 0), name
    assert near["psnr"].interval is not None
    assert near["psnr"].interval_kind == "bootstrap95"


def test_what_cannot_be_had_is_there_with_its_reason(
    evaluator: Evaluator, image_folder, tmp_path: Path
) -> None:
    reference = image_folder("reference", ids=IDS)
    metrics = run(reference, evaluator, reference=reference, inception_dir=tmp_path / "none")
    assert metrics["lpips"].value is None
    assert paired.LPIPS_BACKBONE in metrics["lpips"].note
    assert metrics["fid_shapes_dataset"].note == "no images of the dataset were given"
    assert metrics["fid_inception_reference"].value is None
    assert "inception-2015-12-05" in metrics["kid_inception_dataset"].note
    off = run(reference, evaluator, reference=reference, lpips=False)
    assert off["lpips"].note == "LPIPS is switched off"


def test_image_counts_are_never_silently_the_intersection(
    evaluator: Evaluator, image_folder
) -> None:
    reference = image_folder("reference", ids=IDS)
    with pytest.raises(ValueError, match="1 of 8 missing: p07"):
        run(image_folder("fewer", ids=IDS[:-1]), evaluator, reference=reference)
    with pytest.raises(ValueError, match="not asked for: p99"):
        run(reference, evaluator, reference=image_folder("more", ids=[*IDS, "p99"]))


def test_sizes_and_formats_are_checked(evaluator: Evaluator, image_folder) -> None:
    reference = image_folder("reference", ids=IDS)
    with pytest.raises(ValueError, match="nothing is resized"):
        run(image_folder("small", ids=IDS, size=16), evaluator, reference=reference)
    Image.new("RGB", (8, 8)).save(reference / "p00.jpg")
    with pytest.raises(ValueError, match="JPEG"):
        run(reference, evaluator, reference=reference)


def test_black_images_are_counted_and_listed(evaluator: Evaluator, image_folder) -> None:
    reference = image_folder("reference", ids=IDS)
    images = image_folder("images", ids=IDS, noise=5)
    write_png(images / "p03.png", np.zeros((32, 32, 3), dtype=np.uint8))
    metric = run(images, evaluator, reference=reference)["damaged_images"]
    assert metric.value == 1
    assert "p03" in metric.note


def test_settings_reach_the_code(evaluator: Evaluator, image_folder) -> None:
    reference, images = image_folder("reference", ids=IDS), image_folder("i", ids=IDS, noise=9)
    first = run(images, evaluator, reference=reference)
    assert first == run(images, evaluator, reference=reference)
    other = run(images, evaluator, reference=reference, seed=1)
    assert first["psnr"].value == other["psnr"].value
    assert first["psnr"].interval != other["psnr"].interval
    assert (
        first["fid_shapes_reference"].standard_error
        != other["fid_shapes_reference"].standard_error
    )  # fmt: skip
    swapped = dict(zip(IDS, reversed(PROMPTS.values()), strict=True))
    other = run(images, evaluator, reference=reference, prompts=swapped)
    assert first["clip_score"].value != other["clip_score"].value
    other = run(images, evaluator, reference=reference, prefix="mine")
    assert "fid_mine_reference" in other
    assert "fid_shapes_reference" not in other
    with pytest.raises(ValueError, match="bare FID"):
        run(images, evaluator, reference=reference, prefix="")


def test_cache_is_used_and_follows_the_contents(
    evaluator: Evaluator, image_folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evaluation import distribution

    read: list[str] = []
    original = distribution.folder_features

    def counting(folder: Path, **arguments):
        read.append(Path(folder).name)
        return original(folder, **arguments)

    monkeypatch.setattr(distribution, "folder_features", counting)
    folders = {name: image_folder(name, ids=IDS, noise=n) for name, n in (("a", 3), ("b", 6))}
    reference = image_folder("reference", ids=IDS)
    dataset = image_folder("dataset", ids=["x", "y", "z", "w"], seed=4)
    cache = tmp_path / "cache"
    results = {
        name: run(folder, evaluator, reference=reference, dataset_dir=dataset, cache_dir=cache)
        for name, folder in folders.items()
    }
    assert read == ["a", "reference", "dataset", "b"]
    assert results["b"] == run(
        folders["b"], evaluator, reference=reference, dataset_dir=dataset
    )  # fmt: skip
    assert all(path.suffix == ".npy" for path in cache.iterdir())
    read.clear()
    write_png(reference / "p00.png", np.full((32, 32, 3), 9, dtype=np.uint8))  # a stale reference
    run(folders["a"], evaluator, reference=reference, dataset_dir=dataset, cache_dir=cache)
    assert read == ["a", "reference"]
    for path in cache.iterdir():
        path.write_bytes(b"torn")
    assert run(
        folders["b"], evaluator, reference=reference, dataset_dir=dataset, cache_dir=cache
    ) == run(folders["b"], evaluator, reference=reference, dataset_dir=dataset)  # fmt: skip


def test_per_image_file_allows_paired_comparison(
    evaluator: Evaluator, image_folder, tmp_path: Path
) -> None:
    reference = image_folder("reference", ids=IDS)
    for name, noise in (("near", 5), ("far", 30)):
        run(
            image_folder(name, ids=IDS, noise=noise), evaluator, reference=reference,
            per_image_csv=tmp_path / f"{name}.csv",
        )  # fmt: skip
    ids, columns = read_per_image(tmp_path / "near.csv")
    assert ids == IDS
    assert sorted(columns) == ["clip", "clip_reference", "psnr", "ssim"]
    difference = compare_per_image(
        tmp_path / "near.csv", tmp_path / "far.csv", column="psnr", seed=0, resamples=500
    )
    assert difference.low > 0
    assert difference.n == 8
    with pytest.raises(ValueError, match="no column 'lpips'"):
        compare_per_image(tmp_path / "near.csv", tmp_path / "far.csv", column="lpips", seed=0)


def test_per_image_round_trip_and_other_prompts(tmp_path: Path) -> None:
    write_per_image(tmp_path / "a.csv", ids=["x", 'y,"z'], columns={"psnr": [math.inf, 1 / 3]})
    assert read_per_image(tmp_path / "a.csv") == (["x", 'y,"z'], {"psnr": [math.inf, 1 / 3]})
    write_per_image(tmp_path / "b.csv", ids=["x", "q"], columns={"psnr": [1.0, 2.0]})
    with pytest.raises(ValueError, match="different prompts"):
        compare_per_image(tmp_path / "a.csv", tmp_path / "b.csv", column="psnr", seed=0)
    with pytest.raises(ValueError, match="unknown columns"):
        write_per_image(tmp_path / "c.csv", ids=["x"], columns={"fid": [1.0]})
