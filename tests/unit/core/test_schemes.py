"""Bits: what is allowed, and what a user is told."""

from dataclasses import fields
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from segquant.core.schemes import Bits, Granularity, TensorScheme
from tests.unit.core.helpers import CHANNEL, GROUP, TENSOR, TOKEN, bits, scheme

CONF = Path(__file__).parents[3] / "conf" / "bits"


@pytest.mark.parametrize("num_bits", [0, 1, 9, 15, 32])
def test_other_bits_are_refused(num_bits: int) -> None:
    with pytest.raises(ValueError, match=f"num_bits={num_bits}; use one of"):
        scheme(num_bits, TENSOR)


def test_group_size_and_granularity_belong_together() -> None:
    with pytest.raises(ValueError, match="give group_size"):
        scheme(4, GROUP)
    with pytest.raises(ValueError, match="set group_size to null"):
        scheme(4, CHANNEL, group_size=64)


@pytest.mark.parametrize(
    ("weight", "activation", "message"),
    [
        (scheme(8, TOKEN), scheme(8, TENSOR), "weight.granularity=per_token; use one of"),
        (scheme(8, TENSOR), scheme(8, CHANNEL), "activation.granularity=per_channel; use one of"),
        (scheme(8, TENSOR, dynamic=True), scheme(8, TENSOR), "weights are always static"),
        # A scale per token fixed at calibration ties the model to its batch and length.
        (scheme(8, TENSOR), scheme(8, TOKEN), "static scale per row"),
        (scheme(16, TENSOR), scheme(8, TENSOR), "quantize the weights too"),
    ],
)
def test_bits_that_make_no_sense_are_refused(
    weight: TensorScheme, activation: TensorScheme, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Bits(name="b", weight=weight, activation=activation)


def test_keep_patterns_are_fnmatch() -> None:
    some = bits(keep=["proj_out", "*.norm1.*"])
    assert some.kept_by("blocks.0.norm1.linear") == "*.norm1.*"
    assert some.kept_by("proj_out") == "proj_out"
    assert some.kept_by("blocks.0.proj_out") is None


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_yaml_is_a_whole_bits(path: Path) -> None:
    content = OmegaConf.load(path)
    assert content.pop("_target_") == "segquant.core.schemes.Bits"
    merged = OmegaConf.merge(OmegaConf.structured(Bits), content)
    made = OmegaConf.to_object(merged)
    assert isinstance(made, Bits)
    assert made.name == path.stem
    assert isinstance(made.weight.granularity, Granularity)
    assert set(content) == {one.name for one in fields(Bits)}
    scheme_fields = {one.name for one in fields(TensorScheme)}
    assert set(content.weight) == set(content.activation) == scheme_fields
