"""A quantized denoiser through diffusers' own loading, saving and offloading."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from diffusers import AutoModel
from peft import LoraConfig, get_peft_model_state_dict

import segquant.diffusers as deployed
from segquant.core.linear import QuantLinear
from segquant.deploy.streamed import StreamedLinear
from tests.unit.core import denoisers
from tests.unit.deploy.quantized_models import RECIPE, output, quantized

FRESH = """
import sys
import torch
import segquant.diffusers
from diffusers import AutoModel
folder, inputs, out = sys.argv[1:]
model = AutoModel.from_pretrained(folder)
with torch.no_grad():
    torch.save(model(**torch.load(inputs))[0], out)
ours = {name.split(".")[0] for name in sys.modules} & {"experiments", "evaluation", "baselines"}
assert not ours, ours
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, dict[str, Any]]:
    """The folder, its denoiser's class, an input; in several files."""
    folder = tmp_path_factory.mktemp("saved")
    model, batches = quantized("sd3")
    model.save_pretrained(folder, max_shard_size="30KB")
    return folder, model, batches[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", sorted(denoisers.ALL))
def test_saved_loaded_and_saved_again_it_gives_the_same(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    model, batches = quantized(name, dtype=dtype)
    wanted = output(model, batches[0])
    model.save_pretrained(tmp_path / "one")
    loaded = type(model).from_pretrained(tmp_path / "one")
    assert loaded.dtype == dtype
    assert torch.equal(output(loaded, batches[0]), wanted)
    loaded.save_pretrained(tmp_path / "two", variant="fp16")
    again = type(model).from_pretrained(tmp_path / "two", variant="fp16")
    assert torch.equal(output(again, batches[0]), wanted)
    one, two = (json.loads((tmp_path / n / "config.json").read_text()) for n in ("one", "two"))
    assert one["quantization_config"] == two["quantization_config"]
    assert one["quantization_config"]["recipe"] == RECIPE


def test_streaming_changes_no_output() -> None:
    model, batches, _ = denoisers.ALL["sd3"]()
    streamed, _ = quantized("sd3")
    kinds = {type(module) for module in streamed.modules() if isinstance(module, QuantLinear)}
    assert kinds == {StreamedLinear}
    sizes = sum(t.nbytes for t in (*streamed.parameters(), *streamed.buffers()))
    output(streamed, batches[0])
    assert sum(t.nbytes for t in (*streamed.parameters(), *streamed.buffers())) == sizes
    assert sizes < 0.5 * sum(p.nbytes for p in model.parameters())


def test_a_fresh_process_needs_segquant_and_diffusers_alone(
    saved: tuple[Path, Any, dict[str, Any]], tmp_path: Path
) -> None:
    folder, model, batch = saved
    torch.save(batch, tmp_path / "inputs.pt")
    words = [str(folder), str(tmp_path / "inputs.pt"), str(tmp_path / "out.pt")]
    subprocess.run([sys.executable, "-c", FRESH, *words], check=True, capture_output=True)
    found = torch.load(tmp_path / "out.pt")
    wanted = output(model, batch)
    assert torch.equal(found, wanted)


def test_another_type_is_of_what_is_not_quantized(
    saved: tuple[Path, Any, dict[str, Any]], tmp_path: Path
) -> None:
    folder, model, _ = saved
    loaded = type(model).from_pretrained(folder, torch_dtype=torch.float16)
    layer = loaded.transformer_blocks[0].attn.to_q
    assert (loaded.dtype, layer.dtype, layer.bias.dtype) == (torch.float16,) * 3
    assert layer.weight_scale.dtype == torch.float32
    own = model.transformer_blocks[0].attn.to_q
    assert torch.equal(layer.weight_scale, own.weight_scale)
    loaded.save_pretrained(tmp_path)  # under a seal of its own: other tensors are written
    again = type(model).from_pretrained(tmp_path)
    assert again.dtype == torch.float16


def _sequential(model: Any) -> None:
    cpu_offload(model, execution_device=torch.device("cpu"))


def _with_buffers(model: Any) -> None:
    cpu_offload(model, execution_device=torch.device("cpu"), offload_buffers=True)


def _group(model: Any) -> None:
    cpu = torch.device("cpu")
    model.enable_group_offload(
        onload_device=cpu, offload_device=cpu, offload_type="leaf_level", non_blocking=False
    )


def _cast_between(model: Any) -> None:
    model.enable_layerwise_casting(
        storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32, skip_modules_pattern=()
    )


@pytest.mark.parametrize("moved", [_sequential, _with_buffers, _group])
def test_what_is_offloaded_gives_the_same(
    saved: tuple[Path, Any, dict[str, Any]], moved: Any
) -> None:
    folder, model, batch = saved
    loaded = type(model).from_pretrained(folder)
    moved(loaded)
    found = output(loaded, batch)
    assert torch.equal(found, output(model, batch))


def test_casting_by_layers_leaves_quantized_ones_as_they_are(
    saved: tuple[Path, Any, dict[str, Any]],
) -> None:
    folder, model, batch = saved
    loaded = type(model).from_pretrained(folder)
    _cast_between(loaded)
    output(loaded, batch)
    layer = loaded.transformer_blocks[0].attn.to_q
    own = model.transformer_blocks[0].attn.to_q
    assert torch.equal(layer.bias, own.bias)
    assert layer.dtype == torch.float32


@pytest.mark.parametrize("device_map", ["cpu", {"": "cpu"}])
def test_device_maps_and_copies(
    saved: tuple[Path, Any, dict[str, Any]], device_map: Any, tmp_path: Path
) -> None:
    folder, model, batch = saved
    wanted = output(model, batch)
    loaded = AutoModel.from_pretrained(str(folder), device_map=device_map)
    assert torch.equal(output(loaded, batch), wanted)
    copied = copy.deepcopy(loaded)
    assert torch.equal(output(copied, batch), wanted)
    with pytest.raises(ValueError, match="a copy of the quantized one"):
        copied.save_pretrained(tmp_path)
    deployed.as_diffusers(copied).save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(str(tmp_path))
    assert torch.equal(output(again, batch), wanted)


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda m, f: m.to(torch.float16), "Casting a quantized model"),
        (lambda m, f: m.save_pretrained(f, safe_serialization=False), "never pickled"),
        (
            lambda m, f: type(m).from_pretrained(f, device_map={"": "disk"}, offload_folder="x"),
            "scales would lose their type",
        ),
    ],
)
def test_what_would_lose_something_is_refused(
    saved: tuple[Path, Any, dict[str, Any]], ask: Any, said: str
) -> None:
    folder, model, _ = saved
    loaded = type(model).from_pretrained(folder)
    with pytest.raises(ValueError, match=said):
        ask(loaded, folder)


def test_dequantized_it_is_the_model_with_rounded_weights(
    saved: tuple[Path, Any, dict[str, Any]],
) -> None:
    folder, model, batch = saved
    loaded = type(model).from_pretrained(folder)
    loaded.dequantize()
    assert not any(isinstance(module, QuantLinear) for module in loaded.modules())
    exact = output(denoisers.ALL["sd3"]()[0], batch)
    off = (output(loaded, batch) - exact).norm() / exact.norm()
    assert 0 < off < 0.02


def test_what_is_not_quantized_is_refused() -> None:
    model, _, _ = denoisers.ALL["sd3"]()
    with pytest.raises(ValueError, match="has no quantized layer"):
        deployed.as_diffusers(model)
    with pytest.raises(ValueError, match="none of diffusers' models"):
        deployed.as_diffusers(torch.nn.Linear(2, 2))


def _adapter() -> dict[str, torch.Tensor]:
    model, _, _ = denoisers.ALL["sd3"]()
    torch.manual_seed(1)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    model.add_adapter(  # type: ignore[operator]
        LoraConfig(r=4, lora_alpha=4, target_modules=targets, init_lora_weights=False)
    )
    state = get_peft_model_state_dict(model)
    return {f"transformer.{name}": tensor for name, tensor in state.items()}


def test_an_adapter_works_unfused_and_says_why_it_cannot_be_fused(
    saved: tuple[Path, Any, dict[str, Any]],
) -> None:
    folder, model, batch = saved
    adapter, plain = _adapter(), denoisers.ALL["sd3"]()[0]
    before = output(plain, batch)
    plain.load_lora_adapter(dict(adapter), prefix="transformer")  # type: ignore[operator]
    wanted = output(plain, batch)
    loaded = type(model).from_pretrained(folder)
    loaded.load_lora_adapter(dict(adapter), prefix="transformer")
    effect = (wanted - before).norm() / wanted.norm()
    off = (output(loaded, batch) - wanted).norm() / wanted.norm()
    assert off < effect / 4
    with_adapter = output(loaded, batch)
    with pytest.raises(ValueError, match=r"fuse it before the denoiser is quantized"):
        loaded.fuse_lora()
    assert torch.equal(output(loaded, batch), with_adapter)
    loaded.unload_lora()
    assert torch.equal(output(loaded, batch), output(model, batch))


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ({"weights": 8, "activations": 8}, "w8a8_int"),
        ({"weights": 4, "group_size": 4}, "w4a16_int_group4"),
    ],
)
def test_what_needs_no_data_is_quantized_while_it_is_loaded(
    asked: dict[str, int], name: str, tmp_path: Path
) -> None:
    model, batches, _ = denoisers.ALL["sd3"]()
    model.save_pretrained(tmp_path / "plain")  # type: ignore[operator]
    config = deployed.SegQuantConfig(**asked, keep=["proj_out"])  # type: ignore[arg-type]
    kind: Any = type(model)
    copied = copy.deepcopy(config)  # as a pipeline's config of several parts does
    loaded = kind.from_pretrained(tmp_path / "plain", quantization_config=copied)
    layers = [m for m in loaded.modules() if isinstance(m, StreamedLinear)]
    assert len(layers) > 20
    assert not isinstance(loaded.proj_out, QuantLinear)
    exact = output(model, batches[0])
    found = output(loaded, batches[0])
    assert 0 < (found - exact).norm() / exact.norm() < 0.2
    loaded.save_pretrained(tmp_path / "made")
    again = kind.from_pretrained(tmp_path / "made")
    assert torch.equal(output(again, batches[0]), found)
    recipe = json.loads((tmp_path / "made" / "config.json").read_text())["quantization_config"]
    assert recipe["recipe"] == {"method": "rtn", "bits": name, "keep": ["proj_out"]}


def test_a_config_that_says_nothing_or_what_there_is_not_is_refused(tmp_path: Path) -> None:
    model, _, _ = denoisers.ALL["sd3"]()
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    kind: Any = type(model)
    with pytest.raises(ValueError, match="says nothing to do: give weights=8"):
        kind.from_pretrained(tmp_path, quantization_config=deployed.SegQuantConfig())
    with pytest.raises(ValueError, match="go with weights=BITS"):
        deployed.SegQuantConfig(activations=8)
    with pytest.raises(ValueError, match="weights=16; give 2 to 8"):
        deployed.SegQuantConfig(weights=16)
    with pytest.raises(ValueError, match="num_bits=9"):
        deployed.SegQuantConfig(weights=9)
