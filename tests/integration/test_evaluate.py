"""Metrics of finished cells: one that is added later, and one whose code has changed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from evaluation import metrics as package
from evaluation.per_image import read_per_image
from evaluation.records import Record, read_record
from experiments.store import sources
from experiments.store.sources import forget
from tests.conftest import Answer

Segbench = Callable[..., Answer]
Small = Callable[..., list[str]]
SHARPNESS = '''"""How much neighbouring pixels differ."""

from dataclasses import dataclass

from evaluation.metrics.metric_interface import MetricBase, Shown

SHOWN = (Shown(metric="sharpness", title="Sharpness", legend="mean step between neighbours"),)


@dataclass(kw_only=True)
class Sharpness(MetricBase):
    name = "sharpness"
    higher_is_better = True
    columns = ("sharpness",)
    against = "images"
    step: int = 1  # pixels

    def score(self, batch, inputs):
        images = batch.float_images
        steps = images[..., self.step :] - images[..., : -self.step]
        return {"sharpness": steps.abs().mean((1, 2, 3)).double()}


METRIC = Sharpness
'''


@pytest.fixture
def finished(segbench: Segbench, small: Small, tmp_path: Path) -> tuple[list[str], Path]:
    """A sweep of two methods that has run: its words, and its store."""
    words = small("tiny_mmdit", "method=rtn,smoothquant", f"out={tmp_path / 'out'}")
    assert segbench("run", "-m", *words).status == 0
    return words, tmp_path / "out"


@pytest.fixture
def nothing_samples(finished: tuple[list[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished sweep sampled again")

    monkeypatch.setattr("experiments.sampling.sample.sample", refuse)
    monkeypatch.setattr("experiments.sampling.loaded.load_pipeline", refuse)


@pytest.fixture
def clean_modules() -> Iterator[None]:
    yield
    for name in [name for name in sys.modules if name.rpartition(".")[2] == "sharpness"]:
        del sys.modules[name]
    forget()


def _records(out: Path) -> list[Record]:
    return [read_record(path) for path in sorted((out / "cells").glob("*/record.json"))]


def _stamps(out: Path) -> dict[str, int]:
    stages = out / "stages"
    paths = [p for p in stages.rglob("*") if p.is_file() and p.suffix in (".png", ".csv", ".json")]
    return {str(path): path.stat().st_mtime_ns for path in paths}


@pytest.mark.usefixtures("nothing_samples", "clean_modules")
@pytest.mark.parametrize("where", ["in the package", "elsewhere"])
def test_a_metric_added_later_is_one_file_and_makes_no_image_again(
    segbench: Segbench,
    finished: tuple[list[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    words, out = finished
    before, ids = _stamps(out), {record.run_id for record in _records(out)}
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "sharpness.py").write_text(SHARPNESS)
    if where == "elsewhere":
        monkeypatch.syspath_prepend(folder)
        words = [*words, "metrics.also=[sharpness]", "metrics.settings.sharpness.step=2"]
    else:
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        names = "psnr,ssim,mdsi,lpips,clip_score,step_error,fid,kid,damaged_images,sharpness"
        words = [*words, f"metrics.measured=[{names}]"]
    told = segbench("status", "-m", *words)
    assert told.out.count("outdated") >= 2
    answer = segbench("evaluate", "-m", *words)
    assert answer.status == 0, answer.err
    assert "Sharpness" in answer.out
    after = _stamps(out)
    assert {path: after[path] for path in before if "file_hashes" not in path} == {
        path: stamp for path, stamp in before.items() if "file_hashes" not in path
    }
    records = _records(out)
    assert {record.run_id for record in records} == ids
    for record in records:
        assert record.metrics["sharpness"].n == 6
        assert record.metrics["psnr"].value is not None
        scores = read_per_image(out / "cells" / record.run_id / "per_image.csv")
        assert len(scores["sharpness"]) == 6
    compared = segbench("compare", "-m", *words, "--against", "rtn", "--format", "csv")
    assert "sharpness_difference" in compared.out.splitlines()[0]
    assert "sharpness" in segbench("table", "-m", *words, "--format", "csv").out.splitlines()[0]
    assert "(found)" in segbench("run", "-m", *words).err


@pytest.mark.usefixtures("nothing_samples", "clean_modules")
def test_two_sweeps_with_other_settings_of_a_metric_have_rows_of_their_own(
    segbench: Segbench,
    finished: tuple[list[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the same images; the record on disk is the one that was measured last."""
    words, _ = finished
    (tmp_path / "sharpness.py").write_text(SHARPNESS)
    monkeypatch.syspath_prepend(tmp_path)
    sweeps = [
        [*words, "metrics.also=[sharpness]", f"metrics.settings.sharpness.step={step}"]
        for step in (1, 2)
    ]
    verbs = (("table", "--format", "csv"), ("compare", "--against", "rtn"))
    told: list[list[str]] = []
    for sweep in sweeps:
        assert segbench("evaluate", "-m", *sweep).status == 0
        told.append([segbench(verb, "-m", *sweep, *more).out for verb, *more in verbs])
    assert told[0][0] != told[1][0]
    again = segbench("table", "-m", *sweeps[0], "--format", "csv")
    assert [again.out, segbench("compare", "-m", *sweeps[0], "--against", "rtn").out] == told[0]
    assert "other code" not in again.err
    assert "2 done" in segbench("status", "-m", *sweeps[0]).out
    for sweep, answers in zip(sweeps, told, strict=True):
        assert segbench("run", "-m", *sweep).status == 0
        assert segbench("table", "-m", *sweep, "--format", "csv").out == answers[0]


@pytest.mark.usefixtures("nothing_samples", "clean_modules")
def test_a_changed_metric_is_measured_again_and_no_other(
    segbench: Segbench, finished: tuple[list[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By `run` too; the table says of outdated records that they are."""
    words, out = finished
    before = _stamps(out)
    genuine = sources._file_digest

    def changed(path: Path) -> str:
        return "other" if path.name == "psnr.py" else genuine(path)

    monkeypatch.setattr(sources, "_file_digest", changed)
    sources._digest.cache_clear()
    shown = segbench("table", "-m", *words)
    assert shown.status == 0
    assert "2 of 2 cells have metrics of other code" in shown.err
    assert segbench("run", "-m", *words).status == 0
    fresh = {path for path in _stamps(out) if path not in before}
    manifests = [path for path in fresh if path.endswith("manifest.json")]
    names = [json.loads(Path(path).read_text())["key"]["metric"]["name"] for path in manifests]
    assert names == ["psnr", "psnr"]
    assert "other code" not in segbench("table", "-m", *words).err


@pytest.mark.usefixtures("nothing_samples", "clean_modules")
def test_a_metric_that_breaks_costs_no_record(
    segbench: Segbench,
    finished: tuple[list[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words, out = finished
    (tmp_path / "sharpness.py").write_text(SHARPNESS.replace("images[..., self.step :]", "nothing"))
    monkeypatch.syspath_prepend(tmp_path)
    before = {path: path.read_bytes() for path in (out / "cells").glob("*/record.json")}
    answer = segbench("evaluate", "-m", *words, "metrics.also=[sharpness]")
    assert answer.status == 1
    assert "NameError" in answer.out + answer.err
    assert {path: path.read_bytes() for path in before} == before
    told = segbench("status", "-m", *words, "metrics.also=[sharpness]")
    assert told.status == 1
    assert "2 failed" in told.out
    assert "NameError" in told.out
    (tmp_path / "sharpness.py").write_text(SHARPNESS)
    del sys.modules["sharpness"]
    forget()
    assert "2 outdated" in segbench("status", "-m", *words, "metrics.also=[sharpness]").out
    assert "(found)" in segbench("run", "-m", *words).err


def test_what_has_no_images_is_said_and_left_alone(
    segbench: Segbench, finished: tuple[list[str], Path]
) -> None:
    words, out = finished
    more = [word.replace("method=rtn,smoothquant", "method=rtn,gptq") for word in words]
    answer = segbench("evaluate", "-m", *more)
    assert answer.status == 0
    assert "gptq w8a8_int8: no images yet" in answer.err
    assert len(_records(out)) == 2
    nowhere = segbench("evaluate", "-m", *words, f"out={out}2")
    assert nowhere.status == 2
    assert "no finished cell" in nowhere.err


def test_verify_names_what_is_damaged_and_a_run_makes_it_again(
    segbench: Segbench, finished: tuple[list[str], Path]
) -> None:
    _, out = finished
    whole = segbench("verify", f"out={out}")
    assert whole.status == 0
    assert "0 files damaged" in whole.out
    picture = next(iter((out / "stages" / "images").glob("*/*.png")))
    content = bytearray(picture.read_bytes())
    content[-20] ^= 1
    picture.write_bytes(content)
    damaged = segbench("verify", f"out={out}")
    assert damaged.status == 1
    assert f"{picture}: not what was written" in damaged.out
    assert segbench("verify", "out=/nowhere").status == 2


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a digit": lambda path: path.write_text(path.read_text().replace("1", "2", 3)),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "a list": lambda path: path.write_text("[]"),
    "deep": lambda path: path.write_text("[" * 50_000),
    "binary": lambda path: path.write_bytes(bytes(range(256))),
    "gone": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.usefixtures("nothing_samples")
@pytest.mark.parametrize("name", ["record.json", "per_image.csv"])
def test_a_damaged_file_of_a_cell_is_named_and_made_again(
    segbench: Segbench,
    finished: tuple[list[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    """No verb fails for good, none answers other numbers; nothing is sampled for it."""
    words, out = finished
    table = segbench("table", "-m", *words).out
    compared = segbench("compare", "-m", *words, "--against", "rtn").out
    paths = sorted((out / "cells").glob(f"*/{name}"))
    if name == "record.json":  # what a record says of the denoiser needs the model, not a sample
        monkeypatch.undo()
        monkeypatch.setattr("experiments.sampling.sample.sample", None)
    for damage, spoil in DAMAGES.items():
        spoil(paths[0])
        for verb in ("status", "table", "compare"):
            answer = segbench(verb, "-m", *words)
            assert "Traceback" not in answer.err, (damage, verb)
            assert answer.status in (0, 1, 2), (damage, verb)
        again = segbench("run", "-m", *words)
        assert again.status == 0, (damage, again.err)
        assert again.err.count("(found)") == 1, damage
        assert segbench("table", "-m", *words).out == table, damage
        assert segbench("compare", "-m", *words, "--against", "rtn").out == compared, damage


def test_a_skipped_cell_runs_once_its_library_is_there(
    segbench: Segbench, small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = small("tiny_mmdit", "method=rtn,smoothquant", f"out={tmp_path}")
    reason = "some library is not installed"
    with monkeypatch.context() as lacking:
        lacking.setattr("baselines.rtn.RoundToNearest.unsupported", lambda self, bits: reason)
        assert segbench("run", "-m", *words).status == 0
        assert segbench("run", "-m", *words).err.count("(found)") == 2
    again = segbench("run", "-m", *words)
    assert again.err.count("(found)") == 1
    assert {record.status for record in _records(tmp_path)} == {"ok"}


def test_a_sweep_has_one_store(segbench: Segbench, small: Small, tmp_path: Path) -> None:
    answer = segbench("run", "-m", *small("tiny_mmdit", f"out={tmp_path / 'a'},{tmp_path / 'b'}"))
    assert answer.status == 2
    assert "out has 2 values" in answer.err
