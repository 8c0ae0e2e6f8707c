"""A denoiser whose samples are lists and whose timestep is called `t`, through the command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from segquant.core.correction import attach_corrector
from segquant.core.predictions import as_batch, first_of, like_batch, with_first
from tests import micro
from tests.conftest import Answer

QUICK = ("method.iterations=2", "method.calls=1", "bits=w8a8_int8")
METHODS = {
    "rtn": ("bits=w8a8_int8",),
    "gptq": ("bits=w4a8_int", "method.sequential=blocks"),
    "tfmq_fsc": ("bits=w8a8_int8",),
    "adaround": QUICK,
    "qdiffusion": QUICK,
    "ptqd": ("bits=w8a8_int8",),
    "tac": ("bits=w8a8_int8",),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return micro.save_z_image(tmp_path_factory.mktemp("models") / "z_image")


@pytest.mark.parametrize("method", METHODS)
def test_a_cell_of_z_image(
    method: str,
    folder: Path,
    segbench: Callable[..., Answer],
    small: Callable[..., list[str]],
    tmp_path: Path,
) -> None:
    words = [word for word in small("tiny_mmdit") if "max_sequence" not in word]
    few = ("dataset.evaluation_prompts=2", "model.num_inference_steps=2")
    given = [f"model.path={folder}", *few, f"method={method}", *METHODS[method]]
    answer = segbench("run", *words, *given, f"out={tmp_path}", "--json")
    assert answer.status == 0, answer.err
    (record,) = answer.records
    assert record["status"] == "ok", record["reason"]
    assert 0 < record["metrics"]["step_error"]["value"] < 1


class Listed(torch.nn.Module):
    """Samples in and out as a list."""

    def forward(self, x: list[torch.Tensor], t: torch.Tensor) -> tuple[list[torch.Tensor]]:
        return ([sample * 2 for sample in x],)


class Shift:
    """Adds one to what comes in and ten to what goes out."""

    rounds = 1

    def correct_input(self, latents: torch.Tensor, *, step: int) -> torch.Tensor:
        return latents + 1

    def __call__(self, output: torch.Tensor, *, step: int) -> torch.Tensor:
        return output + 10


def test_a_corrector_on_lists() -> None:
    model, x = Listed(), [torch.ones(3, 2, 2), torch.zeros(3, 2, 2)]
    attached = attach_corrector(model, Shift(), timesteps=(1.0, 0.5))  # type: ignore[arg-type]
    for out in (model(x, torch.tensor([0.5, 0.5])), model(x=x, t=torch.tensor([0.5, 0.5]))):
        assert isinstance(out[0], list)
        assert [float(sample.mean()) for sample in out[0]] == [14.0, 12.0]
    assert float(x[0].mean()) == 1.0
    attached.remove()


def test_batches_and_lists_are_one_thing() -> None:
    held = [torch.rand(2, 3), torch.rand(2, 3)]
    batch = as_batch(held)
    assert batch.shape == (2, 2, 3)
    assert as_batch(batch) is batch
    assert [torch.equal(a, b) for a, b in zip(like_batch(held, batch), held, strict=True)]
    assert torch.equal(first_of((held,)), batch)
    assert isinstance(with_first((held, 1), batch)[0], list)
    with pytest.raises(ValueError, match="one shape"):
        as_batch([torch.rand(2, 3), torch.rand(2, 4)])
