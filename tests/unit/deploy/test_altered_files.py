"""Files of a quantized denoiser that were altered: refused by name, and nothing is unpickled."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from segquant.deploy.seal import DamagedFile
from tests.unit.core import denoisers
from tests.unit.deploy.quantized_models import output, quantized

NAME = "diffusion_pytorch_model.safetensors"
LAYER = "transformer_blocks.0.attn.to_q"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, dict[str, Any]]:
    """A folder with a denoiser, one of another with the same shapes, one in several files."""
    home = tmp_path_factory.mktemp("sealed")
    model, batches = quantized("sd3")
    model.save_pretrained(home / "own")
    model.save_pretrained(home / "parts", max_shard_size="30KB")
    other, _ = quantized("sd3", seed=1)
    other.save_pretrained(home / "other")
    other.save_pretrained(home / "other_parts", max_shard_size="30KB")
    return home, type(model), batches[0]


def _flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def _flip_after(path: Path, word: str) -> None:
    _flip(path, path.read_bytes().index(word.encode()) + len(word))


def _cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def _resave(path: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """The same header's text with other tensors."""
    with safe_open(path, framework="pt") as opened:
        text = opened.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata=text)


def _exchange(tensors: dict[str, Tensor]) -> None:
    one, two = f"{LAYER}.codes", f"{LAYER.replace('to_q', 'to_k')}.codes"
    tensors[one], tensors[two] = tensors[two].clone(), tensors[one].clone()


def _without_text(path: Path) -> None:
    save_file(load_file(path), path, metadata={"format": "pt"})


def _config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _quantization(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    own = json.loads(path.read_text())["quantization_config"] | changes
    _config(folder, quantization_config=own)


def _pickled(folder: Path) -> None:
    """Pickled weights alone, which would run code."""

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (folder / "exploded",)

    (folder / NAME).unlink()
    (folder / NAME.replace(".safetensors", ".bin")).write_bytes(pickle.dumps({"x": Bomb()}))


def _tensors_pickled(folder: Path) -> None:
    torch.save(load_file(folder / NAME), folder / NAME.replace(".safetensors", ".bin"))
    (folder / NAME).unlink()


ALTERED: dict[str, Callable[[Path, Path], Any]] = {
    "a byte of a tensor": lambda own, _: _flip(own / NAME, -1000),
    "the last byte": lambda own, _: _flip(own / NAME, -1),
    "a tensor's name": lambda own, _: _flip_after(own / NAME, f'"{LAYER}.code'),
    "a byte of the structure": lambda own, _: _flip_after(own / NAME, "weight_bloc"),
    "a digest": lambda own, _: _flip_after(own / NAME, f'{LAYER}.bias\\":\\"'),
    "half of the file": lambda own, _: _cut(own / NAME, (own / NAME).stat().st_size // 2),
    "a byte less": lambda own, _: _cut(own / NAME, -1),
    "a byte more": lambda own, _: (own / NAME).write_bytes((own / NAME).read_bytes() + b"0"),
    "an empty file": lambda own, _: _cut(own / NAME, 0),
    "no file": lambda own, _: (own / NAME).unlink(),
    "a tensor less": lambda own, _: _resave(own / NAME, lambda t: t.pop(f"{LAYER}.bias")),
    "no scale": lambda own, _: _resave(own / NAME, lambda t: t.pop(f"{LAYER}.weight_scale")),
    "a tensor more": lambda own, _: _resave(own / NAME, lambda t: t.update(x=torch.ones(1))),
    "another shape": lambda own, _: _resave(
        own / NAME, lambda t: t.update({f"{LAYER}.bias": t[f"{LAYER}.bias"].reshape(1, -1)})
    ),
    "scales in 16 bit": lambda own, _: _resave(
        own / NAME, lambda t: t.update({f"{LAYER}.weight_scale": t[f"{LAYER}.weight_scale"].half()})
    ),
    "two tensors exchanged": lambda own, _: _resave(own / NAME, _exchange),
    "no text in the header": lambda own, _: _without_text(own / NAME),
    "another model's weights": lambda own, other: shutil.copy(other / NAME, own / NAME),
    "another model's config": lambda own, other: shutil.copy(
        other / "config.json", own / "config.json"
    ),
    "another field of the config": lambda own, _: _config(own, qk_norm=None),
    "another seal": lambda own, _: _quantization(own, seal="0" * 64),
    "no seal": lambda own, _: _quantization(own, seal=None),
    "another version": lambda own, _: _quantization(own, version=99),
    "tensors in a pickle": lambda own, _: _tensors_pickled(own),
    "code in a pickle": lambda own, _: _pickled(own),
}


@pytest.mark.parametrize("what", ALTERED)
def test_an_altered_file_is_refused_by_name(
    what: str, saved: tuple[Path, Any, dict[str, Any]], tmp_path: Path
) -> None:
    home, kind, _ = saved
    own = tmp_path / "own"
    shutil.copytree(home / "own", own)
    ALTERED[what](own, home / "other")
    with pytest.raises((ValueError, OSError)) as raised:
        kind.from_pretrained(own)
    said = str(raised.value)
    assert any(name in said for name in (NAME, "config", "diffusion_pytorch_model.bin", str(own)))
    assert not (own / "exploded").exists()


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("a byte of a tensor", "is not what was written"),
        ("a tensor less", f"{LAYER}.bias"),
        ("a tensor more", "tensor x is not part of this denoiser"),
        ("scales in 16 bit", f"tensor {LAYER}.weight_scale is not what was written"),
        ("another model's weights", "is not the file that its config.json is of"),
        ("another field of the config", "config.json has qk_norm=None"),
    ],
)
def test_the_message_says_what_differs(
    what: str, said: str, saved: tuple[Path, Any, dict[str, Any]], tmp_path: Path
) -> None:
    home, kind, _ = saved
    own = tmp_path / "own"
    shutil.copytree(home / "own", own)
    ALTERED[what](own, home / "other")
    with pytest.raises(DamagedFile, match=said):
        kind.from_pretrained(own)


def test_another_classes_config_is_refused(saved: tuple[Path, Any, dict[str, Any]]) -> None:
    home, _, _ = saved
    flux = type(denoisers.ALL["flux"]()[0])
    with pytest.raises(DamagedFile, match=r"config\.json is of a Flux"):
        flux.from_pretrained(home / "own")  # type: ignore[attr-defined]


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _exchange_files(own: Path, other: Path) -> None:
    shutil.copy(_files(other)[1], _files(own)[1])


def _repeat_a_file(own: Path, other: Path) -> None:
    shutil.copy(_files(own)[0], _files(own)[1])


def _lose_an_entry(own: Path, other: Path) -> None:
    path = own / f"{NAME}.index.json"
    index = json.loads(path.read_text())
    lost = _files(own)[-1].name
    kept = {name: file for name, file in index["weight_map"].items() if file != lost}
    path.write_text(json.dumps({**index, "weight_map": kept}))


@pytest.mark.parametrize(
    "alter",
    [
        lambda own, other: _files(own)[0].unlink(),
        lambda own, other: _flip(_files(own)[1], -1),
        _exchange_files,
        _repeat_a_file,
        _lose_an_entry,
    ],
    ids=["no file", "a byte", "another's file", "a file twice", "an entry less"],
)
def test_one_of_several_files(
    alter: Callable[[Path, Path], Any], saved: tuple[Path, Any, dict[str, Any]], tmp_path: Path
) -> None:
    home, kind, batch = saved
    own = tmp_path / "parts"
    shutil.copytree(home / "parts", own)
    before = output(kind.from_pretrained(own), batch)
    alter(own, home / "other_parts")
    with pytest.raises((ValueError, OSError)) as raised:
        kind.from_pretrained(own)
    assert "diffusion_pytorch_model" in str(raised.value)
    assert before.isfinite().all()
