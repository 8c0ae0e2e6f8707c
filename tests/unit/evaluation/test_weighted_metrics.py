"""Every metric that reads weights, by its real code on files of the same layout."""

import dataclasses
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation import weight_files
from evaluation.datasets.picture_files import folder_pictures
from evaluation.feature_cache import cached_array
from evaluation.measure import Measured, measure
from evaluation.metrics import clip_score_l14, kept_scores
from evaluation.metrics.clip_score import clip_scores
from evaluation.metrics.cmmd import clip_distance
from evaluation.metrics.metric_catalogue import all_metrics, chosen_metrics
from evaluation.metrics.metric_inputs import Inputs, MetricSettings
from evaluation.records import Metric
from evaluation.weight_files import WeightFile, Weights

IDS = [f"p{i:02d}" for i in range(6)]
PROMPTS = {name: f"red circle {i}" for i, name in enumerate(IDS)}
JUDGES = ["clip_score_l14", "image_reward", "hps", "pick_score"]
DISTANCES = ["fid", "kid", "cmmd", "fd_dinov2"]
WEIGHTED = [*JUDGES, "lpips", "lpips_vgg", *DISTANCES]


def measured(
    image_folder,
    names: list[str],
    *,
    prompts: dict[str, str] | None = None,
    noise: float = 9.0,
    settings: MetricSettings,
) -> dict[str, Measured]:
    prompts = PROMPTS if prompts is None else prompts
    true = folder_pictures(image_folder("true", ids=IDS, seed=7, size=64))
    inputs = Inputs(
        images=image_folder(f"images{noise}", ids=IDS, noise=noise, size=64),
        reference=image_folder("reference", ids=IDS, size=64),
        dataset=true,
        prompts=prompts,
        settings=settings,
    )
    return measure(chosen_metrics(names), inputs)


def entries(found: dict[str, Measured]) -> dict[str, Metric]:
    return {name: metric for item in found.values() for name, metric in item.metrics.items()}


def test_every_metric_with_weights_gives_a_number(image_folder, weights: Path) -> None:
    settings = MetricSettings(weights=weights, resamples=200, batch=4)
    found = measured(image_folder, WEIGHTED, settings=settings)
    values = entries(found)
    assert [name for name, metric in values.items() if metric.value is None] == []
    for judge in JUDGES:
        assert values[judge].interval is not None
        assert values[f"{judge}_delta"].interval is not None
        assert set(found[judge].scores[f"{judge}_delta"]) == set(IDS)
    for name in ("fid_inception", "kid_inception", "cmmd", "fd_dinov2"):
        for against in ("reference", "dataset_same_prompts"):
            assert values[f"{name}_{against}"].interval_kind == "sd"
            scores = [
                item.scores[f"{name}_{against}"]
                for item in found.values()
                if f"{name}_{against}" in item.scores
            ]
            assert np.mean(list(scores[0].values())) == pytest.approx(
                values[f"{name}_{against}"].value
            )
    assert values["fid_inception_dataset_same_prompts"].against == "dataset"
    assert values["image_reward_bad_case_rate"].n == 6
    assert values["lpips_vgg_p90"].value is not None


def test_without_weights_each_names_its_file_bytes_sha256_and_place(
    image_folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    nowhere = measured(image_folder, WEIGHTED, settings=MetricSettings())
    (tmp_path / "empty").mkdir()
    settings = MetricSettings(weights=tmp_path / "empty")
    empty = measured(image_folder, WEIGHTED, settings=settings)
    for metric in chosen_metrics(WEIGHTED):
        file = metric.outside_files(settings)[0]
        assert file.path == tmp_path / "empty" / file.path.name
        for entry, found in empty[metric.name].metrics.items():
            assert found.value is None
            assert f"no weights at {file.path}" in found.note
            assert f"sha256 {file.sha256}" in found.note
            assert file.size is None or f"{file.size} bytes" in found.note
            assert found.note.endswith("put it there")
            said = nowhere[metric.name].metrics[entry].note
            assert "metrics.weights=FOLDER" in said or str(tmp_path / "hub") in said


def test_settings_without_an_evaluator_measure_all_else(image_folder, weights: Path) -> None:
    metric = entries(
        measured(image_folder, ["clip_score", "psnr"], settings=MetricSettings(weights=weights))
    )
    assert metric["clip_score"].note.startswith("no evaluator was named")
    assert metric["psnr"].value is not None
    assert MetricSettings().prefixes == ["inception"]
    own = MetricSettings(evaluator=Path("e"), prefix="shapes")
    assert own.prefixes == ["shapes"]
    assert MetricSettings(evaluator=Path("e"), weights=weights).prefixes == [
        "evaluator",
        "inception",
    ]
    with pytest.raises(ValueError, match="batch=0"):
        MetricSettings(batch=0)


def test_the_published_clip_score_has_quick_gelu(image_folder, weights: Path) -> None:
    """With plain GELU the same weights give another number, and nothing says so."""
    from evaluation.images import load_images
    from evaluation.judges.clip_files import load_clip_file

    settings = MetricSettings(weights=weights, resamples=100)
    found = measured(image_folder, ["clip_score_l14"], settings=settings)
    scores = list(found["clip_score_l14"].scores["clip_l14"].values())
    images = load_images(image_folder("images9.0", ids=IDS, noise=9.0, size=64), IDS)

    def by(quick_gelu: bool) -> list[float]:
        tower = load_clip_file(
            weights / clip_score_l14.FILE, key="", quick_gelu=quick_gelu, device=torch.device("cpu")
        )
        return clip_scores(tower, images, list(PROMPTS.values())).tolist()

    assert scores == pytest.approx(by(True), abs=1e-4)
    assert max(abs(a - b) for a, b in zip(scores, by(False), strict=True)) > 0.01


@pytest.mark.parametrize(
    ("name", "tokens"),
    [("clip_score_l14", 77), ("image_reward", 35), ("hps", 77), ("pick_score", 77)],
)
def test_cut_prompts_are_counted_for_each_judge(
    image_folder, weights: Path, name: str, tokens: int
) -> None:
    long = {**PROMPTS, IDS[0]: "red " * 90, IDS[1]: "red " * 40}
    settings = MetricSettings(weights=weights, resamples=100)
    note = entries(measured(image_folder, [name], prompts=long, settings=settings))[name].note
    expected = 2 if tokens == 35 else 1
    assert note.endswith(f"; {expected} of 6 prompts cut at {tokens} tokens")


def test_scores_are_kept_a_batch_at_a_time_and_shared_by_rows(
    image_folder, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was killed goes on; the reference is judged once for all rows."""
    judged: list[str] = []

    def counting(cache, *, kind, parts, compute):
        def computed():
            judged.append(kind)
            if len(judged) == 2:
                raise KeyboardInterrupt
            return compute()

        return cached_array(cache, kind=kind, parts=parts, compute=computed)

    monkeypatch.setattr(kept_scores, "cached_array", counting)
    settings = MetricSettings(weights=weights, resamples=100, batch=3, cache=tmp_path / "kept")
    with pytest.raises(KeyboardInterrupt):
        measured(image_folder, ["hps"], settings=settings)
    first = entries(measured(image_folder, ["hps"], settings=settings))
    assert len(judged) == 2 + 1 + 2  # what was broken off, the other batch, two of the reference
    other = entries(measured(image_folder, ["hps"], noise=40.0, settings=settings))
    assert len(judged) == 5 + 2  # its own images alone
    assert entries(measured(image_folder, ["hps"], settings=settings)) == first
    assert len(judged) == 7
    swapped = dict(zip(IDS, reversed(PROMPTS.values()), strict=True))
    measured(image_folder, ["hps"], prompts=swapped, settings=settings)
    assert len(judged) == 7 + 4
    assert other["hps"].value != first["hps"].value


def test_a_file_that_does_not_fit_costs_its_own_metrics_alone(
    image_folder, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table's bytes and sha256, and no network's tensors: a reason; all else is measured."""
    table = dict(weight_files.weight_files())
    (tmp_path / "weights").mkdir()
    for name in ("HPS_v2.1_compressed.pt", "dinov2_vitl14_pretrain.pth"):
        path = tmp_path / "weights" / name
        torch.save({"patch_embed.proj.weight": torch.zeros(64, 3, 14, 14)}, path)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        table[name] = dataclasses.replace(table[name], bytes=path.stat().st_size, sha256=sha256)
    monkeypatch.setattr(weight_files, "weight_files", lambda: table)
    settings = MetricSettings(weights=tmp_path / "weights", resamples=100)
    found = entries(measured(image_folder, ["psnr", "hps", "fd_dinov2"], settings=settings))
    assert "no CLIP with a ViT" in found["hps"].note
    assert "pos_embed" in found["fd_dinov2_reference"].note
    assert found["psnr"].value is not None


def test_more_noise_is_further_away(image_folder, weights: Path) -> None:
    settings = MetricSettings(weights=weights, resamples=100)
    names = ["lpips", "lpips_vgg", "cmmd", "fd_dinov2", "mdsi"]
    near, far = (
        entries(measured(image_folder, names, noise=noise, settings=settings))
        for noise in (4.0, 60.0)
    )
    for name in ("lpips", "lpips_vgg", "mdsi", "cmmd_reference", "fd_dinov2_reference"):
        assert (near[name].value or 0) < (far[name].value or 0), name


def test_cmmd_is_a_thousand_times_the_distance_of_unit_features() -> None:
    """Two points that lie opposite: |x - y|^2 = 4, k = exp(-4 / 200), by hand."""
    a, b = np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([[-1.0, 0.0], [-1.0, 0.0]])
    assert clip_distance(a, b, False).value == pytest.approx(2000 * (1 - np.exp(-0.02)))
    assert clip_distance(a, a, False).value == pytest.approx(0.0)


# the table of files -------------------------------------------------------------------------------


def test_every_file_of_the_table_is_read_and_described() -> None:
    read = {name for metric in all_metrics() for name in metric.weights}
    read |= {"inception-2015-12-05.pt"}  # where FID and KID are asked for it
    table = weight_files.weight_files()
    assert set(table) == read
    for known in table.values():
        assert known.sha256 is None or len(known.sha256) == 64
        assert known.source.startswith("https://")
        assert known.licence
        torchvisions = known.name.partition(".")[0].rpartition("-")[2]
        if known.name.endswith(".pth") and len(torchvisions) == 8:
            assert known.sha256 is not None
            assert known.sha256.startswith(torchvisions)


def test_another_folder_counts_where_the_first_lacks_the_file(tmp_path: Path) -> None:
    more = tmp_path / "more"
    more.mkdir()
    name = "ViT-L-14.pt"
    files = Weights(folder=tmp_path, more={name: more})
    assert files.path(name) == tmp_path / name
    (more / name).write_bytes(b"x")
    assert files.path(name) == more / name
    assert files.identity(name) != "missing"
    (tmp_path / name).write_bytes(b"y")
    assert files.path(name) == tmp_path / name


# the real ones ------------------------------------------------------------------------------------

_REAL = os.environ.get("SEGBENCH_WEIGHTS")


def real(name: str) -> WeightFile:
    """The file's description; skips where the folder lacks it."""
    if _REAL is None:
        pytest.skip("SEGBENCH_WEIGHTS names no folder with real weights")
    if not (Path(_REAL) / name).is_file():
        pytest.skip(f"{_REAL} holds no {name}")
    return weight_files.weight_files()[name]


@pytest.mark.parametrize("metric", chosen_metrics(WEIGHTED), ids=lambda metric: metric.name)
def test_real_weights_are_the_publishers_and_give_a_number(metric, image_folder) -> None:
    for file in metric.outside_files(MetricSettings()):
        known = real(file.path.name)
        assert Weights(folder=Path(str(_REAL)), more={}).need(known.name).is_file()
    settings = MetricSettings(weights=Path(str(_REAL)), resamples=100, batch=2)
    values = entries(measured(image_folder, [metric.name], settings=settings))
    assert [name for name, found in values.items() if found.value is None] == []


def test_real_clip_scores_tell_a_red_square_from_a_blue_one() -> None:
    from evaluation.judges.clip_files import load_clip_file

    real(clip_score_l14.FILE)
    tower = load_clip_file(
        Path(str(_REAL)) / clip_score_l14.FILE,
        key="",
        quick_gelu=True,
        device=torch.device("cpu"),
    )
    images = torch.zeros(2, 224, 224, 3, dtype=torch.uint8)
    images[0, ..., 0], images[1, ..., 2] = 255, 255
    red, blue = "a red square", "a blue square"
    own = clip_scores(tower, images, [red, blue])
    other = clip_scores(tower, images, [blue, red])
    assert (own > other + 1).all()
    assert (own > 15).all()
