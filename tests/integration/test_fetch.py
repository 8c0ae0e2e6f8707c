"""`fetch` against a hub of its own: resumed, verified, refused in one line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from experiments.readiness.cached_files import INCOMPLETE
from tests.conftest import Answer
from tests.fake_hub import COMMIT, TOKEN, FakeHub, point_at, serving

Segbench = Callable[..., Answer]
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
LAST = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def hub(
    zoo: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeHub]:
    """A small FluxPipeline with what hubs have beside what a run loads."""
    folder = tmp_path / "hub"
    shutil.copytree(zoo / "tiny_flux", folder)
    weights = folder / WEIGHTS
    for more in ("flux.safetensors", "transformer/diffusion_pytorch_model.bin", "README.md"):
        (folder / more).write_bytes(b"a duplicate")
    shutil.copy(weights, weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    fake = FakeHub(folder=folder)
    with serving(fake) as address:
        point_at(address, cache, monkeypatch)
        yield fake


def words(*more: str, verb: str = "fetch") -> list[str]:
    return [verb, "model.path=some/model", "method=rtn", *more]


def refused(answer: Answer, *said: str) -> None:
    assert answer.status == 2, answer.err
    lines = [line for line in answer.err.splitlines() if line.startswith("segbench:")]
    assert len(lines) == 1, answer.err
    assert "Traceback" not in answer.err
    for word in said:
        assert word in lines[0]


def snapshot(cache: Path) -> Path:
    return cache / "models--some--model" / "snapshots" / COMMIT


def test_what_a_run_loads_is_fetched_and_nothing_else(
    segbench: Segbench, hub: FakeHub, cache: Path
) -> None:
    answer = segbench(*words("--json"))
    assert answer.status == 0, answer.err
    (row,) = json.loads(answer.out)["models"]
    assert row["commit"] == COMMIT
    got = {p.relative_to(snapshot(cache)).as_posix() for p in snapshot(cache).rglob("*.*")}
    left = {"README.md", "flux.safetensors", "transformer/diffusion_pytorch_model.bin"}
    left |= {"transformer/diffusion_pytorch_model.fp16.safetensors"}
    assert got == set(hub.names()) - left
    assert (snapshot(cache) / WEIGHTS).read_bytes() == (hub.folder / WEIGHTS).read_bytes()
    assert (cache / "models--some--model" / "refs" / "main").read_text() == COMMIT
    again = segbench(*words())
    assert f"model.revision={COMMIT}" in again.out
    assert hub.listings == 1  # what is whole is read, and the hub is not asked


def test_an_upstream_client_finds_it(segbench: Segbench, hub: FakeHub) -> None:
    assert segbench(*words()).status == 0
    from huggingface_hub import hf_hub_download, snapshot_download

    folder = Path(snapshot_download("some/model", local_files_only=True))
    assert folder.name == COMMIT
    hub.asked.clear()
    assert Path(hf_hub_download("some/model", WEIGHTS, local_files_only=True)).is_file()
    assert not hub.asked


def test_a_list_fetches_no_weights(segbench: Segbench, hub: FakeHub, cache: Path) -> None:
    answer = segbench(*words("--list"))
    assert answer.status == 0, answer.err
    assert WEIGHTS in answer.out
    assert f"model.revision={COMMIT}" in answer.out
    assert {name for name, _ in hub.asked} == {"model_index.json"}
    assert not cache.exists()


def test_half_a_file_is_gone_on_with(segbench: Segbench, hub: FakeHub, cache: Path) -> None:
    hub.breaks_after = {WEIGHTS: 1000}
    refused(segbench(*words()), WEIGHTS, "500", "again")
    (part,) = (cache / "models--some--model" / "blobs").glob(f"*{INCOMPLETE}")
    assert part.stat().st_size == 1000
    assert not (snapshot(cache) / WEIGHTS).exists()
    listed = segbench(*words("--list"))
    assert "1 kB of it" in listed.out
    hub.breaks_after, hub.asked[:] = {}, []
    assert segbench(*words()).status == 0
    assert (WEIGHTS, 1000) in hub.asked
    assert (WEIGHTS, 0) not in hub.asked
    assert (snapshot(cache) / WEIGHTS).read_bytes() == (hub.folder / WEIGHTS).read_bytes()


def test_a_killed_fetch_is_gone_on_with(
    segbench: Segbench, hub: FakeHub, cache: Path, tmp_path: Path
) -> None:
    """No handler runs in a process that is killed: what it left is what lies there."""
    from huggingface_hub import constants

    chunk = 10 * 2**20  # the client writes as much at a time
    save_file({"large": torch.zeros(2 * chunk // 4 + 1000)}, hub.folder / LAST)
    hub.hangs_after = {LAST: chunk + 100}
    given = {"HF_ENDPOINT": constants.ENDPOINT, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "0"}
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments", *words()],
        env={**os.environ, **given},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert hub.hung.wait(60)
    blobs = cache / "models--some--model" / "blobs"
    while not any(path.stat().st_size >= chunk for path in blobs.glob(f"*{INCOMPLETE}")):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (snapshot(cache) / LAST).exists()
    hub.hangs_after, hub.asked[:] = {}, []
    assert segbench(*words()).status == 0
    assert [asked for asked in hub.asked if asked[0] != "model_index.json"] == [(LAST, chunk)]
    assert (snapshot(cache) / LAST).read_bytes() == (hub.folder / LAST).read_bytes()


def test_a_byte_that_came_wrong_is_found(segbench: Segbench, hub: FakeHub, cache: Path) -> None:
    hub.damaged = {WEIGHTS}
    refused(segbench(*words()), WEIGHTS, "sha256", "again")
    assert not (snapshot(cache) / WEIGHTS).exists()
    assert not list((cache / "models--some--model" / "blobs").glob(f"*{INCOMPLETE}"))
    hub.damaged = {"scheduler/scheduler_config.json"}
    shutil.rmtree(cache)
    refused(segbench(*words()), "scheduler_config.json")
    hub.damaged = set()
    assert segbench(*words()).status == 0


def test_a_damaged_beginning_costs_the_file_and_no_more(
    segbench: Segbench, hub: FakeHub, cache: Path
) -> None:
    hub.breaks_after = {WEIGHTS: 1000}
    segbench(*words())
    (part,) = (cache / "models--some--model" / "blobs").glob(f"*{INCOMPLETE}")
    part.write_bytes(bytes(1000))
    hub.breaks_after, hub.asked[:] = {}, []
    answer = segbench(*words())
    assert answer.status == 0, answer.err
    assert [begin for name, begin in hub.asked if name == WEIGHTS] == [1000, 0]


def test_a_byte_that_went_wrong_on_disk_is_found(
    segbench: Segbench, hub: FakeHub, cache: Path
) -> None:
    assert segbench(*words()).status == 0
    blob = (snapshot(cache) / WEIGHTS).resolve()
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    hub.asked.clear()
    answer = segbench(*words())
    assert answer.status == 0, answer.err
    assert "checksum" in answer.err
    assert [name for name, _ in hub.asked if name != "model_index.json"] == [WEIGHTS]
    assert (snapshot(cache) / WEIGHTS).read_bytes() == (hub.folder / WEIGHTS).read_bytes()


def test_gated(segbench: Segbench, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.gated = True
    refused(segbench(*words()), "gated", "/some/model", "HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    answer = segbench(*words())
    refused(answer, "gated", "/some/model", "agree")
    assert TOKEN not in answer.err + answer.out
    assert segbench(*words("--list")).status == 0
    hub.agreed = True
    assert segbench(*words()).status == 0


def test_what_is_not_there_is_said(
    segbench: Segbench, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(segbench(*words("model.revision=other")), "model.revision=other", "no such revision")
    refused(segbench("fetch", "model.path=other/model"), "other/model", "no such model")
    refused(segbench("fetch", "model.path=/no/such/folder"), "/no/such/folder")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for more in ((), ("--list",)):
        refused(segbench(*words(*more)), "HF_HUB_OFFLINE", "--from", "nothing of it is here")


def test_no_network(segbench: Segbench, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    refused(segbench(*words()), "cannot be reached")


def test_a_full_disk_is_seen_before_the_first_byte(
    segbench: Segbench, hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(total=10**9, used=10**9 - 1000, free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    refused(segbench(*words()), "are to come", "HF_HUB_CACHE")
    assert not cache.exists()
    assert {name for name, _ in hub.asked} == {"model_index.json"}


def test_a_half_precision_run_takes_its_variant(
    segbench: Segbench, hub: FakeHub, cache: Path
) -> None:
    assert segbench(*words("model.dtype=float16")).status == 0
    names = sorted(p.name for p in (snapshot(cache) / "transformer").glob("*.safetensors"))
    assert names == ["diffusion_pytorch_model.fp16.safetensors"]
    run = segbench(*words("--dry-run", "model.dtype=float16", verb="run"))
    assert run.status == 0, run.err


@pytest.mark.parametrize("kind", ["cache", "files", "noted"])
def test_from_a_mirror(
    segbench: Segbench, hub: FakeHub, cache: Path, tmp_path: Path, kind: str
) -> None:
    mirror, more = tmp_path / "mirror", [f"model.revision={COMMIT}"]
    if kind == "cache":
        assert segbench(*words()).status == 0
        cache.rename(mirror)
        more = []
    else:
        shutil.copytree(hub.folder, mirror / "some" / "model")
    if kind == "noted":
        more = []
        for row in hub.listing()["siblings"]:
            about = mirror / "some/model/.cache/huggingface/download" / row["rfilename"]
            about.parent.mkdir(parents=True, exist_ok=True)
            checksum = row["lfs"]["sha256"] if "lfs" in row else row["blobId"]
            about.with_name(f"{about.name}.metadata").write_text(f"{COMMIT}\n{checksum}\n0.0\n")
    hub.listings = 0
    hub.asked.clear()
    answer = segbench(*words("--from", str(mirror), *more))
    assert answer.status == 0, answer.err
    assert not hub.listings
    assert not hub.asked
    assert (snapshot(cache) / WEIGHTS).read_bytes() == (hub.folder / WEIGHTS).read_bytes()
    assert segbench(*words("--dry-run", *more, verb="run")).status == 0
    weights = next(mirror.rglob(WEIGHTS))
    content = weights.read_bytes()
    shutil.rmtree(cache)
    weights.write_bytes(content[:-1] + b"x")
    damaged = segbench(*words("--from", str(mirror), *more))
    if kind == "files":  # nothing there says what it should be
        assert damaged.status == 0
    else:
        refused(damaged, WEIGHTS, "sha256")


def test_a_mirror_that_does_not_say_which_commit(
    segbench: Segbench, hub: FakeHub, tmp_path: Path
) -> None:
    refused(segbench(*words("--from", str(hub.folder))), "model.revision=COMMIT")
    refused(segbench(*words("--from", str(tmp_path / "nowhere"))), "some/model")
