"""Models whose weights lie in one file, in shards, in links, or under a variant's name."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import save_file

from experiments.config.request import read_request
from experiments.config.run_config import ModelConfig
from experiments.errors import UserError
from experiments.sampling.assembled import assemble, load_part
from experiments.sampling.model_folder import check_folder
from experiments.sampling.weights_hash import model_hash
from experiments.store.file_hashes import FileHashes
from tests import micro
from tests.conftest import Answer
from tests.original_layout import original_layout

Segbench = Callable[..., Answer]
SINGLE = "model.safetensors"


def _model(folder: Path, *words: str) -> ModelConfig:
    given = [f"model.path={folder}", "method=rtn", *words]
    return read_request(given, multirun=False).cells[0].model


def _hash(model: ModelConfig) -> str:
    return model_hash(model, files=FileHashes(None))


def _equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def stable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small pipeline of the first Stable Diffusion's family: `folder`, and in one file."""
    root = tmp_path_factory.mktemp("stable")
    pipeline = micro.stable_diffusion(diffusers.StableDiffusionPipeline)
    pipeline.save_pretrained(root / "folder")
    save_file(original_layout(pipeline), root / SINGLE)
    shutil.copytree(root / "folder", root / "configs")
    for path in (root / "configs").rglob("*.safetensors"):
        path.unlink()
    return root


def test_a_single_file_is_the_pipeline_that_it_was_made_of(stable: Path) -> None:
    own = assemble(_model(stable / "folder"))
    model = _model(stable / SINGLE, f"model.configs={stable / 'configs'}")
    pipeline = assemble(model)
    assert type(pipeline) is diffusers.StableDiffusionPipeline
    for name in ("unet", "vae", "text_encoder"):
        assert _equal(getattr(pipeline, name), getattr(own, name)), name
        assert _equal(load_part(model, name), getattr(own, name)), name
        assert not load_part(model, name).training


def test_a_single_file_runs_and_the_record_says_so(
    segbench: Segbench, small: Any, stable: Path, tmp_path: Path
) -> None:
    given = [*small("tiny_unet", f"out={tmp_path}", "method=rtn", "--json")[1:]]
    single = [f"model.path={stable / SINGLE}", f"model.configs={stable / 'configs'}"]
    answer = segbench("run", *single, *given)
    assert answer.status == 0, answer.err
    folder = segbench("run", f"model.path={stable / 'folder'}", *given)
    (one,), (other,) = answer.records, folder.records
    assert one["protocol"]["single_file"] == str(stable / SINGLE)
    assert one["protocol"]["model_weights"] != other["protocol"]["model_weights"]
    assert one["metrics"]["psnr"]["value"] == other["metrics"]["psnr"]["value"]


def test_a_changed_file_is_another_model(stable: Path, tmp_path: Path) -> None:
    single = tmp_path / SINGLE
    shutil.copy(stable / SINGLE, single)
    model = _model(single, f"model.configs={stable / 'configs'}")
    before = _hash(model)
    tensors = original_layout(assemble(_model(stable / "folder")))
    tensors["model.diffusion_model.out.2.bias"] += 1
    save_file(tensors, single)
    assert _hash(model) != before


def test_a_single_file_without_configs_is_told_to_give_them(
    stable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = str(tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", nothing)
    with pytest.raises(UserError, match=r"model.configs=stable-diffusion.*local cache has no such"):
        check_folder(_model(stable / SINGLE))
    unknown = tmp_path / SINGLE
    save_file({"a.weight": torch.zeros(2)}, unknown)
    with pytest.raises(UserError, match=r"cannot be told .*; give model.configs=FOLDER"):
        check_folder(_model(unknown))
    with pytest.raises(UserError, match="a single file has no revisions"):
        check_folder(dataclasses.replace(_model(stable / SINGLE), revision="main"))


def test_a_single_file_that_lacks_a_part_names_it(stable: Path, tmp_path: Path) -> None:
    tensors = original_layout(assemble(_model(stable / "folder")))
    kept = {k: v for k, v in tensors.items() if not k.startswith("cond_stage_model")}
    save_file(kept, tmp_path / SINGLE)
    model = _model(tmp_path / SINGLE, f"model.configs={stable / 'configs'}")
    with pytest.raises(UserError, match=r"CLIPTextModel.*missing.*model.parts.NAME"):
        assemble(model)
    besides = _model(tmp_path / SINGLE, f"model.configs={stable / 'folder'}")  # it has the rest
    assert _equal(assemble(besides).unet, load_part(besides, "unet"))


def test_another_denoiser_in_one_file_takes_the_place_of_the_folders(
    stable: Path, tmp_path: Path
) -> None:
    own = assemble(_model(stable / "folder"))
    torch.manual_seed(1)
    other = diffusers.UNet2DConditionModel.from_config(own.unet.config).eval()
    own.register_modules(unet=other)
    save_file(original_layout(own), tmp_path / "mine.safetensors")
    model = _model(stable / "folder", f"model.parts.unet={tmp_path / 'mine.safetensors'}")
    assert _equal(assemble(model).unet, other)
    assert _equal(load_part(model, "unet"), other)
    assert _hash(model) != _hash(_model(stable / "folder"))


@pytest.fixture
def sharded(zoo: Path, tmp_path: Path) -> Path:
    """The small UNet pipeline, its denoiser's weights in several files."""
    folder = tmp_path / "sharded"
    shutil.copytree(zoo / "tiny_unet", folder)
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    shutil.rmtree(folder / "unet")
    unet.save_pretrained(folder / "unet", max_shard_size="100KB")
    assert len(list((folder / "unet").glob("*.safetensors"))) > 2
    return folder


def test_shards_are_the_same_weights(sharded: Path, zoo: Path) -> None:
    whole = load_part(_model(zoo / "tiny_unet"), "unet")
    assert _equal(load_part(_model(sharded), "unet"), whole)
    assert _equal(assemble(_model(sharded)).unet, whole)


def test_shards_of_a_variant_in_a_cache_of_links_run(
    segbench: Segbench, small: Any, sharded: Path, tmp_path: Path
) -> None:
    """As the hub's cache has them: names that are links to files named by content."""
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        _as_variant(sharded / part, "fp16")
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / ("0" * 40)
    blobs.mkdir()
    for number, path in enumerate(sorted(p for p in sharded.rglob("*") if p.is_file())):
        link = snapshot / path.relative_to(sharded)
        link.parent.mkdir(parents=True, exist_ok=True)
        blob = blobs / f"{number:064x}"
        shutil.copy(path, blob)
        link.symlink_to(blob)
    model = _model(snapshot)
    assert _equal(load_part(model, "unet"), load_part(_model(sharded), "unet"))
    assert _hash(model) == _hash(_model(sharded))
    given = small("tiny_unet", f"out={tmp_path / 'out'}", "method=rtn", "--json")[1:]
    answer = segbench("run", f"model.path={snapshot}", *given)
    assert answer.status == 0, answer.err
    assert answer.records[0]["protocol"]["model_variant"] == "fp16"

    before = _hash(model)
    weights = next(path for path in snapshot.rglob("*.safetensors"))
    with weights.resolve().open("ab") as blob_file:
        blob_file.write(b"\0")
    assert _hash(model) != before  # what a link leads to is what counts


def _as_variant(part: Path, variant: str) -> None:
    for path in [*part.glob("*.safetensors"), *part.glob("*.index.json")]:
        if path.name.endswith(".index.json"):
            listed = path.read_text()
            for shard in part.glob("*-of-*"):
                plain = shard.name.replace(f".{variant}", "")
                stem, _, rest = plain.partition("-")
                listed = listed.replace(f'"{plain}"', f'"{stem}.{variant}-{rest}"')
            path.write_text(listed)
            path.rename(part / path.name.replace(".index", f".index.{variant}"))
        elif "-of-" in path.name:
            stem, _, rest = path.name.partition("-")
            path.rename(part / f"{stem}.{variant}-{rest}")
        else:
            path.rename(
                path.with_name(path.name.replace(".safetensors", f".{variant}.safetensors"))
            )


def test_a_part_is_the_mapped_files_own_memory_where_types_agree(zoo: Path) -> None:
    part = load_part(_model(zoo / "tiny_unet"), "unet")  # float32, as its files are
    spans = [
        tuple(int(end, 16) for end in line.split()[0].split("-"))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if str(zoo / "tiny_unet" / "unet") in line
    ]
    inside = [
        any(start <= parameter.data_ptr() < end for start, end in spans)
        for parameter in part.parameters()
    ]
    assert inside
    assert all(inside)
    half = load_part(_model(zoo / "tiny_unet", "model.dtype=float16"), "unet")
    assert next(half.parameters()).dtype == torch.float16


def test_a_part_by_hub_id_and_commit_is_one_of_the_local_cache(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(cache))
    repository = cache / "models--some--vae"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    other = diffusers.AutoencoderKL.from_pretrained(zoo / "tiny_unet" / "vae")
    other.post_quant_conv.bias.data += 1
    other.save_pretrained(repository / "snapshots" / commit)
    for path in ("some/vae", f"some/vae@{commit}"):
        model = _model(zoo / "tiny_unet", f"model.parts.vae='{path}'")
        assert _equal(load_part(model, "vae"), other)
        assert _equal(assemble(model).vae, other)
        assert _hash(model) != _hash(_model(zoo / "tiny_unet"))
    with pytest.raises(UserError, match=r"model.parts.vae=some/vae.*no such model"):
        assemble(_model(zoo / "tiny_unet", "model.parts.vae='some/vae@old'"))
