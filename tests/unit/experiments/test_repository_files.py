"""Of listings as hubs have them, the files that a run loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.readiness.repository_files import part_folders, wanted_files
from experiments.readiness.tensor_files import read_tensor_file

_SD15 = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "image_encoder": [None, None],
    "requires_safety_checker": True,
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
_SHARED = [
    *("model_index.json", "README.md", ".gitattributes", "v1-5-pruned.safetensors"),
    *("feature_extractor/preprocessor_config.json", "scheduler/scheduler_config.json"),
    *("tokenizer/merges.txt", "tokenizer/vocab.json", "tokenizer/tokenizer_config.json"),
    *("safety_checker/config.json", "safety_checker/model.safetensors", "v1-5-pruned.ckpt"),
    *("text_encoder/config.json", "unet/config.json", "vae/config.json"),
    *("unet/model.onnx", "unet/flax_model.msgpack", "unet/openvino_model.bin", "vae/extra/a.json"),
]


def _networks(*endings: str) -> list[str]:
    return [
        f"{folder}/{base}.{ending}"
        for folder, base in (
            ("text_encoder", "model"),
            ("unet", "diffusion_pytorch_model"),
            ("vae", "diffusion_pytorch_model"),
        )
        for ending in endings
    ]


def _weights(names: list[str], dtype: str, index: Any = _SD15) -> set[str]:
    wanted = wanted_files(names, index=index, dtype=dtype)
    return {name for name in wanted if name.endswith((".safetensors", ".bin", ".msgpack"))}


def test_one_format_and_no_duplicates() -> None:
    names = [*_SHARED, *_networks("safetensors", "bin", "non_ema.safetensors", "fp16.bin")]
    wanted = wanted_files(names, index=_SD15, dtype="float32")
    assert wanted == {
        *(n for n in _SHARED if n.startswith(("feature", "scheduler", "tokenizer", "model_i"))),
        *("text_encoder/config.json", "unet/config.json", "vae/config.json"),
        *_networks("safetensors"),
    }


@pytest.mark.parametrize(
    ("there", "dtype", "taken"),
    [
        (("safetensors", "fp16.safetensors"), "float32", "safetensors"),
        (("safetensors", "fp16.safetensors"), "float16", "fp16.safetensors"),
        (("safetensors", "fp16.safetensors"), "bfloat16", "safetensors"),  # other roundings
        (("safetensors", "bf16.safetensors"), "bfloat16", "bf16.safetensors"),
        (("fp16.safetensors",), "float32", "fp16.safetensors"),  # nothing else is there
        (("bin",), "float32", "bin"),
        (("bin", "fp16.safetensors"), "float32", "bin"),
    ],
)
def test_the_variant_of_the_dtype(there: tuple[str, ...], dtype: str, taken: str) -> None:
    assert _weights([*_SHARED, *_networks(*there)], dtype) == set(_networks(taken))


def test_a_part_without_the_variant_has_plain_weights() -> None:
    names = [*_SHARED, *_networks("safetensors"), "unet/diffusion_pytorch_model.fp16.safetensors"]
    assert _weights(names, "float16") == {
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    }
    del names[names.index("unet/diffusion_pytorch_model.fp16.safetensors")]
    names.append("vae/diffusion_pytorch_model.fp16.safetensors")  # the denoiser has none
    assert _weights(names, "float16") == set(_networks("safetensors"))


@pytest.mark.parametrize(
    ("listed", "shard", "other"),
    [
        ("{}.safetensors.index.json", "{}-0000{}-of-00002.safetensors", "{}.bin.index.json"),
        (
            "{}.safetensors.index.fp16.json",
            "{}.fp16-0000{}-of-00002.safetensors",
            "{}.bin.index.fp16.json",
        ),
    ],
)
def test_shards_and_the_list_of_their_own_format(listed: str, shard: str, other: str) -> None:
    base = "diffusion_pytorch_model"
    own = [f"unet/{listed.format(base)}", *(f"unet/{shard.format(base, n)}" for n in (1, 2))]
    others = [f"unet/{other.format(base)}", f"unet/{shard.format(base, 1)[:-11]}bin"]
    names = [*_SHARED, *_networks("safetensors")[:1], *_networks("safetensors")[2:], *own, *others]
    wanted = wanted_files(names, index=_SD15, dtype="float32")
    assert set(own) <= wanted
    assert not set(others) & wanted


def test_a_repository_that_is_one_part() -> None:
    names = ["config.json", "diffusion_pytorch_model.safetensors", "README.md", "sample.png"]
    assert part_folders(names, index=None) == [""]
    assert wanted_files(names, index=None, dtype="float32") == set(names[:2])


def test_a_part_of_another_pipeline() -> None:
    names = [*_SHARED, *_networks("safetensors")]
    wanted = wanted_files(names, index=_SD15, dtype="float32", part="vae")
    assert wanted == {"vae/config.json", "vae/diffusion_pytorch_model.safetensors"}


def test_a_part_that_comes_from_elsewhere_is_left_out() -> None:
    names = [*_SHARED, *_networks("safetensors")]
    wanted = wanted_files(names, index=_SD15, dtype="float32", besides=("vae",))
    assert not any(name.startswith("vae/") for name in wanted)
    assert "unet/config.json" in wanted


def test_a_pipeline_whose_index_is_refused() -> None:
    """Of a gated model the list of files is there, their contents are not."""
    names = [*_SHARED, *_networks("safetensors", "bin")]
    listed = wanted_files(names, index=None, dtype="float32")
    assert listed == wanted_files(names, index=_SD15, dtype="float32")


def _file(path: Path, header: bytes, *, tensors: int) -> Path:
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(tensors))
    return path


def test_what_a_tensor_file_says_of_itself(tmp_path: Path) -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F16", "shape": [3, 2], "data_offsets": [0, 12]},
        "b": {"dtype": "I64", "shape": [2], "data_offsets": [12, 28]},
    }
    path = _file(tmp_path / "x.safetensors", json.dumps(header).encode(), tensors=28)
    read = read_tensor_file(path)
    assert read.file_bytes == path.stat().st_size
    assert read.bytes_as(4) == 6 * 4 + 16


@pytest.mark.parametrize("header", [b"", b"{", b"[1]", b'{"a": 3}', b'{"a": {"dtype": "F16"}}'])
def test_a_file_that_is_none(tmp_path: Path, header: bytes) -> None:
    with pytest.raises(ValueError, match=r"x\.safetensors"):
        read_tensor_file(_file(tmp_path / "x.safetensors", header, tensors=0))
