"""A large denoiser is one at a time in memory; a small one is copied: the same results."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
from torch import nn

from evaluation.records import Record
from experiments.cell.cell import Cell
from experiments.cell.sweep import open_sweep
from experiments.config.request import read_request
from experiments.sampling import loaded

FEW = [
    *("dataset.evaluation_prompts=2", "dataset.calibration_prompts=2", "model.batch_size=2"),
    *("model.num_inference_steps=2", "metrics.teacher_forced_prompts=1", "logger=none"),
    *("num_threads=1", "metrics.bootstrap_resamples=200", "model=tiny_flux"),
]


def made(out: Path, *words: str) -> list[Record]:
    sweep = open_sweep(read_request([*FEW, f"out={out}", *words], multirun=True))
    return sweep.run(finished=lambda *_: None)


def told(record: Record) -> dict[str, object]:
    """All but what differs from run to run."""
    metrics = {name: value.value for name, value in record.metrics.items()}
    return {
        "metrics": metrics,
        "kept": record.layers_kept,
        "quantized": record.layers_quantized,
        "bits": record.effective_bits_per_weight,
        "bytes": record.weight_bytes,
        "id": record.run_id,
        "status": record.status,
        "fractions": record.protocol.get("linear_weights_quantized_fraction"),
    }


WORDS = ["method=rtn,segquant_g,ptqd", "bits=w8a8_int8"]


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    return made(tmp_path_factory.mktemp("copied"), *WORDS)


def test_taken_and_read_again_is_the_same_as_copied(
    copied: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaded, "COPIED_BYTES", 0)
    assert [told(record) for record in made(tmp_path, *WORDS)] == [told(r) for r in copied]


@pytest.mark.parametrize("offload", ["model", "blocks"])
def test_an_offloaded_pipeline_gives_the_same(
    copied: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offload: str
) -> None:
    """On a machine without a GPU everything moves from the CPU to the CPU: hooks, no distance."""
    monkeypatch.setattr(loaded, "COPIED_BYTES", 0)
    records = made(tmp_path, *WORDS, f"model.offload={offload}", "model.embeddings=true")
    assert [told(record) for record in records] == [told(r) for r in copied]


def test_no_more_than_one_large_denoiser_is_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the number of cells, and without waiting for Python to look for circles."""
    monkeypatch.setattr(loaded, "COPIED_BYTES", 0)
    alive: list[weakref.ref[nn.Module]] = []
    most = 0
    genuine = loaded.load_part

    def counted(*given: object, **named: object) -> nn.Module:
        nonlocal most
        alive[:] = [one for one in alive if one() is not None]
        read = genuine(*given, **named)  # type: ignore[arg-type]
        alive.append(weakref.ref(read))
        most = max(most, len(alive))
        return read

    monkeypatch.setattr(loaded, "load_part", counted)
    gc.disable()
    try:
        records = made(tmp_path, "method=rtn,gptq,smooth_search", "bits=w8a8_int8,w4a8_int")
    finally:
        gc.enable()
    assert [record.status for record in records] == ["ok"] * 6
    assert most == 1


def test_a_cell_reads_the_float_denoiser_no_more_often_than_it_must(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaded, "COPIED_BYTES", 0)
    reads: list[str] = []
    genuine = loaded.load_part

    def counted(config: object, name: str) -> nn.Module:
        reads.append(name)
        return genuine(config, name)  # type: ignore[arg-type]

    monkeypatch.setattr(loaded, "load_part", counted)
    made(tmp_path, "method=rtn", "bits=w8a8_int8")
    assert len(reads) <= 2  # to take up the checkpoint, and for the trajectory


def test_cells_of_one_model_share_it(tmp_path: Path) -> None:
    sweep = open_sweep(read_request([*FEW, f"out={tmp_path}", "method=rtn,gptq"], multirun=True))
    first, second = sweep.cells
    assert isinstance(first, Cell)
    assert first.around.model is second.around.model
