"""Every stage's key holds the code that decides its content, and no other."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from experiments.cell.cell import Cell
from experiments.cell.stage import Stage
from experiments.cell.sweep import open_sweep
from experiments.config.request import read_request
from experiments.store import sources
from experiments.store.paths import ROOT
from experiments.store.sources import PACKAGES, code_digest, code_files, forget

PROJECT_FILES = sorted(
    str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")
)
PRESENTS = ("evaluation/report/", "experiments/verbs/", "experiments/cluster/", "experiments/cli")


def _cells(out: Path) -> dict[str, Cell]:
    """Cells that differ in what they run; nothing is loaded."""
    lines = {
        "fp": ["method=fp", "bits=w16a16"],
        "rtn": ["method=rtn"],
        "segquant": ["method=segquant_a"],
        "rtn on kernels": ["method=rtn", "execution=kernel"],
        "corrected": ["method=ptqd", "bits=w4a8_int"],
        "replayed": ["method=segquant_g", "method.sequential=blocks"],
    }
    return {
        name: open_sweep(
            read_request([f"out={out}", "num_threads=1", *line], multirun=False)
        ).cells[0]
        for name, line in lines.items()
    }


def _stages(cell: Cell) -> dict[str, Stage]:
    stages: dict[str, Stage | None] = {
        "reference": cell.reference,
        "trajectory": cell.trajectory,
        "true images": cell.true_images,
        "quantized": cell.quantized,
        "images": cell.images,
        "step errors": cell.step_errors,
    }
    if cell.quantized is not None:
        stages |= {
            "calibration": cell.quantized.calibration(),
            "inputs": cell.quantized.inputs(),
            "corrector": getattr(cell.denoiser, "corrector", None),
        }
    stages |= {f"metric {stage.metric.name}": stage for stage in cell.metrics}
    return {name: stage for name, stage in stages.items() if stage is not None}


def _all_stages(out: Path) -> dict[tuple[str, str], Stage]:
    cells = _cells(out)
    return {
        (row, name): stage for row, cell in cells.items() for name, stage in _stages(cell).items()
    }


@pytest.fixture
def copy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The project's sources in a folder where they may be changed."""
    root = tmp_path / "project"
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("models", "results", "configs", "__pycache__")
        shutil.copytree(ROOT / package, root / package, ignore=ignored)
    monkeypatch.setattr(sources, "ROOT", root)
    forget()
    yield root
    monkeypatch.undo()
    forget()


@pytest.fixture
def changed(copy: Path, tmp_path: Path) -> Callable[..., set[tuple[str, str]]]:
    """Appends to a source (or replaces in it); tells which stages then have another hash."""
    before = {key: stage.hash for key, stage in _all_stages(tmp_path / "out").items()}

    def change(name: str, old: str = "", new: str = "") -> set[tuple[str, str]]:
        path = copy / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1) if old else f"{text}\n# a word\n")
        forget()
        after = {key: stage.hash for key, stage in _all_stages(tmp_path / "out").items()}
        path.write_text(text)
        forget()
        return {key for key, hash_ in after.items() if before[key] != hash_}

    return change


def test_a_kernel_counts_in_kernel_rows_and_in_no_other(
    changed: Callable[..., set[tuple[str, str]]],
) -> None:
    for name in ("segquant/kernels/product.py", "segquant/kernels/triton_product.py"):
        rows = changed(name)
        assert {row for row, _ in rows} == {"rtn on kernels"}
        assert {("rtn on kernels", "images"), ("rtn on kernels", "step errors")} <= rows
        assert ("rtn on kernels", "quantized") not in rows
        assert ("rtn on kernels", "reference") not in rows
    assert ("rtn on kernels", "images") in changed("segquant/kernels/table.json", "{", "{ ")


def test_what_writes_images_counts_in_every_image(
    changed: Callable[..., set[tuple[str, str]]], tmp_path: Path
) -> None:
    rows = changed("evaluation/images.py")
    for row in _cells(tmp_path / "out"):
        assert {(row, "reference"), (row, "images")} <= rows


def test_all_of_the_calibration_counts(changed: Callable[..., set[tuple[str, str]]]) -> None:
    for name in (
        "experiments/sampling/calibrate.py",
        "experiments/cell/calibration_pass.py",
        "segquant/core/memory.py",
        "segquant/core/input_statistics.py",
        "segquant/graph/example_inputs.py",
    ):
        rows = changed(name)
        assert {("rtn", "calibration"), ("rtn", "quantized"), ("rtn", "images")} <= rows, name
        assert not {name for _, name in rows} & {"reference", "trajectory", "true images"}, name


def test_what_loads_a_pipeline_counts_in_all_that_it_samples(
    changed: Callable[..., set[tuple[str, str]]],
) -> None:
    for name in ("experiments/sampling/loaded.py", "experiments/sampling/pipelines.py"):
        rows = {stage for row, stage in changed(name) if row == "corrected"}
        sampling = {"reference", "trajectory", "calibration", "inputs", "corrector", "images"}
        assert sampling <= rows, name
        assert "true images" not in rows


def test_a_methods_own_file_counts_for_it_alone(
    changed: Callable[..., set[tuple[str, str]]],
) -> None:
    assert {row for row, _ in changed("segquant/method.py")} == {"segquant", "replayed"}
    assert {row for row, _ in changed("segquant/graph/rules.py")} == {"segquant", "replayed"}
    assert {row for row, _ in changed("baselines/ptqd.py")} == {"corrected"}


def test_a_metrics_file_counts_for_it_alone(
    changed: Callable[..., set[tuple[str, str]]],
) -> None:
    assert {name for _, name in changed("evaluation/metrics/psnr.py")} == {"metric psnr"}


def test_a_legend_counts_nowhere(changed: Callable[..., set[tuple[str, str]]]) -> None:
    assert not changed("evaluation/metrics/psnr.py", 'title="PSNR dB"', 'title="PSNR in dB"')
    assert not changed("evaluation/report/columns.py")
    assert not changed("evaluation/report/tables.py")
    assert not changed("experiments/verbs/table.py")
    assert not changed("experiments/config/compose.py")
    assert not changed("experiments/cell/progress.py")


def test_the_run_id_survives_a_legend_and_a_metrics_code(copy: Path, tmp_path: Path) -> None:
    def ids() -> dict[str, str]:
        forget()
        return {name: cell.run_id for name, cell in _cells(tmp_path / "out").items()}

    before = ids()
    for name in ("evaluation/metrics/psnr.py", "evaluation/report/columns.py"):
        with (copy / name).open("a") as stream:
            stream.write("\n# a word\n")
    assert ids() == before
    with (copy / "segquant/kernels/product.py").open("a") as stream:
        stream.write("\n# a word\n")
    after = ids()
    assert {name for name in before if before[name] != after[name]} == {"rtn on kernels"}


def test_for_every_stage_each_module_of_its_closure_counts_and_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stages = _all_stages(tmp_path)
    modules = {stage.modules() for stage in stages.values()}
    closures = {names: set(code_files(*names)) for names in modules}
    digests = {names: code_digest(*names) for names in modules}
    genuine = sources._file_digest
    for changed_file in PROJECT_FILES:
        path = ROOT / changed_file
        monkeypatch.setattr(
            sources, "_file_digest", lambda p, path=path: "changed" if p == path else genuine(p)
        )
        sources._digest.cache_clear()
        for names in modules:
            differs = code_digest(*names) != digests[names]
            assert differs == (changed_file in closures[names]), (names, changed_file)
    monkeypatch.undo()
    forget()
    for (row, name), stage in stages.items():
        closure = closures[stage.modules()]
        own = type(stage).__module__.replace(".", "/") + ".py"
        assert own in closure
        assert not [path for path in closure if path.startswith(PRESENTS)], (row, name)
