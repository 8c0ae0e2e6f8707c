"""Baselines: each against its defining equation, its settings, its yaml, and what it imports."""

import ast
import copy
from dataclasses import fields
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from baselines.fp import FullPrecision
from baselines.gptq import Gptq
from baselines.rtn import RoundToNearest
from baselines.smooth_search import SmoothSearch
from baselines.smoothquant import SmoothQuant
from segquant.core.calibration import Calibration
from segquant.core.method_interface import Method, QuantizationReport, corrector_of
from segquant.core.rounding import GptqVariant
from segquant.core.schemes import Bits
from segquant.core.smoothing import AlphaGrid
from segquant.graph import analyze
from tests.unit.core.helpers import bits, calibrate, correlated, one, power_ratio

ROOT = Path(__file__).parents[3]
NAMES = {
    "fp": FullPrecision,
    "rtn": RoundToNearest,
    "smoothquant": SmoothQuant,
    "smooth_search": SmoothSearch,
    "gptq": Gptq,
}


@cache
def setting() -> tuple[nn.Module, Tensor, Calibration]:
    model, x = one(32, 24), correlated(512, 32, seed=0, spread=1.5)
    return model, x, calibrate(model, [x], rows=512, graph=analyze(model, {"x": x}))


def run(method: Method, how: Bits) -> tuple[Tensor, QuantizationReport]:
    model, x, calibration = setting()
    model = copy.deepcopy(model)
    report = method.quantize(model, calibration=calibration, bits=how)
    with torch.no_grad():
        return model(x), report


def exact(alpha: float | None, how: Bits) -> Tensor:
    """SmoothQuant's layer in float64: per-tensor static, or per-channel and per-token."""
    model, x, _ = setting()
    x, w = x.double(), model.linear.weight.detach().double()
    s = torch.ones(32, dtype=torch.float64)
    if alpha is not None:
        s = x.abs().amax(0) ** alpha / w.abs().amax(0) ** (1 - alpha)
    x, w = x / s, w * s
    top_w, top_x = 2 ** (how.weight.num_bits - 1) - 1, 2 ** (how.activation.num_bits - 1) - 1
    fine = how.activation.dynamic
    step_w = (w.abs().amax(1, keepdim=True) if fine else w.abs().max()) / top_w
    step_x = (x.abs().amax(1, keepdim=True) if fine else x.abs().max()) / top_x
    return ((x / step_x).round() * step_x) @ ((w / step_w).round() * step_w).T + (
        model.linear.bias.detach().double()
    )


@pytest.mark.parametrize("how", [bits(8, 8), bits(4, 8, fine=True)], ids=["tensor", "token"])
@pytest.mark.parametrize("alpha", [None, 0.0, 0.5, 0.8, 1.0])
def test_rtn_and_smoothquant_against_the_equations(alpha: float | None, how: Bits) -> None:
    method = RoundToNearest() if alpha is None else SmoothQuant(alpha=alpha)
    found, report = run(method, how)
    # Values on a tie between two codes may round the other way in float32.
    assert power_ratio(found, exact(alpha, how)) < 1e-6
    assert report.layers_quantized[0]["alphas"] == [[alpha]]


def test_smooth_search_is_the_best_smoothquant() -> None:
    model, x, _ = setting()
    target = model(x).detach().double()
    errors = {
        a: power_ratio(exact(a, bits()), target) for a in [None, *(n / 10 for n in range(11))]
    }
    _, report = run(SmoothSearch(), bits())
    (chosen,) = report.layers_quantized[0]["alphas"][0]
    assert errors[chosen] <= min(errors.values()) * 1.001
    assert report.search_candidates == 12


def test_gptq_lowers_the_error_of_rtn() -> None:
    model, x, _ = setting()
    target = model(x).detach()
    how = bits(4, 16, fine=True)
    # Some channels hold most of the power here, so less is correlated than in GPTQ's own test.
    assert power_ratio(run(Gptq(), how)[0], target) < 0.7 * power_ratio(
        run(RoundToNearest(), how)[0], target
    )


def test_fp_is_exact_and_takes_sixteen_bits_only() -> None:
    model, x, _ = setting()
    found, report = run(FullPrecision(), bits(16, 16))
    assert torch.equal(found, model(x))
    assert report.effective_bits_per_weight_all == 16
    assert FullPrecision().unsupported(bits(8, 8)) == (
        "fp quantizes nothing, test does; use bits=w16a16"
    )
    with pytest.raises(ValueError, match="use bits=w16a16"):
        run(FullPrecision(), bits(8, 8))


@pytest.mark.parametrize(
    ("method", "change"),
    [
        (SmoothQuant, {"alpha": 0.7}),
        (SmoothSearch, {"alpha_min": 0.9}),
        (SmoothSearch, {"alpha_max": 0.1}),
        (SmoothSearch, {"alpha_step": 0.9}),
        (SmoothSearch, {"include_none": False, "alpha_min": 1.0}),
        (Gptq, {"damping": 0.5}),
        (Gptq, {"act_order": True}),
        (Gptq, {"variant": GptqVariant.released}),
        (SmoothSearch, {"alpha_min": 0.9, "alpha_grid": AlphaGrid.released}),
    ],
    ids=str,
)
def test_each_setting_reaches_the_computation(method: Any, change: dict[str, Any]) -> None:
    how = bits(4, 8, fine=True)
    assert not torch.equal(run(method(**change), how)[0], run(method(), how)[0])


def test_settings_that_must_not_change_the_result_do_not() -> None:
    how = bits(4, 8, fine=True)
    torch.testing.assert_close(run(Gptq(block_size=8), how)[0], run(Gptq(), how)[0])


def test_sample_rows_and_gram_are_what_is_asked_for() -> None:
    for method in (RoundToNearest, SmoothQuant, SmoothSearch, Gptq):
        assert method(sample_rows=9).needs().rows == 9
    # SmoothQuant's own folding needs to know what is before a layer.
    assert [m().needs().graph for m in (RoundToNearest, SmoothQuant, SmoothSearch, Gptq)] == [
        False,
        True,
        False,
        False,
    ]
    assert not SmoothQuant(fold=False).needs().graph
    assert Gptq().needs().gram
    assert SmoothSearch(use_gram=True).needs().gram
    assert not SmoothSearch().needs().gram


@pytest.mark.parametrize("name", sorted(NAMES))
def test_yaml_is_whole_and_holds_the_defaults(name: str) -> None:
    content = OmegaConf.load(ROOT / "conf" / "method" / f"{name}.yaml")
    module, _, kind = content.pop("_target_").rpartition(".")
    method = getattr(import_module(module), kind)
    assert method is NAMES[name]
    assert set(content) == {one.name for one in fields(method)}
    made = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(method), content))
    assert made == method()
    assert isinstance(made, Method)
    assert corrector_of(made, calibration=setting()[2]) is None


def test_baselines_stand_on_the_core_alone_and_the_core_on_torch() -> None:
    """A baseline that imports SegQuant's own modules would not be a fair one."""
    for path in (ROOT / "baselines").glob("*.py"):
        ours = {m for m in _imports(path) if m.split(".")[0] in {"segquant", "experiments"}}
        assert all(m.startswith("segquant.core") for m in ours), path
    for path in (ROOT / "segquant" / "core").glob("*.py"):
        for module in _imports(path):
            assert not module.startswith(("segquant.graph", "segquant.method", "baselines")), path
            assert module.split(".")[0] not in {"diffusers", "omegaconf", "hydra", "numpy"}, path


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, path
            found.add(node.module or "")
    return found
