import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.clip_evaluator import Evaluator
from evaluation.datasets.picture_files import folder_pictures
from evaluation.images import write_png
from evaluation.measure import Measured, measure
from evaluation.metrics.lpips import LPIPS_BACKBONE
from evaluation.metrics.metric_catalogue import all_metrics, chosen_metrics, metric_identity
from evaluation.metrics.metric_inputs import Inputs, MetricSettings
from evaluation.per_image import read_per_image, write_per_image
from evaluation.records import Metric

IDS = [f"p{i:02d}" for i in range(8)]
PROMPTS = {name: f"red {i}" for i, name in enumerate(IDS)}


@pytest.fixture(autouse=True)
def without_lpips_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no_weights"))


def make_inputs(images: Path, evaluator: Evaluator, *, reference: Path, **changes) -> Inputs:
    settings = {
        "evaluator": Path("no such folder"), "prefix": "shapes", "seed": 0, "resamples": 200,
    }  # fmt: skip
    own = {"prompts": PROMPTS, "dataset": None, "step_errors": None}
    own |= {name: changes.pop(name) for name in list(changes) if name in own}
    if own["dataset"] is not None:
        own["dataset"] = folder_pictures(own["dataset"])
    return Inputs(
        images=images, reference=reference, loaded=evaluator,
        settings=MetricSettings(**{**settings, **changes}), **own,
    )  # fmt: skip


def measure_all(
    images: Path, evaluator: Evaluator, *, reference: Path, **changes
) -> dict[str, Measured]:
    return measure(all_metrics(), make_inputs(images, evaluator, reference=reference, **changes))


def run(
    images: Path, evaluator: Evaluator, *, per_image_csv: Path | None = None, **changes
) -> dict[str, Metric]:
    measured = measure_all(images, evaluator, **changes)
    if per_image_csv is not None:
        write_per_image(
            per_image_csv,
            ids=IDS,
            scores={name: own for item in measured.values() for name, own in item.scores.items()},
        )
    return {name: metric for item in measured.values() for name, metric in item.metrics.items()}


def test_the_reference_against_itself(evaluator: Evaluator, image_folder) -> None:
    reference = image_folder("reference", ids=IDS)
    dataset = image_folder("dataset", ids=["x1", "x2", "x3", "x4", "x5"], seed=5)
    metrics = run(reference, evaluator, reference=reference, dataset=dataset)
    assert metrics["psnr"].value == math.inf
    assert metrics["ssim"].value == pytest.approx(1.0)
    assert metrics["fid_shapes_reference"].value == 0.0
    assert metrics["fid_shapes_reference"].standard_error == 0.0
    assert metrics["clip_score_delta"].value == 0.0
    assert metrics["clip_score_delta"].interval == [0.0, 0.0]
    assert metrics["damaged_images"].value == 0
    assert (metrics["fid_shapes_dataset_other_prompts"].value or 0) > 0
    assert "fid" not in metrics
    assert "fid_dataset" not in metrics
    assert {metric.n for name, metric in metrics.items() if metric.value is not None} == {8}
    assert [name for name, metric in metrics.items() if metric.value is None] == [
        *("ms_ssim", "lpips", "lpips_vgg", "clip_score_l14", "image_reward", "hps", "pick_score"),
        *("step_error", "fd_dinov2_reference", "fd_dinov2_dataset"),
        *("cmmd_reference", "cmmd_dataset"),
    ]


def test_more_damage_is_worse_in_every_metric(evaluator: Evaluator, image_folder) -> None:
    reference = image_folder("reference", ids=IDS)
    near = run(image_folder("near", ids=IDS, noise=5), evaluator, reference=reference)
    far = run(image_folder("far", ids=IDS, noise=60), evaluator, reference=reference)
    for name in ("psnr", "psnr_p10", "ssim", "fid_shapes_reference", "kid_shapes_reference"):
        sign = 1 if near[name].higher_is_better else -1
        assert sign * (near[name].value or 0) > sign * (far[name].value or 0), name
    assert near["psnr"].interval is not None
    assert near["psnr"].interval_kind == "mean95"


def test_what_cannot_be_had_is_there_with_its_reason(
    evaluator: Evaluator, image_folder, tmp_path: Path
) -> None:
    reference = image_folder("reference", ids=IDS)
    metrics = run(reference, evaluator, reference=reference, inception=tmp_path / "none")
    assert metrics["lpips"].value is None
    assert LPIPS_BACKBONE in metrics["lpips"].note
    assert metrics["fid_shapes_dataset"].note == "no images of the dataset were given"
    assert metrics["fid_inception_reference"].value is None
    assert "inception-2015-12-05" in metrics["kid_inception_dataset"].note


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
    from evaluation import extractors

    read: list[str] = []
    original = extractors._extract

    def counting(pictures, **arguments):
        read.append(pictures[0].path.parent.name)
        return original(pictures, **arguments)

    monkeypatch.setattr(extractors, "_extract", counting)
    folders = {name: image_folder(name, ids=IDS, noise=n) for name, n in (("a", 3), ("b", 6))}
    reference = image_folder("reference", ids=IDS)
    dataset = image_folder("dataset", ids=["x", "y", "z", "w"], seed=4)
    cache = tmp_path / "cache"
    results = {
        name: run(folder, evaluator, reference=reference, dataset=dataset, cache=cache)
        for name, folder in folders.items()
    }
    assert read == ["a", "reference", "dataset", "b"]
    assert results["b"] == run(
        folders["b"], evaluator, reference=reference, dataset=dataset
    )  # fmt: skip
    assert all(path.suffix == ".npy" for path in cache.iterdir())
    read.clear()
    write_png(reference / "p00.png", np.full((32, 32, 3), 9, dtype=np.uint8))  # a stale reference
    run(folders["a"], evaluator, reference=reference, dataset=dataset, cache=cache)
    assert read == ["reference"]
    for path in cache.iterdir():
        path.write_bytes(b"torn")
    assert run(
        folders["b"], evaluator, reference=reference, dataset=dataset, cache=cache
    ) == run(folders["b"], evaluator, reference=reference, dataset=dataset)  # fmt: skip


def test_per_image_file_allows_paired_comparison(
    evaluator: Evaluator, image_folder, tmp_path: Path
) -> None:
    reference = image_folder("reference", ids=IDS)
    for name, noise in (("near", 5), ("far", 30)):
        run(
            image_folder(name, ids=IDS, noise=noise), evaluator, reference=reference,
            per_image_csv=tmp_path / f"{name}.csv",
        )  # fmt: skip
    head = (tmp_path / "near.csv").read_text().splitlines()[0]
    distances = "fid_shapes_reference,kid_shapes_reference"
    assert head == f"id,psnr,ssim,mdsi,clip,clip_reference,clip_score_delta,{distances}"
    columns = read_per_image(tmp_path / "near.csv")
    assert list(columns)[:4] == ["psnr", "ssim", "mdsi", "clip"]
    assert all(list(values) == IDS for values in columns.values())
    far = read_per_image(tmp_path / "far.csv")["psnr"]
    assert all(columns["psnr"][name] > far[name] for name in IDS)


def test_per_image_round_trip(tmp_path: Path) -> None:
    first = {"psnr": {"x": math.inf, 'y,"z': 1 / 3}, "step_error": {"x": 0.1}}
    write_per_image(tmp_path / "a.csv", ids=["x", 'y,"z'], scores=first)
    assert read_per_image(tmp_path / "a.csv") == first


@pytest.mark.parametrize(
    "text", ["", "name,psnr\nx,1\n", "id,a,a\n", "id,psnr\nx,1\nx,2\n", "id,psnr\nx\n",
             "id,psnr\nx,red\n", "id,psnr\n\n", "id,psnr\nx,1,2\n"],
)  # fmt: skip
def test_a_damaged_per_image_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "torn.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"torn\.csv: damaged"):
        read_per_image(path)


def test_step_errors_count_in_the_order_given(evaluator: Evaluator, image_folder) -> None:
    reference = image_folder("reference", ids=IDS)
    errors = {"p03": [0.1, 0.3], "p01": [0.5, 0.7]}
    measured = measure_all(reference, evaluator, reference=reference, step_errors=errors)
    own = measured["step_error"]
    assert own.scores == {"step_error": pytest.approx({"p03": 0.2, "p01": 0.6})}
    assert list(own.scores["step_error"]) == ["p03", "p01"]
    assert own.metrics["step_error"].n == 2
    assert sorted(own.metrics) == [
        "step_error", "step_error_first", "step_error_last", "step_snr_db",
    ]  # fmt: skip
    none = measure_all(reference, evaluator, reference=reference)["step_error"]
    assert none.metrics["step_error"].note == "metrics.teacher_forced_prompts=0"
    assert none.scores == {}


def test_each_metric_alone_gives_what_all_together_give(evaluator: Evaluator, image_folder) -> None:
    reference, images = image_folder("reference", ids=IDS), image_folder("i", ids=IDS, noise=9)
    together = measure_all(images, evaluator, reference=reference)
    for metric in all_metrics():
        inputs = make_inputs(images, evaluator, reference=reference)
        assert measure([metric], inputs) == {metric.name: together[metric.name]}


def test_images_are_decoded_once_and_only_for_who_looks_at_them(
    evaluator: Evaluator, image_folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evaluation.metrics import metric_inputs

    decoded: list[str] = []
    original = metric_inputs.read_batch

    def counting(folder: Path, ids: list[str], **arguments):
        decoded.append(folder.name)
        return original(folder, ids, **arguments)

    monkeypatch.setattr(metric_inputs, "read_batch", counting)
    reference, images = image_folder("reference", ids=IDS), image_folder("images", ids=IDS)
    metrics = {metric.name: metric for metric in all_metrics()}

    def measured(*names: str, **changes) -> list[str]:
        decoded.clear()
        inputs = make_inputs(images, evaluator, reference=reference, **changes)
        measure([metrics[name] for name in names], inputs)
        return sorted(decoded)

    assert measured("psnr", "ssim", "damaged_images") == ["images", "reference"]
    assert measured("damaged_images") == ["images"]
    assert measured("fid", "kid", "step_error") == []
    # step errors alone need no image at all
    alone = make_inputs(reference / "none", evaluator, reference=reference / "none")
    assert measure([metrics["step_error"]], alone)["step_error"].scores == {}


def test_identity_follows_the_weights(
    evaluator_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = {metric.name: metric for metric in all_metrics()}

    def identity(name: str, **changes) -> dict:
        settings = MetricSettings(**{"evaluator": evaluator_folder, "prefix": "shapes", **changes})
        made = metric_identity(metrics[name], settings)
        assert json.loads(json.dumps(made)) == made
        return made["depends_on"]

    checkpoint = tmp_path / "no_weights" / "hub" / "checkpoints" / LPIPS_BACKBONE
    assert identity("lpips")["weights"] == {LPIPS_BACKBONE: "missing"}
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"weights")
    assert len(identity("lpips")["weights"][LPIPS_BACKBONE]) == 64
    inception = "inception-2015-12-05.pt"
    assert identity("fid")["weights"] == {}
    assert identity("fid", inception=tmp_path)["weights"] == {inception: "missing"}
    assert identity("kid", weights=tmp_path)["weights"] == {inception: "missing"}
    (tmp_path / inception).write_bytes(b"weights")
    asked = identity("kid", inception=tmp_path, file_key=lambda path: f"{len(path.name):064x}")
    assert asked["weights"] == {inception: f"{len(inception):064x}"}
    assert identity("cmmd", weights=tmp_path)["weights"] == {"ViT-L-14-336px.pt": "missing"}
    assert identity("cmmd", batch=8) != identity("cmmd")
    assert identity("hps", device="cuda") != identity("hps", device="cpu")
    assert identity("psnr", device="cuda") == identity("psnr", device="cpu")
    assert identity("fid") != identity("fid", prefix="other")
    assert identity("psnr") != identity("psnr", seed=1)
    assert identity("clip_score")["evaluator"] == identity("fid")["evaluator"]


def test_small_images_have_no_lpips(evaluator: Evaluator, image_folder, weights: Path) -> None:
    reference = image_folder("reference", ids=IDS, size=16)
    metrics = run(reference, evaluator, reference=reference, weights=weights)
    assert metrics["lpips"].value is None
    assert "at least 32 pixels" in metrics["lpips"].note
    assert "bad_case_rate" not in metrics
    assert metrics["ssim"].value == pytest.approx(1.0)
    tiny = image_folder("tiny", ids=IDS, size=8)
    metrics = run(tiny, evaluator, reference=tiny)
    assert "at least 11 pixels a side; these are 8x8" in metrics["ssim"].note
    assert metrics["psnr"].value == math.inf


def test_inception_distances_stand_beside_the_evaluators(
    evaluator: Evaluator, image_folder, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of the settings reaches the extractor; each extractor reads each folder once."""
    from evaluation import extractors

    calls: list[int] = []
    original = extractors._extract

    def counting(pictures, *, extractor):
        calls.append(len(pictures))
        return original(pictures, extractor=extractor)

    monkeypatch.setattr(extractors, "_extract", counting)
    reference, images = image_folder("reference", ids=IDS), image_folder("i", ids=IDS, noise=9)
    inputs = make_inputs(
        images, evaluator, reference=reference, dataset=image_folder("true", ids=IDS, seed=3),
        inception=weights,
    )  # fmt: skip
    chosen = chosen_metrics(["fid", "kid"])
    both = {k: v for item in measure(chosen, inputs).values() for k, v in item.metrics.items()}
    names = {f"{m}_{p}_{a}" for m in ("fid", "kid") for p in ("shapes", "inception")
             for a in ("reference", "dataset_same_prompts")}  # fmt: skip
    assert names <= set(both)
    assert calls == [8] * 6
    fid, kid = (both[f"{name}_inception_dataset_same_prompts"] for name in ("fid", "kid"))
    assert fid.note.startswith("features: inception; biased upwards")
    assert fid.value != both["fid_shapes_dataset_same_prompts"].value
    assert "of two images of one prompt" in kid.note
