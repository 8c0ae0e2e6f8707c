"""A cell's name says which settings are not those of conf/."""

import pytest

from evaluation.records import label
from experiments.config.naming import changed_settings, names
from experiments.config.request import read_request
from experiments.config.run_config import RunConfig


def cell(*overrides: str) -> RunConfig:
    (config,) = read_request(list(overrides), multirun=False).cells
    return config


def test_conf_as_it_is_has_no_changed_settings() -> None:
    assert changed_settings(cell()) == {}
    assert names(cell()) == ("tiny_mmdit", "segquant_a", "w8a8_int8")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("method.rank=4", ("segquant_a rank=4", "w8a8_int8")),
        ("method.seg_linear=false", ("segquant_a seg_linear=false", "w8a8_int8")),
        ("method.smoothing=fixed", ("segquant_a smoothing=fixed", "w8a8_int8")),
        ("bits.weight.num_bits=4", ("segquant_a", "w8a8_int8 weight.num_bits=4")),
        ("bits.keep=[proj_out]", ("segquant_a", "w8a8_int8 keep=['proj_out']")),
    ],
)
def test_changed_settings_are_in_the_name(override: str, expected: tuple[str, str]) -> None:
    assert names(cell(override))[1:] == expected


def test_replay_switches_are_settings() -> None:
    assert changed_settings(cell("latents=shared", "image=jpeg")) == {
        "latents": "shared",
        "image": "jpeg",
    }


def test_a_label_shows_the_settings_of_its_group_alone() -> None:
    settings = {"method.alpha": 0.7, "bits.keep_budget": None, "latents": "shared"}
    assert label("smoothquant", settings, group="method") == "smoothquant alpha=0.7"
    assert label("w8a8_int8", settings, group="bits") == "w8a8_int8 keep_budget=null"
