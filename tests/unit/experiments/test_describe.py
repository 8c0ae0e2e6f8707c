"""What W&B is told of a config: everything but what may be a secret."""

from __future__ import annotations

import json

import pytest

from experiments.config.compose import build, build_cell, compose_config
from experiments.config.describe import HIDDEN, describe_config
from experiments.config.request import read_request

SECRET = "hunter2-hunter2"
WORDS = [
    "cluster=slurm",
    f"+cluster.jobs.environment.API_KEY={SECRET}",
    f"+cluster.stages.cell.environment.OTHER_KEY={SECRET}",
    "cluster.jobs.account=${oc.env:MY_WORD}",
    "logger.entity=${oc.env:MY_WORD}",
    "+model.call.note=[a,${oc.env:MY_WORD}]",
    "device=cpu",
]


@pytest.fixture(autouse=True)
def word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_WORD", SECRET)


def test_values_of_the_environment_are_not_told() -> None:
    cell = build_cell(WORDS, method_name="segquant_a")
    assert cell.logger.entity == SECRET
    told = describe_config(cell)
    assert SECRET not in json.dumps(told)
    assert told["logger"]["entity"] == HIDDEN
    assert told["cluster"]["jobs"]["environment"]["API_KEY"] == HIDDEN
    assert told["cluster"]["stages"]["cell"]["environment"] == {"OTHER_KEY": HIDDEN}
    assert told["method"]["alpha"] == 0.5
    assert build(compose_config(WORDS), method_name="segquant_a") == cell


def test_a_config_without_any_is_told_whole() -> None:
    (cell,) = read_request([], multirun=False).cells
    assert HIDDEN not in json.dumps(describe_config(cell))
