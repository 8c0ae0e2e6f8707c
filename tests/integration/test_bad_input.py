"""Bad input: one clear line, exit status 2, nothing written."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Answer

Segbench = Callable[..., Answer]
Small = Callable[..., list[str]]


def _refused(answer: Answer, *words: str) -> None:
    assert answer.status == 2
    assert answer.out == ""
    lines = answer.err.strip().splitlines()
    assert len(lines) == 1, answer.err
    for word in words:
        assert word in lines[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["method=segquant_x"], ["'segquant_x'", "did you mean 'segquant_", "rtn"]),
        (["bits=w3a3"], ["'w3a3'", "w8a8_int8"]),
        (["model=tiny"], ["'tiny'", "tiny_mmdit"]),
        (["methode=rtn"], ["'methode'", "did you mean 'method'"]),
        (["method.alpah=0.3", "method=smoothquant"], ["alpah", "alpha"]),
        (["+method.extra=1"], ["method.extra", "fields are"]),
        (["method=smoothquant", "method.alpha=abc"], ["abc", "alpha"]),
        (["dataset.evaluation_prompts=-3"], ["evaluation_prompts=-3", "at least"]),
        (["model.dtype=float8"], ["'float8'", "float32"]),
        (["method=rtn,gptq"], ["-m"]),
        (["method"], ["'method'", "key=value"]),
        (["method=fp"], ["fp", "w8a8_int8", "w16a16"]),
        (["seed=abc"], ["seed", "abc"]),
        (["seed=-1"], ["seed=-1", "at least 0"]),
        (["dataset.seed=-1"], ["dataset.seed=-1", "at least 0"]),
        (["batch_size=0"], ["'batch_size'; did you mean 'model.batch_size'?"]),
        (["demo"], ["cannot read 'demo'", "did you mean +experiment=demo?"]),
        (["group=a=b"], ["cannot read 'group=a=b'", "quotes"]),
        (["dataset=prompts"], ["dataset.path is not given"]),
        (["method=segquant_a", "method.alpha=2"], ["alpha=2", "[0, 1]"]),
        (["method=smooth_search", "method.alpha_min=-1"], ["alpha_min=-1"]),
        (["device=cuda:99"], ["cuda:99"]),
        (["+experiment=dmeo"], ["'dmeo'", "demo"]),
    ],
)
def test_a_wrong_request(
    segbench: Segbench, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    out = tmp_path / "out"
    _refused(segbench("run", *arguments, f"out={out}"), *words)
    assert not out.exists()


def test_a_method_that_does_no_bits_here_says_so(
    segbench: Segbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("baselines.peers.sdnq.Sdnq.unsupported", lambda self, bits: "not installed")
    answer = segbench("run", "method=peer_sdnq", f"out={tmp_path / 'out'}")
    _refused(answer, "not installed", "(here it does none)")


def test_a_missing_folder(segbench: Segbench, tmp_path: Path) -> None:
    out = tmp_path / "out"
    answer = segbench("run", f"model.path={tmp_path / 'nowhere'}", f"out={out}")
    _refused(answer, "nowhere", "no such folder")
    assert not out.exists()


def test_a_folder_that_is_no_pipeline(segbench: Segbench, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    answer = segbench("run", f"model.path={tmp_path / 'notes'}", f"out={tmp_path / 'out'}")
    _refused(answer, "notes", "model_index.json")


def test_a_pipeline_without_a_denoiser(segbench: Segbench, tmp_path: Path) -> None:
    folder = tmp_path / "speech"
    folder.mkdir()
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "X", "vae": ["d", "V"]}))
    answer = segbench("run", f"model.path={folder}", f"out={tmp_path / 'out'}")
    _refused(answer, "speech", "transformer or unet")


def test_a_pipeline_that_diffusers_cannot_load(
    segbench: Segbench, small: Small, zoo: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(zoo / "tiny_unet", broken)
    (broken / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"not a tensor")
    arguments = [f"model.path={broken}", *small("tiny_unet", f"out={tmp_path / 'out'}")[1:]]
    answer = segbench("run", *arguments)
    assert answer.status == 2
    assert "broken" in answer.err.splitlines()[-1]
    assert not list(tmp_path.rglob("record.json"))


def test_an_argument_that_the_pipeline_does_not_take(
    segbench: Segbench, small: Small, tmp_path: Path
) -> None:
    arguments = small("tiny_unet", "model.call.max_squence_length=3", f"out={tmp_path / 'out'}")
    answer = segbench("run", *arguments)
    assert answer.status == 2
    assert "max_squence_length" in answer.err
    assert not list(tmp_path.rglob("record.json"))


def test_a_read_only_output_folder(segbench: Segbench, small: Small) -> None:
    answer = segbench("run", *small("tiny_mmdit", "out=/proc/segbench"))
    _refused(answer, "/proc/segbench", "cannot write")


def test_no_disk_space(
    segbench: Segbench, small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(
        "experiments.store.folders.shutil.disk_usage", lambda _: usage(10**9, 10**9, 10**6)
    )
    answer = segbench("run", *small("tiny_mmdit", f"out={tmp_path / 'out'}"))
    _refused(answer, "1 MB free", "needed")


def test_the_disk_fills_up_in_the_middle(
    segbench: Segbench, small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from evaluation import images

    written = 0
    genuine = images.write_png

    def full(*args: object, **kwargs: object) -> None:
        nonlocal written
        written += 1
        if written > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        genuine(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr("experiments.sampling.sample.write_png", full)
    arguments = small("tiny_mmdit", "method=rtn", f"out={tmp_path / 'out'}")
    _refused(segbench("run", *arguments), "no space left", "goes on where it stopped")
    assert not list(tmp_path.rglob("record.json"))
    monkeypatch.setattr("experiments.sampling.sample.write_png", genuine)
    assert segbench("run", *arguments).status == 0


def test_a_prompt_file_with_a_bad_line(segbench: Segbench, small: Small, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"id": "a", "prompt": "x"}\nnot json\n')
    arguments = small("tiny_mmdit", "dataset=prompts", f"dataset.path={path}", f"out={tmp_path}")
    _refused(segbench("run", *arguments), "mine.jsonl:2", "JSON")
