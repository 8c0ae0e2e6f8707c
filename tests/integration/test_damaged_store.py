"""Files of a store that are damaged: named, set aside and made again, whoever reads them."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random

import pytest

from experiments.sampling import sample as sampling
from tests import fuzz_store
from tests.fuzz_store import DAMAGES, FinishedStore, call

KINDS = (
    "stages/dataset/*/*.png",
    "stages/images/*/*.png",
    "stages/images/*/manifest.json",
    "stages/step_errors/*/errors.pt",
    "stages/trajectory/*/*.safetensors",
    "stages/calibration/*/statistics/manifest.json",
    "stages/quantized/*/denoiser/tensors.safetensors",
    "stages/features/scores-*.npy",
    "stages/features/features-*.npy",
)
SOME = ("a byte", "half", "empty", "gone", "a folder", "a loop", "another's")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> FinishedStore:
    return fuzz_store.make_store(tmp_path_factory.mktemp("damaged"))


@pytest.fixture
def store(shared: FinishedStore) -> FinishedStore:
    shared.restore()
    return shared


def _measure_all_again(store: FinishedStore) -> None:
    """As for a metric that is made later: everything is read once more."""
    shutil.rmtree(store.out / "cells")
    shutil.rmtree(store.out / "stages" / "metrics")


def _named(path: Path) -> str:
    """What a damaged file is called: a stage by its folder."""
    home = [*reversed(path.parents), path]
    return str(home[[part.name for part in home].index("stages") + 2])


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_a_number_comes_from_is_checked_when_it_is_read(
    store: FinishedStore, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    found = {kind: sorted(store.out.glob(kind)) for kind in KINDS}
    spoilt = [paths[0 if "images/*/manifest" in kind else -1] for kind, paths in found.items()]
    for path in spoilt:
        DAMAGES[damage](path, Random(0))
    verified = fuzz_store.answer("verify", f"out={store.out}")
    assert verified.status == 1
    names = {_named(path) for path in spoilt}
    if damage in ("gone", "a dead link"):  # what a cache lacks is no damage
        names = {name for name in names if "features" not in name}
    assert {name for name in names if name in verified.out} == names
    _measure_all_again(store)
    run = call("run", *store.words)
    assert run.status == 0, run.err
    assert run.out == store.answers["table"]
    assert "Traceback" not in run.err + caplog.text
    assert {name for name in names if name in caplog.text} == names
    assert call("compare", *store.words).out == store.answers["compare"]


@pytest.mark.parametrize("damage", [*SOME, "gone with its folder"])
def test_a_damaged_picture_is_not_shown(store: FinishedStore, damage: str) -> None:
    """The table leaves its row out of the contact sheet and says so; a run makes it again."""
    sheet = store.out / "reports"
    (sheet,) = sheet.glob("*/contact_sheet_*.png")
    whole = sheet.read_bytes()
    pictures = sorted((store.out / "stages" / "images").glob("*/*.png"))
    shown = call("table", *store.words)
    assert sheet.read_bytes() == whole
    for path in (pictures[0], pictures[-1]):
        if damage in DAMAGES:
            DAMAGES[damage](path, Random(0))
        else:
            shutil.rmtree(path.parent)
    table = call("table", *store.words)
    assert (table.status, table.out) == (0, shown.out)
    left = "stages/images" in table.err and "is not what was written" in table.err
    assert left == (damage in DAMAGES), table.err
    assert not sheet.exists() or sheet.read_bytes() != whole or damage not in DAMAGES
    run = call("run", *store.words)
    assert (run.status, run.out) == (0, shown.out)
    if damage in DAMAGES:
        assert sheet.read_bytes() == whole
        assert "not what was written" not in call("table", *store.words).err


def test_a_picture_that_cannot_be_made_again_costs_no_table(
    store: FinishedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = sorted((store.out / "stages" / "images").glob("*/*.png"))[-1]
    path.write_bytes(b"")
    monkeypatch.setattr(sampling, "sample", None)
    run = call("run", *store.words)
    assert (run.status, run.out) == (0, store.answers["table"])
    assert "cannot be made again (TypeError" in run.err


def test_anothers_record_is_not_the_cells(store: FinishedStore) -> None:
    one, two = sorted((store.out / "cells").iterdir())
    for name in ("record.json", "per_image.csv"):
        shutil.copyfile(one / name, two / name)
    verified = fuzz_store.answer("verify", f"out={store.out}")
    assert f"{two / 'record.json'}: the record of {one.name}" in verified.out
    assert "1 done, 1 missing" in call("status", *store.words).out
    assert call("run", *store.words).out == store.answers["table"]


@pytest.mark.parametrize("damage", SOME)
def test_a_killed_run_goes_on_from_what_is_whole(
    store: FinishedStore, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """One picture is done and damaged, the other was never begun; no other is made twice."""
    shutil.rmtree(store.out / "cells")
    shutil.rmtree(store.out / "stages" / "metrics")
    shutil.rmtree(store.out / "stages" / "images")
    genuine, made = sampling.write_png, []

    def write(path: Path, image: object, **more: object) -> None:
        if len(made) == 1:
            raise KeyboardInterrupt
        made.append(path)
        genuine(path, image, **more)

    with monkeypatch.context() as killed:
        killed.setattr(sampling, "write_png", write)
        assert call("run", *store.words).status == 130
    (path,) = made
    assert path.parent.suffix == ".partial"
    DAMAGES[damage](path, Random(0))
    run = call("run", *store.words)
    assert (run.status, run.out) == (0, store.answers["table"])
