"""A quantized denoiser as an ONNX file, in ONNX Runtime and in OpenVINO."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from segquant.core import LayerRecipe, LowRankSettings, Rounding, quantize_layers
from segquant.core.layer_plan import LayerPlan
from segquant.core.linear import QuantLinear
from segquant.core.schemes import Bits, NumberFormat
from segquant.core.transforms import InputTransform, hadamard_blocks
from segquant.deploy import onnx_export
from segquant.deploy.agreement import nudge, relative_difference
from segquant.deploy.onnx_layer import NotInOnnx, OnnxLinear
from segquant.deploy.onnx_products import cut, why_float
from segquant.method import SegQuant
from tests.unit.core import denoisers
from tests.unit.core.helpers import (
    GROUP,
    TENSOR,
    TOKEN,
    bits,
    calibrate,
    correlated,
    generator,
    info,
    one,
    scheme,
)
from tests.unit.deploy.quantized_models import of_steps, output

pytest.importorskip("onnxscript")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
running = pytest.importorskip("segquant.deploy.onnx_running")
profile = pytest.importorskip("segquant.deploy.onnx_profile")

FEATURES = 32
RECIPES = {
    "static": bits(8, 8),
    "token": bits(8, 8, fine=True),
    "w4a8": bits(4, 8, fine=True),
    "w4a4": bits(4, 4, fine=True),
    "w4a4 static": bits(4, 4),
    "zero points": bits(8, 8, symmetric=False),
    "zero points, 4 bits": bits(4, 4, symmetric=False),
    "zero points by token": bits(8, 8, fine=True, symmetric=False),
    "weights alone": bits(8, 16),
    "groups": Bits(
        name="test",
        weight=scheme(4, GROUP, group_size=16),
        activation=scheme(8, TOKEN, dynamic=True),
    ),
    "many groups": Bits(
        name="test",
        weight=scheme(4, GROUP, group_size=1),
        activation=scheme(8, TOKEN, dynamic=True),
    ),
}
FLOATS = ("zero points by token", "weights alone", "many groups")


def _layer(wanted: Bits, *, cut_it: bool = True, recipe: LayerRecipe | None = None) -> QuantLinear:
    """One with two output and two input segments, DualScale in the first, smoothing of its own."""
    model = one(FEATURES, 24)
    x = correlated(64, FEATURES, seed=1)
    x[:, :16] = nn.functional.silu(x[:, :16])
    graph = None
    if cut_it:
        dual = wanted.activation.symmetric
        graph = {"linear": info(24, FEATURES, output=(8, 16), inputs=((16, dual), (16, False)))}
    calibration = calibrate(model, [x], graph=graph)
    if recipe is None:
        SegQuant(seg_linear=cut_it, dual_scale=cut_it).quantize(
            model, calibration=calibration, bits=wanted
        )
    else:
        quantize_layers(model, calibration=calibration, bits=wanted, recipe=recipe)
    layer = model.linear
    assert isinstance(layer, QuantLinear)
    return layer


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("shape", [(5,), (2, 3), (2, 3, 4)])
def test_in_torch_it_gives_what_the_layer_gives(name: str, shape: tuple[int, ...]) -> None:
    layer = _layer(RECIPES[name])
    made = OnnxLinear(layer)
    assert (made.float_because is not None) == (name in FLOATS), made.float_because
    x = torch.randn(*shape, FEATURES, generator=generator(2))
    torch.testing.assert_close(made(x), layer(x), rtol=1e-5, atol=1e-5)
    assert made(x).shape == (*shape, 24)


def test_low_rank_and_what_precedes_smoothing_are_in_it() -> None:
    recipe = LayerRecipe(rounding=Rounding.rtn, low_rank=LowRankSettings(rank=4))
    layer = _layer(bits(4, 8, fine=True), cut_it=False, recipe=recipe)
    assert layer.spec.rank == 4
    layer.add_row_factors()
    assert layer.row_factors is not None
    layer.row_factors.copy_(torch.linspace(0.5, 2, 24))
    layer.release()
    x = torch.randn(2, 3, FEATURES, generator=generator(2))
    torch.testing.assert_close(OnnxLinear(layer)(x), layer(x), rtol=1e-5, atol=1e-5)
    turned = InputTransform(
        shift_I=torch.linspace(0, 1, FEATURES),
        scale_I=torch.linspace(1, 2, FEATURES),
        permutation_I=torch.randperm(FEATURES, generator=generator(3)).int(),
        rotation_NBB=hadamard_blocks(FEATURES, block_size=16, generator=generator(0)),
    )
    model, seen = one(FEATURES, 24), correlated(64, FEATURES, seed=1)
    calibration = calibrate(model, [seen], gram=False)
    quantize_layers(
        model,
        calibration=calibration,
        bits=bits(8, 8),
        recipe=LayerRecipe(),
        plan_of=lambda name, linear: LayerPlan(transform=turned),
    )
    layer = model.linear
    torch.testing.assert_close(OnnxLinear(layer)(x), layer(x), rtol=1e-5, atol=1e-5)


def test_codes_that_are_small_floats_are_refused() -> None:
    fp8 = Bits(
        name="fp8",
        weight=scheme(8, TENSOR, number_format=NumberFormat.fp8_e4m3),
        activation=scheme(8, TENSOR, number_format=NumberFormat.fp8_e4m3),
    )
    layer = _layer(fp8, cut_it=False)
    with pytest.raises(NotInOnnx, match="weights in fp8_e4m3"):
        OnnxLinear(layer)
    assert onnx_export.refused_layers(nn.Sequential(layer)) == {
        "0": "weights in fp8_e4m3: runtimes have no such product on a CPU"
    }


def test_pieces_lie_between_all_boundaries() -> None:
    pieces = cut((8, 8), (4, 12))
    assert [(p.start, p.stop, p.activation, p.weight) for p in pieces] == [
        (0, 4, 0, 0),
        (4, 8, 0, 1),
        (8, 16, 1, 1),
    ]
    assert [(p.start, p.stop) for p in cut((6,), (6,))] == [(0, 6)]


Made = tuple[Path, onnx_export.OnnxFile, Any, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Made]:
    """By name and bits; each made once."""
    made: dict[tuple[str, str], Made] = {}

    def get(name: str, wanted: str) -> Made:
        if (name, wanted) not in made:
            made[name, wanted] = _exported(name, RECIPES[wanted], tmp_path_factory.mktemp(name))
        return made[name, wanted]

    return get


def _exported(name: str, wanted: Bits, folder: Path) -> Made:
    """A small denoiser of diffusers with segments and DualScale, and its file."""
    model, batches, graph = denoisers.ALL[name]()
    calibration = calibrate(model, batches, graph=graph)
    SegQuant().quantize(model, calibration=calibration, bits=wanted)
    whole = copy.deepcopy(model)
    one_of_each = [_one_row(batches[0], denoisers_rows=2), batches[0]]
    path = folder / "model.onnx"
    said = onnx_export.export_denoiser(model, one_of_each, path)
    return path, said, whole, batches


def _one_row(call: dict[str, Any], *, denoisers_rows: int) -> dict[str, Any]:
    """The first sample of a batch."""

    def first(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: first(item) for key, item in value.items()}
        batched = torch.is_tensor(value) and value.dim() and value.shape[0] == denoisers_rows
        return value[:1] if batched else value

    return {key: first(value) for key, value in call.items()}


@pytest.mark.parametrize(
    ("name", "wanted"), [("sd3", "static"), ("flux", "w4a8"), ("unet", "token")]
)
def test_a_denoisers_file_multiplies_integers_and_agrees(
    name: str, wanted: str, exported: Callable[[str, str], Made]
) -> None:
    path, said, whole, batches = exported(name, wanted)
    if name != "flux":  # whose example has one sample
        assert onnx_export.BATCH in next(iter(said.inputs.values()))
    layers = [module for module in whole.modules() if isinstance(module, QuantLinear)]
    assert any(layer.spec.dual.count(True) for layer in layers)
    cuts = [(layer.spec.output_segments, layer.spec.activation_blocks) for layer in layers]
    assert any(max(len(out), len(into)) > 1 for out, into in cuts)
    assert len(said.integer_layers) == len(layers)
    assert said.integer_products > len(layers)
    assert not said.float_layers
    moved = [
        relative_difference(
            output(whole, nudge(call, generator=generator(seed))), output(whole, call)
        )
        for call, seed in itertools.product(batches, range(3))
    ]
    for runtime in running.RUNTIMES:
        products = profile.profiled_products(
            path, running.feed_of(said, batches[0]), runtime=runtime
        )
        assert products.integer == said.integer_products
        session = running.open_session(path, runtime=runtime, num_threads=1)
        for call in (*batches, _one_row(batches[1], denoisers_rows=2)):
            found = session.run(running.feed_of(session.said, call))
            assert relative_difference(found, output(whole, call)) <= max(2 * max(moved), 1e-5)


def test_the_file_has_standard_operators_and_nothing_of_its_maker(
    exported: Callable[[str, str], Made],
) -> None:
    path, said, _, _ = exported("flux", "w4a8")
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    known = {schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain}
    assert {node.domain for node in model.graph.node} == {""}
    assert {node.op_type for node in model.graph.node} <= known
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == onnx_export.OPSET
    text = path.read_bytes()
    assert b"/site-packages/" not in text
    assert str(Path(__file__).parents[3]).encode() not in text
    packed = [i for i in model.graph.initializer if i.data_type == onnx.TensorProto.INT4]
    assert packed
    assert running.read_said(path) == said


def test_large_weights_lie_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "BESIDE_BYTES", 1000)
    model = one(128, 96)
    x = torch.randn(2, 3, 128, generator=generator(3))
    quantize_layers(
        model,
        calibration=calibrate(model, [x]),
        bits=RECIPES["w4a8"],
        recipe=LayerRecipe(),
    )
    layer = copy.deepcopy(model)
    path = tmp_path / "model.onnx"
    onnx_export.export_denoiser(model, [{"x": x[:1]}, {"x": x}], path)
    assert (tmp_path / "model.onnx.data").stat().st_size > 0
    session = running.open_session(path)
    with torch.no_grad():
        wanted = layer(x)
    found = session.run({"x": x})
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_scales_of_steps_are_in_the_file(tmp_path: Path) -> None:
    model, batches = of_steps(8)
    whole = copy.deepcopy(model)
    path = tmp_path / "model.onnx"
    said = onnx_export.export_denoiser(model, [batches[0]], path)
    session = running.open_session(path)
    assert not said.float_layers
    for call in batches:
        found = session.run(running.feed_of(said, call))
        assert relative_difference(found, output(whole, call)) < 1e-2
    first, last = (output(whole, batch) for batch in (batches[0], batches[-1]))
    assert not torch.equal(first, last)


def test_a_call_that_the_file_is_not_for_is_refused() -> None:
    said = onnx_export.OnnxFile(
        inputs={"sample": ["batch", 4, 8, 8]}, types={"sample": "float32"}, fixed={"scale": 2.0}
    )
    x = torch.zeros(3, 4, 8, 8)
    assert running.feed_of(said, {"sample": x, "scale": 2.0, "mask": None})["sample"].shape[0] == 3
    with pytest.raises(running.OtherCall, match=r"sample of size \[3, 4, 16, 8\]"):
        running.feed_of(said, {"sample": torch.zeros(3, 4, 16, 8), "scale": 2.0})
    with pytest.raises(running.OtherCall, match=r"scale=3.0; the file was exported with 2.0"):
        running.feed_of(said, {"sample": x, "scale": 3.0})
    with pytest.raises(running.OtherCall, match="needs a tensor sample; got None"):
        running.feed_of(said, {"scale": 2.0})


@pytest.mark.parametrize("runtime", running.RUNTIMES)
def test_sums_of_products_are_whole_here(runtime: str) -> None:
    assert running.products_are_exact(runtime)


def test_another_programs_file_is_refused(tmp_path: Path) -> None:
    graph = onnx.helper.make_graph([], "empty", [], [])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="an ONNX file of another program"):
        running.open_session(tmp_path / "model.onnx")


def test_why_float_names_the_reason() -> None:
    reasons = {name: why_float(_layer(RECIPES[name]).spec) for name in FLOATS}
    assert reasons["weights alone"] == "activations are not quantized"
    assert "known at run time" in str(reasons["zero points by token"])
    assert "runs of input features" in str(reasons["many groups"])
    assert why_float(_layer(RECIPES["groups"]).spec) is None
