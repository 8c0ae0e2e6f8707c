"""Published numbers: none without its home, and how far its protocol is from ours."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.config.compose import build_cell
from experiments.errors import UserError
from experiments.paper.protocol_distance import protocol_distance
from experiments.paper.published_numbers import (
    FOLDER,
    PROTOCOL_FIELDS,
    UNKNOWN,
    published_table,
    published_tables,
    read_published,
)

TABLE: dict[str, Any] = {
    "title": "Table 1",
    "about": "a test",
    "provenance": {"source": "a paper", "read_by": "us", "verified": True},
    "protocol": dict.fromkeys(PROTOCOL_FIELDS, UNKNOWN),
    "columns": {"psnr": "psnr"},
    "rows": [{"at": {"model": "m"}, "values": [1.5]}],
}


def written(folder: Path, change: Any) -> Path:
    table = copy.deepcopy(TABLE)
    change(table)
    path = folder / "a.yaml"
    path.write_text(yaml.safe_dump({"paper": {"title": "A"}, "tables": {"t": table}}))
    return path


def test_every_table_of_the_repository_is_read_and_says_who_read_it() -> None:
    assert len(published_tables()) == sum(
        len(yaml.safe_load(path.read_text())["tables"]) for path in FOLDER.glob("*.yaml")
    )
    for key in published_tables():
        for row in published_table(key).rows:
            assert row.provenance.source
            assert row.provenance.read_by
            assert set(row.protocol) == set(PROTOCOL_FIELDS)


@pytest.mark.parametrize("lost", ["source", "read_by", "verified", None])
def test_a_number_without_provenance_is_refused_in_one_line(
    tmp_path: Path, lost: str | None
) -> None:
    def lose(table: dict[str, Any]) -> None:
        if lost is None:
            del table["provenance"]
        else:
            del table["provenance"][lost]

    with pytest.raises(UserError, match="row 1: a number without provenance") as error:
        read_published(written(tmp_path, lose))
    assert "\n" not in str(error.value)


def test_what_is_not_as_it_must_be_is_refused(tmp_path: Path) -> None:
    def two_values(table: dict[str, Any]) -> None:
        table["rows"][0]["values"] = [1, 2]

    def text(table: dict[str, Any]) -> None:
        table["rows"][0]["values"] = ["1.5"]

    def no_steps(table: dict[str, Any]) -> None:
        del table["protocol"]["steps"]

    for change, said in ((two_values, "one a column"), (text, "no number"), (no_steps, "steps")):
        with pytest.raises(UserError, match=said):
            read_published(written(tmp_path, change))
    with pytest.raises(UserError, match=r"there are .*segquant/main_mjhq"):
        published_table("segquant/nothing")


def test_the_distance_names_what_agrees_differs_and_is_unknown() -> None:
    config = build_cell(["model=tiny_mmdit", "method=rtn", "bits=w8a8_int8"], method_name="rtn")
    published = {**dict.fromkeys(PROTOCOL_FIELDS, UNKNOWN), "steps": 12, "images": 5000}
    found = protocol_distance(config, published, model="sd35_medium")
    assert found.agree == ("steps",)
    assert found.differ == {
        "model": ("sd35_medium", "tiny_mmdit"),
        "images": (5000, config.dataset.evaluation_prompts),
    }
    assert "fid_against" not in found.unknown  # says nothing of a row's other numbers
    published |= {"fid_against": "reference", "fid_implementation": "clean-fid"}
    of_fid = protocol_distance(config, published, metric="fid_inception_dataset_same_prompts")
    assert "fid_implementation" in of_fid.agree
    assert of_fid.differ["fid_against"] == ("reference", "dataset")
