"""A quantized denoiser in other libraries' formats: what those libraries load computes the same.

compressed-tensors is run by its own modules, torchao by diffusers' loader; both on a CPU. What a
format cannot hold is refused with the reason, and nothing is written.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.studies.form_trials import load_compressed_tensors
from segquant.deploy.other_formats import FORMS, FormRefused, every_form, write_form
from segquant.deploy.other_formats.form_interface import quantized_layers
from segquant.deploy.other_formats.layer_facts import Beyond
from tests.unit.deploy.other_libraries import (
    layer_differences,
    made,
    relative,
    tensors_of,
)
from tests.unit.deploy.quantized_models import output

FLOAT32_ROUNDING = 1e-6  # relative, of a layer's output; measured: 2e-7
BFLOAT16_ROUNDING = 2**-7
UNFOLDED = "method.fold=false"


@pytest.mark.parametrize(
    ("model", "method", "bits", "settings"),
    [
        ("sd3", "rtn", "w8a8_int8", ()),
        ("unet", "gptq", "w8a8_int8_channel", ()),
        ("flux", "rtn", "w8a8_fp8", ()),
        ("sd3", "rtn", "w4a8_int_tensor", ()),
        ("flux", "rtn", "w4a4_int_tensor", ()),
        ("sd3", "rtn", "w8a16_int", ("bits.weight.num_bits=3",)),
        ("sd3", "segquant_seg_only", "w8a8_int8", ("method.smoothing=none",)),
        (
            "flux",
            "rtn",
            "w8a16_int",
            ("bits.weight.granularity=per_group", "bits.weight.group_size=4"),
        ),
    ],
)
def test_compressed_tensors_own_modules_give_the_same_bits(
    tmp_path: Path, model: str, method: str, bits: str, settings: tuple[str, ...]
) -> None:
    pytest.importorskip("compressed_tensors")
    denoiser, inputs = made(method, bits, *settings, model=model)
    written = write_form(denoiser, tmp_path / "made", form="compressed-tensors")
    assert written.layers == len(quantized_layers(denoiser))
    loaded = load_compressed_tensors(type(denoiser), tmp_path / "made")
    assert torch.equal(output(loaded, inputs), output(denoiser, inputs))


def test_compressed_tensors_codes_and_scales_are_the_layers_own(tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    denoiser, _ = made("rtn", "w8a8_int8_channel")
    write_form(denoiser, tmp_path / "made", form="compressed-tensors")
    tensors = tensors_of(tmp_path / "made")
    for name, layer in quantized_layers(denoiser).items():
        assert torch.equal(tensors[f"{name}.weight"], layer.integer_codes())
        assert torch.equal(tensors[f"{name}.weight_scale"], layer.weight_scale)
        assert torch.equal(tensors[f"{name}.input_scale"], layer.activation_scale.reshape(1))


def test_folded_smoothing_goes_along(tmp_path: Path) -> None:
    """Rows that took another layer's smoothing get it in their scales."""
    pytest.importorskip("torchao")
    denoiser, inputs = made("smoothquant", "w8a8_int8", analyzed=True)
    layers = quantized_layers(denoiser).values()
    assert any(layer.row_factors is not None for layer in layers)
    assert any(layer.smoothing is None for layer in layers)
    write_form(denoiser, tmp_path / "made", form="torchao", inputs=inputs)
    loaded = type(denoiser).from_pretrained(tmp_path / "made", torch_dtype=torch.float32)
    assert max(layer_differences(denoiser, loaded, inputs).values()) < FLOAT32_ROUNDING


def test_factors_of_rows_become_scales_of_rows(tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    denoiser, inputs = made("rtn", "w8a8_int8")
    layer = denoiser.get_submodule("transformer_blocks.0.attn.to_q")
    layer.add_row_factors()
    layer.row_factors.copy_(torch.rand(layer.out_features) + 0.5)
    layer.release()
    write_form(denoiser, tmp_path / "made", form="compressed-tensors")
    loaded = load_compressed_tensors(type(denoiser), tmp_path / "made")
    assert relative(output(loaded, inputs), output(denoiser, inputs)) < 1e-3
    differences = layer_differences(denoiser, loaded, inputs)
    own = differences.pop("transformer_blocks.0.attn.to_q")
    assert 0 <= own < FLOAT32_ROUNDING
    assert not any(differences.values())


@pytest.mark.parametrize(
    ("model", "method", "bits", "settings"),
    [
        ("sd3", "rtn", "w8a8_int8", ()),
        ("flux", "smoothquant", "w8a8_int8", (UNFOLDED,)),
        ("unet", "gptq", "w8a8_int8_channel", ()),
        ("sd3", "rtn", "w4a8_int_tensor", ()),
        ("unet", "rtn", "w8a16_int", ()),
        ("sd3", "segquant_seg_only", "w8a8_int8", ("method.smoothing=none",)),
        ("flux", "svdquant", "w8a8_int8", ("method.rank=0", "method.unsigned_shift=false")),
    ],
)
def test_torchao_loaded_by_diffusers_computes_the_same(
    tmp_path: Path, model: str, method: str, bits: str, settings: tuple[str, ...]
) -> None:
    """But for inputs that lie on the edge between two codes: it multiplies by 1 / scale."""
    pytest.importorskip("torchao")
    denoiser, inputs = made(method, bits, *settings, model=model)
    write_form(denoiser, tmp_path / "made", form="torchao", inputs=inputs)
    loaded = type(denoiser).from_pretrained(tmp_path / "made", torch_dtype=torch.float32)
    differences = layer_differences(denoiser, loaded, inputs)
    assert len(differences) == len(quantized_layers(denoiser))
    assert sorted(differences.values())[-2] < FLOAT32_ROUNDING
    assert relative(output(loaded, inputs), output(denoiser, inputs)) < 1e-3
    for name, layer in quantized_layers(denoiser).items():
        weight = loaded.get_submodule(name).weight
        assert torch.equal(weight.qdata, layer.integer_codes())
        assert weight.scale.dtype == torch.float32
        if layer.activation_scale is not None:
            assert torch.equal(weight.act_quant_scale.flatten(), layer.activation_scale.flatten())


@pytest.mark.parametrize("rounding", ["floor", "ceil"])
@pytest.mark.parametrize("bits", ["w8a8_mxfp8", "w4a4_mxfp4"])
def test_torchao_computes_mx_blocks_to_the_bit(tmp_path: Path, bits: str, rounding: str) -> None:
    pytest.importorskip("torchao")
    both = [f"bits.{part}.scale_rounding={rounding}" for part in ("weight", "activation")]
    denoiser, inputs = made("rtn", bits, *both, model="wide")
    write_form(denoiser, tmp_path / "made", form="torchao")
    loaded = type(denoiser).from_pretrained(tmp_path / "made", torch_dtype=torch.float32)
    assert torch.equal(output(loaded, inputs), output(denoiser, inputs))


def test_torchao_in_bfloat16_is_as_near_as_that_type_is(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    denoiser, inputs = made("rtn", "w8a8_int8", dtype=torch.bfloat16)
    write_form(denoiser, tmp_path / "made", form="torchao", inputs=inputs)
    loaded = type(denoiser).from_pretrained(tmp_path / "made", torch_dtype=torch.bfloat16)
    assert (
        loaded.get_submodule("transformer_blocks.0.attn.to_q").weight.scale.dtype == torch.float32
    )
    assert max(layer_differences(denoiser, loaded, inputs).values()) < BFLOAT16_ROUNDING


def test_kept_layers_go_along_as_they_are(tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    pytest.importorskip("torchao")
    denoiser, inputs = made("rtn", "w8a8_int8", "bits.keep=[*.attn.to_q,proj_out]")
    kept = denoiser.proj_out.weight
    for form in ("compressed-tensors", "torchao"):
        write_form(denoiser, tmp_path / form, form=form, inputs=inputs)
        assert torch.equal(tensors_of(tmp_path / form)["proj_out.weight"], kept)
    own = output(denoiser, inputs)
    loaded = load_compressed_tensors(type(denoiser), tmp_path / "compressed-tensors")
    assert torch.equal(output(loaded, inputs), own)
    other = type(denoiser).from_pretrained(tmp_path / "torchao", torch_dtype=torch.float32)
    assert relative(output(other, inputs), own) < FLOAT32_ROUNDING


def test_several_files_are_loaded_like_one(tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    pytest.importorskip("torchao")
    denoiser, inputs = made("rtn", "w8a8_int8")
    own = output(denoiser, inputs)
    for form in ("compressed-tensors", "torchao"):
        write_form(denoiser, tmp_path / form, form=form, inputs=inputs, file_bytes=30_000)
        names = {file.name for file in (tmp_path / form).iterdir()}
        files = {name for name in names if name.endswith(".safetensors")}
        assert len(files) > 2
        assert names - files == {"config.json", "diffusion_pytorch_model.safetensors.index.json"}
    loaded = load_compressed_tensors(type(denoiser), tmp_path / "compressed-tensors")
    assert torch.equal(output(loaded, inputs), own)
    other = type(denoiser).from_pretrained(tmp_path / "torchao", torch_dtype=torch.float32)
    assert relative(output(other, inputs), own) < FLOAT32_ROUNDING


@pytest.mark.parametrize(
    ("model", "method", "bits", "form", "reason"),
    [
        ("sd3", "rtn", "w8a8_int8_token", "compressed-tensors", "amax/127.5, not amax/127"),
        ("sd3", "rtn", "w8a8_int8_token", "torchao", "amax/127.5, not amax/127"),
        ("sd3", "rtn", "w4a4_int", "torchao", "4 bits, and its integers have 8"),
        ("sd3", "rtn", "w8a8_fp8", "torchao", "fp8 activations with a static scale"),
        ("wide", "smooth_search", "w8a8_mxfp8", "torchao", "smoothing before MX blocks"),
        ("wide", "rtn", "w4a4_nvfp4", "compressed-tensors", "unpacks such weights to bfloat16"),
        ("wide", "rtn", "w8a8_mxfp8", "compressed-tensors", "goes up from 1.75 on"),
        ("sd3", "segquant_a", "w8a8_int8", "torchao", Beyond.dual_scale.value),
        ("sd3", "segquant_a", "w8a8_int8", "torchao", Beyond.several_smoothings.value),
        ("flux", "segquant_a", "w8a8_int8", "torchao", Beyond.input_segments.value),
        ("sd3", "segquant_a", "w8a8_int8", "compressed-tensors", "smoothing at run time"),
        ("sd3", "quarot", "w8a8_int8", "compressed-tensors", Beyond.rotation.value),
        ("sd3", "svd_lite", "w8a8_int8", "torchao", Beyond.low_rank.value),
        ("sd3", "rtn", "w8a8_int8", "nunchaku-lite", "int4 in groups of 64"),
        ("sd3", "rtn", "w8a8_int8", "nunchaku-lite", "that 128 does not divide"),
        ("sd3", "rtn", "w8a8_int8", "nunchaku-lite", "compute in bfloat16 or float16"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(
    tmp_path: Path, model: str, method: str, bits: str, form: str, reason: str
) -> None:
    denoiser, inputs = made(method, bits, model=model)
    with pytest.raises(FormRefused) as refused:
        write_form(denoiser, tmp_path / "made", form=form, inputs=inputs)
    reasons = refused.value.reasons
    (names,) = [names for why, names in reasons.items() if reason in why]
    message = str(refused.value)
    assert f"{len(names)} x " in message
    assert names[0] in message
    assert f"of {len(quantized_layers(denoiser))} quantized layers" in message
    layer = denoiser.get_submodule(names[0])
    assert FORMS[form].why_not(layer) in reasons
    assert not list(tmp_path.iterdir())


def test_a_type_that_the_library_would_round_scales_to_is_refused(tmp_path: Path) -> None:
    denoiser, _ = made("rtn", "w8a8_int8", dtype=torch.bfloat16)
    with pytest.raises(FormRefused, match=r"with torch_dtype=torch\.float32"):
        write_form(denoiser, tmp_path / "made", form="compressed-tensors")
    assert not list(tmp_path.iterdir())


def test_bad_requests_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser, inputs = made("rtn", "w8a8_int8")
    folder = tmp_path / "made"
    with pytest.raises(ValueError, match="there are compressed-tensors, torchao, nunchaku-lite"):
        write_form(denoiser, folder, form="gguf")
    with pytest.raises(ValueError, match="give inputs= of one call"):
        write_form(denoiser, folder, form="torchao")
    with pytest.raises(ValueError, match="no denoiser of diffusers with quantized layers"):
        write_form(torch.nn.Linear(2, 2), folder, form="torchao")
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "own").touch()
    with pytest.raises(ValueError, match="is there already"):
        write_form(denoiser, taken, form="torchao", inputs=inputs)
    monkeypatch.setattr(every_form, "input_dimensions", lambda *given, inputs: {})
    with pytest.raises(ValueError, match="does not reach"):
        write_form(denoiser, folder, form="torchao", inputs=inputs)
    monkeypatch.setattr("segquant.deploy.other_formats.form_interface.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'segquant-bench\[torchao\]'"):
        write_form(denoiser, folder, form="torchao", inputs=inputs)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_nothing_is_pickled(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    denoiser, inputs = made("rtn", "w8a8_int8")
    write_form(denoiser, tmp_path / "made", form="torchao", inputs=inputs)
    names = {path.name for path in (tmp_path / "made").iterdir()}
    assert names == {"config.json", "diffusion_pytorch_model.safetensors"}
    config: dict[str, Any] = json.loads((tmp_path / "made" / "config.json").read_text())
    assert config["_class_name"] == "SD3Transformer2DModel"
    assert config["quantization_config"]["quant_method"] == "torchao"
