"""`check`: all that lacks, a line each; what a run will take, held against the run itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import Answer
from tests.fake_hub import TOKEN, FakeHub, point_at, serving

Segbench = Callable[..., Answer]
Small = Callable[..., list[str]]


def findings(answer: Answer, *, state: str = "missing") -> list[dict[str, Any]]:
    return [item for item in json.loads(answer.out)["findings"] if item["state"] == state]


def stages(answer: Answer) -> dict[str, dict[str, Any]]:
    return {row["stage"]: row for row in json.loads(answer.out)["stages"]}


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., list[str]]:
    """A model's yaml of one's own, all of its fields, and the words that choose it."""

    def write(option: str, **fields: Any) -> list[str]:
        folder = tmp_path / "own" / "conf"
        (folder / "model").mkdir(parents=True, exist_ok=True)
        given = Path("conf/model/folder.yaml").read_text().splitlines()
        known = {line.partition(":")[0]: line for line in given if not line.startswith("#")}
        known |= {key: f"{key}: {json.dumps(value)}" for key, value in fields.items()}
        (folder / "model" / f"{option}.yaml").write_text("\n".join(known.values()) + "\n")
        return [f"model={option}", "--config-dir", str(folder)]

    return write


@pytest.fixture
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of a machine without models, token or network."""
    cache = tmp_path / "cache"
    point_at("http://127.0.0.1:9", cache, monkeypatch)
    return cache


def test_a_run_that_can_start(segbench: Segbench, small: Small, tmp_path: Path) -> None:
    given = small("tiny_flux", f"out={tmp_path / 'out'}", "method=rtn")
    answer = segbench("check", *given)
    assert answer.status == 0, answer.err
    assert answer.out.splitlines()[-1] == "1 cell: a run can start now"
    assert not (tmp_path / "out").exists()
    shown = segbench("check", *given, "--json")
    groups = {item["group"] for item in findings(shown, state="ok")}
    assert groups >= {"weights", "data", "metrics", "model", "devices", "memory", "disk"}
    assert json.loads(shown.out)["ready"] is True
    (row,) = [f for f in findings(shown, state="unknown") if f["group"] == "hours"]
    assert row["command"].endswith("--measure")


def test_forwards_and_files_are_those_of_the_run(
    segbench: Segbench, small: Small, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    given = ["-m", *small("tiny_flux", f"out={out}", "method=rtn,gptq", "metrics.measured=[psnr]")]
    before = stages(segbench("check", *given, "--json"))
    assert segbench("run", *given).status == 0
    for kind, notes in (("calibration", "forwards"), ("trajectory", None)):
        (path,) = (out / "stages" / kind).glob("*/manifest.json")
        manifest = json.loads(path.read_text())
        files = sum(entry["bytes"] for entry in manifest["files"].values())
        if notes:
            assert before[kind]["forwards"] == manifest["notes"][notes]
            assert files <= before[kind]["disk_bytes"] < 10 * files  # few rows are seen here
        assert before[kind]["count"] == 1
    checkpoints = [path.stat().st_size for path in out.glob("stages/quantized/*/*/*.safetensors")]
    assert len(checkpoints) == 2
    said = before["quantized"]["disk_bytes"]
    assert abs(said - sum(checkpoints)) < 0.15 * sum(checkpoints)
    pictures = list(out.glob("stages/images/*/*.png"))
    assert len(pictures) == 3 * 6
    assert sum(path.stat().st_size for path in pictures) <= 2 * before["images"]["disk_bytes"]
    after = segbench("check", *given, "--json")
    assert after.status == 0
    assert all(row["there"] == row["count"] for row in stages(after).values())
    assert all(row["forwards"] == 0 for row in stages(after).values())
    other = stages(segbench("check", *given, "bits=w4a8_int", "--json"))
    assert (other["reference"]["there"], other["calibration"]["there"]) == (1, 1)
    assert other["quantized"]["there"] == 0
    assert other["quantized"]["hours"] > 0  # as long as at the bits that are there
    assert other["images"]["hours"] > 0


def test_a_few_steps_tell_the_hours(
    segbench: Segbench, small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    given = small("tiny_unet", f"out={out}", "method=rtn", "--json")
    answer = segbench("check", *given, "--measure")
    assert answer.status == 0, answer.err
    known = stages(answer)
    assert all(known[name]["hours"] > 0 for name in ("reference", "calibration", "images"))
    assert known["quantized"]["hours"] is None
    ratio = known["images"]["hours"] / known["reference"]["hours"]
    assert ratio == pytest.approx((6 + 4) / 6)  # the cell's step errors are of four prompts
    assert not out.exists()


def test_steps_that_fail_are_a_line(
    segbench: Segbench, small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr("experiments.readiness.measured_steps.sample", fails)
    given = small("tiny_unet", f"out={tmp_path / 'out'}", "method=rtn", "--json")
    answer = segbench("check", *given, "--measure")
    assert answer.status == 2
    (line,) = findings(answer)
    assert "out of memory" in line["what"]


def test_jobs_are_measured_where_they_run(segbench: Segbench, small: Small, tmp_path: Path) -> None:
    given = small("tiny_unet", f"out={tmp_path / 'out'}", "method=rtn", "--json", "cluster=slurm")
    answer = segbench("check", *given, "cluster.gpu_name=some GPU", "--measure")
    assert answer.status == 0, answer.out
    said = [f["what"] for f in findings(answer, state="unknown") if f["group"] == "hours"]
    assert any("cluster=local" in what for what in said)
    (device,) = [f for f in findings(answer, state="ok") if f["group"] == "devices"]
    assert "on some GPU" in device["what"]
    assert stages(answer)["reference"]["device_bytes"] > 0


def test_all_that_is_wrong_is_said_at_once(
    segbench: Segbench, small: Small, tmp_path: Path, zoo: Path
) -> None:
    folder = tmp_path / "copied"
    shutil.copytree(zoo / "tiny_flux", folder)
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    shutil.rmtree(folder / "tokenizer")
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    (tmp_path / "file").write_text("")
    more = [
        *("dataset=prompts", f"dataset.path={tmp_path / 'none.jsonl'}", "device=cuda:7"),
        *(f"out={tmp_path / 'file' / 'out'}", f"metrics.evaluator={tmp_path}", "method=rtn"),
    ]
    given = [word for word in small("tiny_flux", *more) if not word.startswith("model.path")]
    answer = segbench("check", f"model.path={folder}", *given[1:], "--json")
    assert answer.status == 2, answer.err
    assert "Traceback" not in answer.err
    lines = {(item["group"], item["what"]) for item in findings(answer)}
    said = (
        ("weights", "diffusion_pytorch_model.safetensors has"),
        ("weights", "tokenizer: all of it is missing"),
        ("weights", "vae: its weights"),
        ("data", "none.jsonl"),
        ("devices", "cuda:7"),
        ("disk", "cannot write"),
        ("metrics", "open_clip"),
    )
    for group, words in said:
        assert any(group == g and words in what for g, what in lines), (group, words, lines)
    shown = segbench("check", f"model.path={folder}", *given[1:])
    assert shown.status == 2
    last = shown.out.splitlines()[-1]
    assert last == f"1 cell: {len(findings(answer))} things are missing"


def test_a_shard_that_is_missing(
    segbench: Segbench, small: Small, tmp_path: Path, zoo: Path
) -> None:
    folder = tmp_path / "copied"
    shutil.copytree(zoo / "tiny_flux", folder)
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    first = weights.with_name("diffusion_pytorch_model-00001-of-00002.safetensors")
    weights.rename(first)
    second = "diffusion_pytorch_model-00002-of-00002.safetensors"
    listed = {"weight_map": {"a": first.name, "b": second}}
    weights.with_name(f"{weights.name}.index.json").write_text(json.dumps(listed))
    given = small("tiny_flux", f"out={tmp_path / 'out'}", "method=rtn", "--json")
    answer = segbench("check", f"model.path={folder}", *given[1:])
    assert answer.status == 2
    (line,) = findings(answer)
    assert line["what"] == f"transformer: {second} is missing"


def test_before_and_after_fetch(
    segbench: Segbench, small: Small, zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = FakeHub(folder=zoo / "tiny_flux")
    given = [*small("tiny_flux", f"out={tmp_path / 'out'}", "method=rtn")[1:], "--json"]
    given = ["model.path=some/model", *given]
    with serving(hub) as address:
        point_at(address, tmp_path / "cache", monkeypatch)
        before = segbench("check", *given)
        assert before.status == 2
        (line,) = [item for item in findings(before) if item["group"] == "weights"]
        assert line["command"].startswith("segbench fetch model.path=some/model ")
        run = segbench("run", *given)
        assert run.status == 2
        assert "segbench fetch model.path=some/model" in run.err
        assert not hub.asked
        hub.breaks_after = {"vae/diffusion_pytorch_model.safetensors": 1000}
        assert segbench(*line["command"].split()[1:]).status == 2
        half = segbench("check", *given)
        assert half.status == 2
        (line,) = findings(half)
        assert line["what"].startswith("vae: ")
        hub.breaks_after = {}
        assert segbench(*line["command"].split()[1:]).status == 0
        after = segbench("check", *given)
    assert after.status == 0, after.out
    assert not findings(after)


def test_a_gated_model_that_is_not_here(
    segbench: Segbench, config: Any, no_hub: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What is known of it is what its yaml says and the zoo's config of the same name."""
    fields = {
        "path": "some/sd3.5-medium",
        "name": "sd35_medium",
        "gated": True,
        "licence": "a community licence",
        "weights_bytes": 16_000_000_000,
        "dtype": "bfloat16",
        "height": 1024,
        "width": 1024,
    }
    words = [*config("large", **fields), f"out={tmp_path / 'out'}", "method=segquant_g", "--json"]
    answer = segbench("check", *words)
    assert answer.status == 2, answer.err
    groups = {item["group"]: item for item in findings(answer)}
    assert "16 GB" in groups["weights"]["what"]
    assert groups["weights"]["command"].startswith("segbench fetch model=large --config-dir")
    assert "HF_TOKEN" in groups["token"]["command"]
    (licence,) = [f for f in findings(answer, state="note") if f["group"] == "licence"]
    assert "a community licence" in licence["what"]
    assert "http://127.0.0.1:9/some/sd3.5-medium" in licence["what"]
    costs = stages(answer)
    taken = {n: row["device_bytes"] + row["host_bytes"] for n, row in costs.items()}
    assert 16e9 < taken["reference"] < 20e9  # the published parts in 16 bit, and a forward
    assert taken["calibration"] > taken["reference"]
    assert 4.5e9 < taken["quantized"] < 15e9  # without text encoders
    assert 1e9 < costs["calibration"]["disk_bytes"] < 30e9
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    second = segbench("check", *words)
    assert "token" not in {item["group"] for item in findings(second)}
    assert TOKEN not in second.out + second.err


def test_a_model_of_which_nothing_is_known(segbench: Segbench, no_hub: Path) -> None:
    answer = segbench("check", "model.path=some/model", "--json")
    assert answer.status == 2, answer.err
    assert [item["group"] for item in findings(answer)] == ["weights"]
    costs = stages(answer)
    assert costs["reference"]["host_bytes"] is None
    assert costs["reference"]["forwards"] == 64 * 20
    assert "memory" in {item["group"] for item in findings(answer, state="unknown")}


def test_no_room(
    segbench: Segbench, small: Small, config: Any, no_hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(total=10**9, used=10**9 - 1000, free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    words = config("large", path="some/model", weights_bytes=10**9)
    answer = segbench("check", *words, "--json")
    commands = [item["command"] for item in findings(answer) if item["group"] == "disk"]
    assert any("out=" in command for command in commands)
    assert any("HF_HUB_CACHE" in command for command in commands)


def test_no_memory(
    segbench: Segbench, small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "experiments.readiness.machine_findings._installed_memory"
    monkeypatch.setattr(name, lambda: 1_000_000)
    answer = segbench("check", *small("tiny_flux", f"out={tmp_path / 'out'}", "--json"))
    assert answer.status == 2
    (line,) = findings(answer)
    assert line["group"] == "memory"
    assert "1 MB" in line["what"]


def test_rows_that_will_not_be_made(segbench: Segbench, small: Small, tmp_path: Path) -> None:
    given = small("tiny_flux", f"out={tmp_path / 'out'}", "bits=w4a4_nvfp4", "--json")
    alone = segbench("check", *given, "method=peer_bitsandbytes")
    assert alone.status == 2
    assert "skipped row" in findings(alone)[0]["what"]
    beside = segbench("check", "-m", *given, "method=rtn,peer_bitsandbytes")
    assert beside.status == 0, beside.out
    (line,) = [f for f in findings(beside, state="without") if f["group"] in ("rows", "packages")]
    assert "peer_bitsandbytes w4a4_nvfp4" in line["what"]


def test_a_part_and_an_adapter_that_are_not_here(
    segbench: Segbench, config: Any, no_hub: Path, zoo: Path
) -> None:
    words = config(
        "with_more",
        path=str(zoo / "tiny_flux"),
        parts={"controlnet": "some/controlnet"},
        lora="no/adapter.safetensors",
    )
    answer = segbench("check", *words, "--json")
    assert answer.status == 2
    said = " ".join(item["what"] for item in findings(answer))
    assert "some/controlnet is not here" in said
    assert "no/adapter.safetensors: no such file" in said


def test_a_metric_without_its_weights(
    segbench: Segbench, small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    given = small("tiny_flux", f"metrics.inception={tmp_path}", f"out={tmp_path / 'out'}")
    answer = segbench("check", *given, "--json")
    assert answer.status == 0
    said = [f["what"] for f in findings(answer, state="without") if f["group"] == "metrics"]
    alexnet = "alexnet-owt-7be5be79.pth: missing (244408911 bytes, sha256 7be5be79"
    assert any(alexnet in what for what in said)
    assert any("inception-2015-12-05.pt: missing (95607719 bytes" in what for what in said)
    listed = segbench("fetch", *given, "--json")
    assert listed.status == 0
    assert {Path(f["path"]).name for f in json.loads(listed.out)["files"]} == {
        "alexnet-owt-7be5be79.pth",
        "inception-2015-12-05.pt",
    }


def test_a_folder_of_weights_and_what_is_not_in_it(
    segbench: Segbench, small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGBENCH_WEIGHTS", str(tmp_path))
    given = small("tiny_flux", "metrics=paper", f"out={tmp_path / 'out'}")
    given = [word for word in given if not word.startswith("metrics.evaluator=")]
    (tmp_path / "ViT-L-14.pt").write_bytes(b"a file of this name and other bytes")
    answer = segbench("check", *given, "--json")
    assert answer.status == 0, answer.err
    said = [f["what"] for f in findings(answer, state="without") if f["group"] == "metrics"]
    assert sum(f": {tmp_path}/" in what for what in said) == 10
    assert any("ImageReward.pt: missing (1786880927 bytes, sha256 d71dc8d4" in w for w in said)
    listed = json.loads(segbench("fetch", *given, "--json").out)["files"]
    assert {Path(file["path"]).parent for file in listed} == {tmp_path}
    nowhere = segbench("check", *given, f"metrics.weights={tmp_path / 'none'}")
    assert nowhere.status == 2
    assert "no such folder; its files are in docs/metrics.md" in nowhere.out + nowhere.err
