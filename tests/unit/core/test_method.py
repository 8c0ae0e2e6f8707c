"""SegQuant on diffusers' own denoisers, and its ablation arms."""

import copy
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from baselines.smooth_search import SmoothSearch
from segquant.core.calibration import Calibration
from segquant.core.checkpoint import load_quantized, save_quantized
from segquant.core.cuts import Boundaries
from segquant.core.linear import QuantLinear
from segquant.core.lowrank import LowRankBudget
from segquant.core.method_interface import Method, QuantizationReport
from segquant.core.rounding import GptqVariant, Rounding
from segquant.core.schemes import Bits
from segquant.core.smoothing import AlphaGrid, SmoothingMode
from segquant.method import SegQuant
from tests.unit.core import denoisers
from tests.unit.core.helpers import bits, calibrate, power_ratio

CONF = Path(__file__).parents[3] / "conf" / "method"
TENSOR_8, FINE_4 = bits(8, 8), bits(4, 4, fine=True)
ARMS = {
    "segquant_a": SegQuant(),
    "segquant_g": SegQuant(rounding=Rounding.gptq),
    "segquant_seg_only": SegQuant(dual_scale=False),
    "segquant_dual_only": SegQuant(seg_linear=False),
}


@cache
def setting(name: str) -> tuple[nn.Module, list[dict[str, Any]], Calibration, Tensor]:
    model, batches, graph = denoisers.ALL[name]()
    calibration = calibrate(model, batches, graph=graph)
    with torch.no_grad():
        return model, batches, calibration, model(**batches[0])[0]


def quantized(
    method: Method, name: str, how: Bits, graph: Any = ...
) -> tuple[nn.Module, QuantizationReport, Tensor]:
    model, batches, calibration, _ = setting(name)
    if graph is not ...:
        calibration = replace(calibration, graph=graph)
    model = copy.deepcopy(model)
    report = method.quantize(model, calibration=calibration, bits=how)
    with torch.no_grad():
        return model, report, model(**batches[0])[0]


def layer(report: QuantizationReport, name: str) -> dict[str, Any]:
    return next(one for one in report.layers_quantized if one["name"] == name)


@pytest.mark.parametrize("name", sorted(denoisers.ALL))
@pytest.mark.parametrize("how", [TENSOR_8, FINE_4], ids=["w8a8", "w4a4"])
@pytest.mark.parametrize("rounding", list(Rounding))
def test_quantizes_reloads_and_stays_near(
    name: str, how: Bits, rounding: Rounding, tmp_path: Path
) -> None:
    _, batches, calibration, exact = setting(name)
    before = copy.deepcopy(batches[0])
    model, report, found = quantized(SegQuant(rounding=rounding), name, how)
    assert power_ratio(found, exact) < (0.01 if how is TENSOR_8 else 0.5)
    assert len(report.layers_quantized) == len(calibration.statistics)
    for key, value in before.items():
        if isinstance(value, Tensor):
            assert torch.equal(value, batches[0][key])
    save_quantized(model, tmp_path / "saved", report)
    fresh, loaded = load_quantized(denoisers.ALL[name]()[0], tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(fresh(**batches[0])[0], found)
    assert loaded == report


def test_flux_single_block_has_its_unequal_segments() -> None:
    """In the authors' code the largest layers of FLUX had neither segments nor a dual scale."""
    _, report, _ = quantized(SegQuant(), "flux", TENSOR_8)
    found = layer(report, "single_transformer_blocks.0.proj_out")
    assert found["input_segments"] == [32, 128]
    assert found["dual_scale"] == [False, True]
    _, without, _ = quantized(SegQuant(seg_linear=False), "flux", TENSOR_8)
    assert layer(without, found["name"])["dual_scale"] == [False]
    assert found["relative_error"] < layer(without, found["name"])["relative_error"]


def test_sd3_modulation_has_its_segments_and_is_one_sided() -> None:
    _, report, _ = quantized(SegQuant(), "sd3", TENSOR_8)
    found = layer(report, "transformer_blocks.0.norm1.linear")
    assert found["output_segments"] == [32] * 9
    assert found["dual_scale"] == [True]
    assert len(found["alphas"]) == 9


def test_heads_are_segments_on_request_only() -> None:
    name = "transformer_blocks.0.attn.to_out.0"
    for head_segments, expected in ((False, [32]), (True, [16, 16])):
        _, report, _ = quantized(SegQuant(head_segments=head_segments), "sd3", TENSOR_8)
        assert layer(report, name)["input_segments"] == expected


@pytest.mark.parametrize("how", [TENSOR_8, FINE_4], ids=["w8a8", "w4a4"])
def test_without_its_two_elements_it_is_smooth_search(how: Bits) -> None:
    """The ablation's base: the authors' arms differed in the search as well."""
    _, report, found = quantized(SegQuant(seg_linear=False, dual_scale=False), "sd3", how)
    _, expected_report, expected = quantized(SmoothSearch(), "sd3", how)
    assert torch.equal(found, expected)
    assert report.layers_quantized == expected_report.layers_quantized
    assert report.search_candidates == expected_report.search_candidates == 12


def test_each_arm_changes_its_own_layers_only() -> None:
    base, _, _ = quantized(SmoothSearch(), "sd3", TENSOR_8)
    _, _, calibration, _ = setting("sd3")
    for arm, touched in (
        ("segquant_seg_only", lambda g: len(g.output_segments) > 1),
        ("segquant_dual_only", lambda g: g.input_segments[0].one_sided),
    ):
        model, _, _ = quantized(ARMS[arm], "sd3", TENSOR_8)
        for name, module in model.named_modules():
            if not isinstance(module, QuantLinear):
                continue
            same = _equal_states(module.state_dict(), base.get_submodule(name).state_dict())
            found = calibration.graph.get(name)
            assert same == (found is None or not touched(found)), name


def _equal_states(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(
    "change",
    [
        {"smoothing": SmoothingMode.none},
        {"smoothing": SmoothingMode.fixed},
        {"alpha_min": 0.7},
        {"alpha_max": 0.0},
        {"alpha_step": 0.5},
        {"rank": 2},
        {"rounding": Rounding.gptq},
        {"rounding": Rounding.gptq, "damping": 0.5},
        {"rounding": Rounding.gptq, "act_order": True},
        {"rounding": Rounding.gptq, "gptq_variant": GptqVariant.released},
        {"alpha_grid": AlphaGrid.released},
        {"boundaries": Boundaries.random},
        {"boundaries": Boundaries.mismatched},
        {"boundaries": Boundaries.none},
    ],
    ids=str,
)
def test_each_setting_reaches_the_computation(change: dict[str, Any]) -> None:
    others = [SegQuant()]
    if len(change) > 1:
        others.append(SegQuant(rounding=Rounding.gptq))
    _, _, found = quantized(SegQuant(**change), "sd3", bits(4, 8))
    for other in others:
        assert not torch.equal(found, quantized(other, "sd3", bits(4, 8))[2])


def test_the_seed_of_random_boundaries_reaches_the_computation() -> None:
    found = [
        quantized(SegQuant(boundaries=Boundaries.random, boundary_seed=seed), "sd3", bits(4, 8))[2]
        for seed in (0, 1)
    ]
    assert not torch.equal(*found)


def test_segment_hessians_and_iterations_reach_the_computation() -> None:
    per_segment = LowRankBudget.per_segment
    for change in (
        {"segment_hessians": True},
        {"rank": 2, "low_rank_iterations": 4},
        {"rank": 2, "low_rank_budget": per_segment},
    ):
        base = {"rank": 2} if "rank" in change else {}
        outputs = [
            quantized(SegQuant(rounding=Rounding.gptq, **some), "flux", bits(3, 8, fine=True))[2]
            for some in (base, change)
        ]
        assert not torch.equal(*outputs)


def test_without_a_graph_it_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"needs the denoiser's static graph.*seg_linear=false"):
        quantized(SegQuant(), "sd3", TENSOR_8, graph=None)
    plain = SegQuant(seg_linear=False, dual_scale=False)
    assert not plain.needs().graph
    quantized(plain, "sd3", TENSOR_8, graph=None)


def test_needs_follow_the_settings() -> None:
    assert SegQuant().needs().graph
    assert not SegQuant().needs().gram
    assert SegQuant(rounding=Rounding.gptq).needs().gram
    assert SegQuant(use_gram=True, sample_rows=7).needs().gram
    assert SegQuant(sample_rows=7).needs().rows == 7


@pytest.mark.parametrize("name", sorted(ARMS))
def test_yaml_is_whole_and_is_the_arm(name: str) -> None:
    content = OmegaConf.load(CONF / f"{name}.yaml")
    assert content.pop("_target_") == "segquant.method.SegQuant"
    assert set(content) == {one.name for one in fields(SegQuant)}
    made = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(SegQuant), content))
    assert made == ARMS[name]
    assert isinstance(made, Method)
