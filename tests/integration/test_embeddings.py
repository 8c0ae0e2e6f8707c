"""Texts encoded in a stage of their own: the same bits, and no encoder in memory afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.cell.cell import Cell
from experiments.cell.sweep import open_sweep
from experiments.config.request import read_request
from experiments.sampling.text_states import encoder_names

FEW = [
    *("dataset.evaluation_prompts=3", "dataset.calibration_prompts=2", "model.batch_size=2"),
    *("model.num_inference_steps=2", "metrics.teacher_forced_prompts=1", "logger=none"),
    *("num_threads=1", "method=rtn"),
]


def made(model: str, out: Path, *words: str) -> Cell:
    given = [f"model={model}", *FEW, f"out={out}", *words]
    (cell,) = open_sweep(read_request(given, multirun=False)).cells
    cell.images.build()
    assert cell.step_errors is not None
    cell.step_errors.build()
    return cell


@pytest.mark.parametrize("model", ["tiny_mmdit", "tiny_flux", "tiny_unet"])
def test_the_images_are_the_same_and_the_encoders_are_gone(model: str, tmp_path: Path) -> None:
    apart = made(model, tmp_path / "apart", "model.embeddings=true")
    inline = made(model, tmp_path / "inline", "model.embeddings=false")
    assert apart.images.hash == inline.images.hash
    names = sorted(path.name for path in inline.images.folder.glob("*.png"))
    assert len(names) == 3
    for name in names:
        written = (apart.images.folder / name).read_bytes()
        assert written == (inline.images.folder / name).read_bytes(), name
    pipeline = apart.around.model.pipeline
    encoders = [n for n in pipeline.components if n.startswith("text_encoder")]
    assert encoders == encoder_names({n: ["library", "class"] for n in encoders})
    for name in encoders:
        assert all(p.is_meta for p in getattr(pipeline, name).parameters()), name
    assert apart.around.model.texts._genuine == {}
    assert list((tmp_path / "apart/stages/texts").iterdir())
    assert not (tmp_path / "inline/stages/texts").exists()


def test_texts_that_were_not_kept_are_encoded_for_the_moment(tmp_path: Path) -> None:
    """The graph is read off a call of a single prompt, which no batch of the stage is."""
    cell = made("tiny_flux", tmp_path, "model.embeddings=true", "method=segquant_a")
    assert cell.around.graph.error == ""
    assert cell.around.model.texts._genuine == {}
