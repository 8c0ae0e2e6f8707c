"""Every file in conf/ composes and builds, and lists every field of its dataclass."""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from experiments.config.catalogue import describe_methods
from experiments.config.compose import (
    _built,
    _composed,
    build,
    build_cell,
    compose_config,
)
from experiments.config.parts import check_method, locate
from experiments.config.places import GROUPS, options
from experiments.config.request import read_request
from experiments.errors import UserError
from experiments.store.paths import CONF
from experiments.tiny.assemble import CALLS

FILES = [(group, name) for group in GROUPS for name in options(group)]


def _required(group: str, name: str) -> list[str]:
    """What a file leaves to the command line."""
    content = OmegaConf.load(CONF / group / f"{name}.yaml")
    missing = [key for key in content if OmegaConf.is_missing(content, key)]
    return [f"{group}.{key}=/x" for key in missing]


@pytest.mark.parametrize(("group", "name"), FILES)
def test_every_yaml_composes_builds_and_lists_every_field(group: str, name: str) -> None:
    config = build(compose_config([f"{group}={name}", *_required(group, name)]), method_name="")
    part = getattr(config, group)
    listed = set(OmegaConf.load(CONF / group / f"{name}.yaml")) - {"_target_"}
    assert listed == {field.name for field in fields(part)}


@pytest.mark.parametrize(
    "line",
    [
        ["model=tiny_flux", "method=gptq", "bits=w4a8_int", "seed=3"],
        [
            "+experiment=demo",
            "method=svdquant",
            "method.rank=8",
            "model.call.max_sequence_length=7",
        ],
        ["model=folder", "model.path=/x", "++model.call.y=1", "dataset=prompts", "dataset.path=/y"],
        ["cluster=slurm", "~cluster.stages.metrics", "+cluster.jobs.options.nice=5", "out=/z"],
        ["+experiment=baselines", "dataset.evaluation_prompts=3", "logger=none", "group=g"],
    ],
    ids=" ".join,
)
def test_a_cell_built_by_parts_is_the_one_built_whole(line: list[str]) -> None:
    whole = build(compose_config(line), method_name="x")
    assert build_cell(line, method_name="x") == whole


def test_cells_share_nothing_that_can_change() -> None:
    cell, other = (build_cell(["method=gptq"], method_name="gptq") for _ in range(2))
    assert cell == other
    cell.method.damping = 0.5
    cell.model.call["x"] = 1
    assert other.method.damping != 0.5
    assert "x" not in other.model.call


def test_a_sweep_is_composed_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[tuple[str, ...]] = []
    original = _composed.__wrapped__

    def counted(overrides: tuple[str, ...], places: tuple[Path, ...]) -> DictConfig:
        made.append(overrides)
        return original(overrides, places)

    monkeypatch.setattr("experiments.config.compose._composed", functools.cache(counted))
    _built.cache_clear()
    request = read_request(["+experiment=baselines"], multirun=True)
    _built.cache_clear()
    assert len(request.cells) > 800
    assert made == [("+experiment=baselines",)]


@pytest.mark.parametrize(("group", "name"), FILES)
def test_a_choice_read_from_its_file_is_the_one_composed(group: str, name: str) -> None:
    line = ["+experiment=demo", f"{group}={name}", *_required(group, name)]
    assert build_cell(line, method_name="x") == build(compose_config(line), method_name="x")


def test_a_metrics_settings_and_a_calls_arguments_need_no_plus() -> None:
    line = ["metrics.settings.kid.subsets=7", "metrics.settings.kid.size=3", "model.call.n=2"]
    (cell,) = read_request(line, multirun=False).cells
    assert cell.metrics.settings == {"kid": {"subsets": 7, "size": 3}}
    assert cell.model.call["n"] == 2
    with pytest.raises(UserError, match="metrics"):
        read_request(["metrics.settings.kid=7"], multirun=False)


@pytest.mark.parametrize("name", options("experiment"))
def test_every_experiment_expands_and_states_its_command(name: str) -> None:
    request = read_request([f"+experiment={name}"], multirun=True)
    assert request.cells
    head = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()[1:4]
    assert [line.split(":")[0] for line in head] == ["# command", "# cost", "# expect"]
    ways = (f"segbench run +experiment={name}", f"segbench table {name}")
    assert any(way in head[0] for way in ways)


@pytest.mark.parametrize("name", list(CALLS))
def test_the_tiny_models_cards_and_configs_sample_alike(name: str) -> None:
    model = build(compose_config([f"model={name}"]), method_name="").model
    said = dict(CALLS[name])
    assert said.pop("num_inference_steps") == model.num_inference_steps
    assert said.pop("guidance_scale") == model.guidance_scale
    assert said == model.call


def test_the_ablation_arms_differ_from_the_search_in_one_element_each() -> None:
    """The released ablation is confounded by alpha search; these arms are not."""

    def settings(name: str) -> dict[str, object]:
        method = build(compose_config([f"method={name}"]), method_name=name).method
        return {f.name: getattr(method, f.name) for f in fields(method)}

    full, seg, dual = (settings(f"segquant_{arm}") for arm in ("a", "seg_only", "dual_only"))
    assert {k for k in full if full[k] != seg[k]} == {"dual_scale"}
    assert {k for k in full if full[k] != dual[k]} == {"seg_linear"}
    search = settings("smooth_search")
    shared = set(search) & set(full)
    assert {"alpha_min", "alpha_max", "alpha_step"} <= shared
    assert {k for k in shared if search[k] != full[k]} == set()


def test_a_sweep_is_the_product_without_repeats(tmp_path: Path) -> None:
    request = read_request(["method=rtn,gptq,rtn", "bits=w8a8_int8,w4a8_int"], multirun=True)
    names = [(cell.method_name, cell.bits.name) for cell in request.cells]
    assert names == [
        ("rtn", "w8a8_int8"),
        ("rtn", "w4a8_int"),
        ("gptq", "w8a8_int8"),
        ("gptq", "w4a8_int"),
    ]


def test_the_command_line_replaces_what_an_experiment_sweeps() -> None:
    request = read_request(["+experiment=demo", "method=rtn", "bits=w8a8_int8"], multirun=True)
    assert [(c.method_name, c.bits.name) for c in request.cells] == [("rtn", "w8a8_int8")]
    request = read_request(["+experiment=demo", "model=tiny_unet"], multirun=True)
    assert {cell.model.name for cell in request.cells} == {"tiny_unet"}
    assert len(request.cells) == 10


def test_an_experiments_own_values_are_not_undone() -> None:
    request = read_request(["+experiment=demo"], multirun=True)
    assert {cell.group for cell in request.cells} == {"demo"}


class NoDataclass:
    pass


@dataclass
class Stub:
    """A method as one first writes it down."""

    def needs(self) -> None: ...

    def unsupported(self, bits: object) -> None: ...


def test_a_method_half_written_is_refused_with_what_it_lacks() -> None:
    with pytest.raises(UserError, match="NoDataclass' is no dataclass; put @dataclass"):
        locate(f"{__name__}.NoDataclass")
    with pytest.raises(UserError, match="method Stub has no quantize"):
        check_method(Stub())
    Stub.quantize = lambda self, denoiser, *, calibration, bits: None
    with pytest.raises(UserError, match=r"Stub.needs\(\) returned None; it must return Statistics"):
        check_method(Stub())


def test_a_broken_method_does_not_hide_the_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def described(name: str) -> dict[str, str]:
        if name == "rtn":
            raise UserError("cannot be imported")
        return {"method": name}

    monkeypatch.setattr("experiments.config.catalogue._described", described)
    listed = [row["method"] for row in describe_methods()]
    assert "gptq" in listed
    assert "rtn" not in listed
    assert "rtn cannot be read and is left out: cannot be imported" in caplog.text
    with pytest.raises(UserError, match="cannot be imported"):
        describe_methods(["rtn"])
    with pytest.raises(UserError, match="'nobody' is no method"):
        describe_methods(["nobody"])
