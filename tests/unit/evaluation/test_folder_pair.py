"""B against A: what is said of each metric, and which thresholds break."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.images import write_png
from evaluation.metrics.metric_catalogue import all_metrics
from evaluation.metrics.metric_inputs import MetricSettings
from evaluation.metrics.metric_interface import MetricBase, Shown
from evaluation.metrics.psnr import Psnr
from evaluation.metrics.ssim import Ssim
from evaluation.report.folder_page import Page, folder_table, markdown, shown_names, verdict
from evaluation.report.folder_pair import FolderPair, PairInputs, Said, compare_folders
from evaluation.report.render import to_csv, to_latex
from evaluation.report.thresholds import check_thresholds

COUNT = 24
NAMES = [f"p{n:02}" for n in range(COUNT)]
PAGE = Page(a="fp", b="int4", sizes="16x16")
Folders = Callable[..., Path]


@dataclass(kw_only=True)
class Brightness(MetricBase):
    """Like a judge's score: each folder has its own."""

    name, columns, against, higher_is_better = "brightness", ("brightness",), "images", True

    def score(self, batch, inputs) -> Mapping[str, torch.Tensor]:
        return {"brightness": 100 * batch.float_images.mean((1, 2, 3))}


SHOWN = (Shown(metric="brightness", title="Brightness", legend="mean of all pixels, in %"),)
METRIC = Brightness


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    """Makes a folder of pictures: the same for all, with noise and light of its own."""

    def make(
        name: str, *, noise: float = 0.0, light: float = 0.0, noisy: int = COUNT, seed: int = 1
    ) -> Path:
        generator = np.random.default_rng(seed)
        for number, key in enumerate(NAMES):
            side = 16 if number < 20 else 20  # of two sizes
            base = np.random.default_rng(number).uniform(60, 190, (side, side, 3))
            base = base + (generator.normal(0, noise, base.shape) if number < noisy else 0) + light
            write_png(tmp_path / name / f"{key}.png", base.clip(0, 255).astype(np.uint8))
        return tmp_path / name

    return make


def inputs(a: Path, b: Path, tmp_path: Path) -> PairInputs:
    return PairInputs(
        images=b,
        reference=a,
        prompts=dict.fromkeys(NAMES),
        settings=MetricSettings(evaluator=tmp_path / "none", prefix="none", resamples=500),
        sizes={name: (16, 16) if n < 20 else (20, 20) for n, name in enumerate(NAMES)},
    )


def compared(a: Path, b: Path, noise: Path | None, tmp_path: Path, *metrics) -> FolderPair:
    return compare_folders(
        metrics or (Psnr(), Ssim()),
        pair=inputs(a, b, tmp_path),
        noise=None if noise is None else inputs(a, noise, tmp_path),
    )


def said(pair: FolderPair) -> dict[str, Said]:
    return {line.name: line.said for line in pair.lines}


def test_without_a_floor_a_distance_is_told_and_not_judged(
    folders: Folders, tmp_path: Path
) -> None:
    pair = compared(folders("a"), folders("b", noise=6), None, tmp_path)
    assert said(pair) == {"psnr": Said.unjudged, "ssim": Said.unjudged}
    assert pair.identical == 0
    words = verdict(pair, PAGE)
    assert "(0 of 24 identical)" in words
    assert "--noise FOLDER" in words


def test_beyond_and_within_the_noise(folders: Folders, tmp_path: Path) -> None:
    a, floor = folders("a"), folders("n", noise=3)
    far = compared(a, folders("far", noise=6, seed=2), floor, tmp_path)
    assert said(far) == {"psnr": Said.beyond, "ssim": Said.beyond}
    page = Page(a="fp", b="int4", sizes="two sizes", noise="again")
    assert "beyond the noise floor (again) in PSNR dB, SSIM" in verdict(far, page)
    alike = compared(a, folders("alike", noise=3, seed=3), floor, tmp_path)
    assert said(alike) == {"psnr": Said.within, "ssim": Said.within}
    assert verdict(alike, page).startswith("Nothing tells B from A, held against the noise floor")
    near = compared(a, folders("near", noise=1.5, seed=4), floor, tmp_path)
    assert said(near)["psnr"] is Said.nearer


def test_identical_folders_are_one(folders: Folders, tmp_path: Path) -> None:
    pair = compared(folders("a"), folders("b"), None, tmp_path)
    assert said(pair) == {"psnr": Said.identical, "ssim": Said.identical}
    assert verdict(pair, PAGE) == "B is A: all 24 images are equal in every pixel."
    text = markdown(pair, PAGE)
    assert "NaN" not in text
    assert not any(one.broken for one in check_thresholds(pair, {"psnr": 90, "ssim": 1}))


def test_a_floor_that_is_mostly_a_itself_is_held_against_by_signs(
    folders: Folders, tmp_path: Path
) -> None:
    """Its PSNR is infinite but for one image: once, that one alone was compared, and p was 1."""
    floor = folders("n", noise=1, noisy=1)
    pair = compared(folders("a"), folders("b", noise=6), floor, tmp_path)
    assert pair.noise_identical == COUNT - 1
    assert said(pair) == {"psnr": Said.beyond, "ssim": Said.beyond}
    (psnr,) = (line for line in pair.lines if line.name == "psnr")
    assert psnr.p_value == pytest.approx(2 * 0.5**COUNT)
    assert psnr.difference is None


def test_a_metric_of_each_folder_is_paired(folders: Folders, tmp_path: Path) -> None:
    metrics = all_metrics(also=[__name__])
    chosen = [m for m in metrics if m.name in ("psnr", "brightness")]
    a = folders("a")
    pair = compared(a, folders("b", noise=1, light=-5), None, tmp_path, *chosen)
    line = next(line for line in pair.lines if line.name == "brightness")
    assert line.difference is not None
    assert line.of_a is not None
    assert line.of_b.value == pytest.approx(line.of_a + line.difference.value)
    assert line.difference.value == pytest.approx(-500 / 255, abs=0.1)
    assert line.difference.high - line.difference.low < 0.2  # paired: between images it is 10
    assert line.said is Said.worse
    assert "worse than A in Brightness" in verdict(pair, PAGE)
    drops = {1.9: True, 2.0: False}
    for allowed, broken in drops.items():
        assert check_thresholds(pair, {"brightness": allowed})[0].broken is broken
    other = compared(a, folders("c", noise=1, light=5), None, tmp_path, *chosen)
    assert said(other)["brightness"] is Said.better
    assert not check_thresholds(other, {"brightness": 0.0})[0].broken


def test_thresholds_break_by_the_nearer_end(folders: Folders, tmp_path: Path) -> None:
    pair = compared(folders("a"), folders("b", noise=6), None, tmp_path)
    (psnr,) = (line for line in pair.lines if line.name == "psnr")
    assert psnr.estimate is not None
    low, high = psnr.estimate.low, psnr.estimate.high
    for allowed, broken in ((high + 0.1, True), ((low + high) / 2, False), (low - 1, False)):
        (one,) = check_thresholds(pair, {"psnr": allowed})
        assert one.broken is broken, allowed
        assert one.near == high
    with pytest.raises(ValueError, match=r"lpips: not measured here; .* psnr, ssim"):
        check_thresholds(pair, {"lpips": 0.1})


def test_what_is_within_the_noise_breaks_no_threshold(folders: Folders, tmp_path: Path) -> None:
    floor = folders("n", noise=3)
    pair = compared(folders("a"), folders("b", noise=3, seed=3), floor, tmp_path)
    (one,) = check_thresholds(pair, {"psnr": 60})
    assert not one.broken
    assert one.why == "kept: within the noise"


def test_a_batch_is_of_one_size_and_fits_memory(folders: Folders, tmp_path: Path) -> None:
    a = folders("a")
    pair = inputs(a, a, tmp_path)
    sizes = [tuple(batch.images.shape) for batch in pair.batches()]
    assert sizes == [(20, 16, 16, 3), (4, 20, 20, 3)]
    pair.sizes = dict.fromkeys(NAMES, (1024, 1024))
    assert [len(batch.ids) for batch in pair.batches()] == [4] * 6


def test_the_page_shows_verdict_table_and_images(folders: Folders, tmp_path: Path) -> None:
    pair = compared(folders("a"), folders("b", noise=6), None, tmp_path)
    page = Page(a="fp", b="int4", sizes="two sizes", sheet="sheet.png")
    page.checked = check_thresholds(pair, {"psnr": 90})
    text = markdown(pair, page)
    lines = text.splitlines()
    assert lines[0].startswith("**B's images are not A's")
    assert lines[2] == "B = int4 against A = fp; n = 24 pairs of two sizes."
    assert "- Threshold psnr = 90: **broken**; the interval's near end is" in text
    assert "![worst, median and best pairs, with |B - A|](sheet.png)" in text
    worst = min(NAMES, key=lambda name: pair.scores["psnr"][name])
    assert f"Farthest from A: {worst} (PSNR dB " in text
    captions = shown_names(pair)
    assert next(iter(captions.values())).startswith(f"worst: {worst}, PSNR dB ")
    assert len(captions) == 6
    table = folder_table(pair, page)
    assert to_csv(table).splitlines()[0].startswith("metric,a,a_low,a_high,b,b_low")
    assert r"\begin{tabular}{lrrrrl}" in to_latex(table)
