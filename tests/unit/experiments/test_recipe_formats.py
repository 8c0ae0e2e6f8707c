"""The table of recipes and formats: it is of today's, and a part of it comes out the same."""

from __future__ import annotations

import pytest

from experiments.store.paths import RESULTS, ROOT
from experiments.studies import recipe_formats as study
from experiments.studies.form_trials import TRIALS, Result
from segquant.deploy.other_formats import FORMS

AGAIN = {
    (study.TINY, "rtn", "", "w8a8_int8"),
    (study.WIDE, "segquant_a", "", "w4a4_int_group64"),
    (study.WIDE, "rtn", "", "w4a4_int_group64"),
}
OURS = ("diffusers", *FORMS)


@pytest.fixture(scope="module")
def committed() -> list[dict[str, str]]:
    return study.read_csv(RESULTS / f"{study.NAME}.csv")


@pytest.fixture(scope="module")
def recipes() -> list[study.Recipe]:
    return study.recipes()


def _key(recipe: study.Recipe) -> tuple[str, ...]:
    return recipe.model, recipe.method, " ".join(recipe.settings), recipe.bits


def test_the_committed_table_names_todays_recipes_and_formats(
    committed: list[dict[str, str]], recipes: list[study.Recipe]
) -> None:
    assert set(OURS) <= set(TRIALS)
    found = [tuple(row[k] for k in ("model", "method", "settings", "bits")) for row in committed]
    wanted = [_key(recipe) for recipe in recipes for _ in TRIALS]
    assert found == wanted
    assert [row["format"] for row in committed] == [*TRIALS] * len(recipes)


def test_the_committed_table_hides_nothing(committed: list[dict[str, str]]) -> None:
    text = (RESULTS / f"{study.NAME}.md").read_text()
    assert f"`{study.COMMAND}`" in text
    assert f"{study.NAME}.md" in (ROOT / "docs" / "formats.md").read_text()
    for row in committed:
        refused = row["result"] == Result.refused.name
        assert refused == bool(row["reasons"]), row
        assert refused == (int(row["refused"]) > 0), row
        for reason in filter(None, row["reasons"].split("; ")):
            assert reason.partition(" x ")[2] in text
    results = {(row["format"], row["result"]) for row in committed}
    assert {form for form, result in results if result == "refused"} == set(FORMS)
    assert {form for form, result in results if result != "refused"} == set(TRIALS)


def test_what_is_loaded_is_the_same_layer_by_layer(committed: list[dict[str, str]]) -> None:
    loaded = [row for row in committed if row["result"] == "loaded" and row["model"] == study.TINY]
    for row in loaded:
        exact = row["format"] in ("diffusers", "compressed-tensors")
        assert float(row["layer_difference"]) <= (0 if exact else 1e-6), row


def test_a_part_of_it_comes_out_the_same(
    committed: list[dict[str, str]], recipes: list[study.Recipe]
) -> None:
    wanted = [recipe for recipe in recipes if _key(recipe) in AGAIN]
    assert len(wanted) == len(AGAIN)
    for row in study.measure(wanted, forms=OURS):
        for form, outcome in row.outcomes.items():
            (before,) = [
                line
                for line in committed
                if line["format"] == form
                and (line["model"], line["method"], line["settings"], line["bits"])
                == _key(row.recipe)
            ]
            assert outcome.result.name == before["result"]
            assert (outcome.layers, outcome.refused) == (
                int(before["layers"]),
                int(before["refused"]),
            )
            assert "; ".join(f"{n} x {why}" for why, n in outcome.reasons) == before["reasons"]
