"""A metric is one file: written somewhere, it is measured, stored, tabled and compared."""

import ast
import csv
import dataclasses
import importlib
import io
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from evaluation import metrics as package
from evaluation.measure import measure
from evaluation.metrics import psnr
from evaluation.metrics.metric_catalogue import all_metrics, chosen_metrics, shown
from evaluation.metrics.metric_inputs import Inputs, MetricSettings
from evaluation.metrics.metric_interface import MetricBase
from evaluation.per_image import read_per_image, write_per_image
from evaluation.records import Metric, Record
from evaluation.report.comparison import compare_rows, comparison_table
from evaluation.report.render import to_csv, to_markdown
from evaluation.report.rows import Scored
from evaluation.report.tables import make_table

IDS = ["p1", "p2", "p3"]
SOURCE = """
from dataclasses import dataclass

from evaluation.metrics.metric_interface import MetricBase, Need, Shown

SHOWN = (Shown(metric="brightness_gap", title="Brightness", legend="a legend of its own"),)


@dataclass(kw_only=True)
class BrightnessGap(MetricBase):
    name = "brightness_gap"
    needs = frozenset({Need.reference})
    higher_is_better = False
    columns = ("gap",)

    factor: float = 1.0
    word: str | None = None

    def score(self, batch, inputs):
        gap = batch.float_images.mean((1, 2, 3)) - batch.float_reference.mean((1, 2, 3))
        return {"gap": self.factor * gap.abs()}


METRIC = BrightnessGap
"""
OWN_NAMES = [item.name for item in pkgutil.iter_modules(package.__path__)]
METRIC_FILES = [
    name
    for name in OWN_NAMES
    if hasattr(importlib.import_module(f"{package.__name__}.{name}"), "METRIC")
]


@pytest.fixture(params=["in the package's path", "named in also"])
def also(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, ...]]:
    """The metric's file, known in one of the two ways; what `all_metrics` has to be told."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "brightness_gap.py").write_text(SOURCE)
    before = set(sys.modules)
    if request.param == "named in also":
        monkeypatch.syspath_prepend(str(folder))
        yield ("brightness_gap",)
    else:
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        yield ()
    for name in set(sys.modules) - before:
        if name.endswith("brightness_gap"):
            del sys.modules[name]
    vars(package).pop("brightness_gap", None)


def scores_of(
    metrics: tuple[MetricBase, ...], images: Path, reference: Path
) -> tuple[dict[str, Metric], dict[str, dict[str, float]]]:
    """Of the metrics that need no evaluator."""
    inputs = Inputs(
        images=images,
        reference=reference,
        prompts=dict.fromkeys(IDS, ""),
        settings=MetricSettings(resamples=50),
    )
    cheap = [m for m in metrics if m.name in ("psnr", "brightness_gap", "lpips")]
    measured = measure(cheap, inputs).values()
    return (
        {name: metric for item in measured for name, metric in item.metrics.items()},
        {name: values for item in measured for name, values in item.scores.items()},
    )


def record(method: str, metrics: dict[str, Metric]) -> Record:
    return Record(
        run_id=method, status="ok", model="tiny", method=method, bits="w8", dataset="d", seed=0,
        metrics=metrics,
    )  # fmt: skip


def test_one_file_is_a_metric(also: tuple[str, ...], image_folder, tmp_path: Path) -> None:
    metrics = all_metrics(also)
    reference = image_folder("reference", ids=IDS)
    rows = []
    for method, noise in (("rtn", 20), ("gptq", 40)):
        entries, scores = scores_of(metrics, image_folder(method, ids=IDS, noise=noise), reference)
        path = tmp_path / f"{method}.csv"
        write_per_image(path, ids=IDS, scores=scores)
        assert path.read_text().splitlines()[0].split(",") == ["id", "psnr", "gap"]
        assert read_per_image(path) == scores
        rows.append(Scored(record=record(method, entries), scores=read_per_image(path)))
    metric = rows[0].record.metrics["brightness_gap"]
    values = list(rows[0].scores["gap"].values())
    assert metric.value == pytest.approx(sum(values) / 3)
    assert (metric.higher_is_better, metric.n, metric.against) == (False, 3, "reference")
    assert metric.interval is not None

    table = make_table(rows, descriptions=shown(metrics))
    keys = [column.key for column in table.columns]
    assert keys.index("effective_bits_per_weight") == keys.index("brightness_gap") + 1
    assert "Brightness: a legend of its own." in table.legend
    assert float(next(csv.DictReader(io.StringIO(to_csv(table))))["brightness_gap"]) == metric.value
    if not also:  # known without being told
        assert make_table(rows).legend == table.legend

    compared = compare_rows(rows, against="rtn", descriptions=shown(metrics))
    table = comparison_table(compared, against="rtn", descriptions=shown(metrics))
    assert [column.key for column in table.columns if column.key.endswith("_difference")] == [
        "psnr_difference",
        "gap_difference",
    ]
    (line,) = csv.DictReader(io.StringIO(to_csv(table)))
    gaps = [sum(row.scores["gap"].values()) / 3 for row in rows]
    assert float(line["gap_difference"]) == pytest.approx(gaps[1] - gaps[0])
    assert "Brightness difference: the row's minus rtn's, mean over prompts; lower is better" in (
        to_markdown(table)
    )


def test_settings_reach_the_metric(also: tuple[str, ...], image_folder) -> None:
    reference, images = image_folder("reference", ids=IDS), image_folder("i", ids=IDS, noise=9)
    plain, _ = scores_of(all_metrics(also), images, reference)
    settings = {"brightness_gap": {"factor": 10, "word": None}}
    tenfold, _ = scores_of(all_metrics(also, settings=settings), images, reference)
    ratio = (tenfold["brightness_gap"].value or 0) / (plain["brightness_gap"].value or 1)
    assert ratio == pytest.approx(10)
    (metric,) = (m for m in all_metrics(also, settings=settings) if m.name == "brightness_gap")
    assert dataclasses.asdict(metric) == {"factor": 10, "word": None}
    for wrong, words in (
        ({"brightness_gap": {"factr": 1}}, "brightness_gap.factr: no such setting; allowed are"),
        ({"brightness_gap": {"factor": "1"}}, "factor='1': give a value of type float"),
        ({"brightness_gap": {"factor": True}}, "factor=True"),
        ({"brightness_gap": {"word": 1}}, r"word=1: give a value of type str \| None"),
        ({"brightnes": {}}, "brightnes: no such metric; there are psnr"),
        ({"psnr": {"range": 1}}, "allowed are none"),
    ):
        with pytest.raises(ValueError, match=words):
            all_metrics(also, settings=wrong)


def test_two_metrics_of_one_name_or_column_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    name_taken = SOURCE.replace('"brightness_gap"', '"psnr"', 2)
    (tmp_path / "takes_a_name.py").write_text(name_taken)
    (tmp_path / "takes_a_column.py").write_text(SOURCE.replace('("gap",)', '("psnr",)'))
    (tmp_path / "no_metric_at_all.py").write_text("x = 1\n")
    (tmp_path / "no_words.py").write_text(SOURCE.replace("SHOWN =", "WORDS ="))
    with pytest.raises(ValueError, match="two metrics have the name psnr"):
        all_metrics(["takes_a_name"])
    with pytest.raises(ValueError, match="two metrics have the column psnr"):
        all_metrics(["takes_a_column"])
    with pytest.raises(ValueError, match="say METRIC = "):
        all_metrics(["no_metric_at_all"])
    with pytest.raises(ValueError, match="say SHOWN = "):
        all_metrics(["no_words"])
    with pytest.raises(ValueError, match="no_such_file: cannot be imported"):
        all_metrics(["no_such_file"])
    named_twice = all_metrics(["evaluation.metrics.psnr"])
    assert [metric.name for metric in named_twice].count("psnr") == 1


def test_an_unexpected_error_is_passed_on_and_a_wrong_shape_named(
    tmp_path: Path, image_folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "breaks.py").write_text(SOURCE.replace("gap.abs()", "gap.no_such_thing()"))
    (tmp_path / "one_for_all.py").write_text(SOURCE.replace("gap.abs()", "gap.mean()"))
    reference = image_folder("reference", ids=IDS)
    with pytest.raises(AttributeError, match="no_such_thing"):
        scores_of(all_metrics(["breaks"]), reference, reference)
    with pytest.raises(ValueError, match=r"brightness_gap: gap has shape \(\) for 3 images"):
        scores_of(all_metrics(["one_for_all"]), reference, reference)


def test_a_changed_legend_changes_the_table_alone(
    image_folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, images = image_folder("reference", ids=IDS), image_folder("i", ids=IDS, noise=9)
    before = scores_of(all_metrics(), images, reference)
    old = make_table([Scored(record=record("rtn", before[0]))])
    (words,) = psnr.SHOWN
    monkeypatch.setattr(psnr, "SHOWN", (dataclasses.replace(words, legend="said otherwise"),))
    assert scores_of(all_metrics(), images, reference) == before
    new = make_table([Scored(record=record("rtn", before[0]))])
    assert [a for a, b in zip(old.legend, new.legend, strict=True) if a != b] == [
        f"PSNR dB: {words.legend}."
    ]
    assert "PSNR dB: said otherwise." in new.legend
    assert [[cell.text for cell in row.cells] for row in new.rows] == [
        [cell.text for cell in row.cells] for row in old.rows
    ]


def test_a_run_measures_what_its_yaml_names(also: tuple[str, ...]) -> None:
    chosen = chosen_metrics(["psnr", "fid"], also=also)
    own = ["brightness_gap"] if also else []  # what lies in the package is named as all others are
    assert sorted(metric.name for metric in chosen) == sorted(["psnr", "fid", *own])
    assert chosen_metrics(None, also=also) == all_metrics(also)
    with pytest.raises(ValueError, match=r"no metric psnrr; there are psnr, ssim"):
        chosen_metrics(["psnrr"])


def test_order_is_fixed() -> None:
    names = [metric.name for metric in all_metrics()]
    assert names == [
        "psnr", "ssim", "ms_ssim", "mdsi", "lpips", "lpips_vgg", "clip_score", "clip_score_l14",
        "image_reward", "hps", "pick_score", "step_error", "fid", "fd_dinov2", "kid", "cmmd",
        "damaged_images",
    ]  # fmt: skip
    assert [item.metric for item in shown(all_metrics())] == [
        "fid_{features}_dataset_same_prompts", "fid_{features}_dataset_same_prompts_delta",
        "fid_{features}_dataset_other_prompts", "fid_{features}_dataset_other_prompts_delta",
        "fid_{features}_reference",
        "kid_{features}_dataset_same_prompts", "kid_{features}_dataset_other_prompts",
        "cmmd_dataset_same_prompts", "cmmd_dataset_same_prompts_delta",
        "cmmd_dataset_other_prompts", "cmmd_dataset_other_prompts_delta", "cmmd_reference",
        "fd_dinov2_dataset_same_prompts", "fd_dinov2_dataset_same_prompts_delta",
        "fd_dinov2_dataset_other_prompts", "fd_dinov2_dataset_other_prompts_delta",
        "fd_dinov2_reference",
        "clip_score", "clip_score_delta", "clip_score_l14", "clip_score_l14_delta",
        "image_reward", "image_reward_delta", "hps", "hps_delta", "pick_score",
        "pick_score_delta", "psnr", "ssim", "ms_ssim", "mdsi", "lpips", "lpips_vgg", "step_error",
    ]  # fmt: skip


@pytest.mark.parametrize("name", METRIC_FILES)
def test_presentation_is_one_statement_of_the_module(name: str) -> None:
    """Digests of code leave out exactly that statement."""
    module = importlib.import_module(f"{package.__name__}.{name}")
    assert module.__file__ is not None
    tree = ast.parse(Path(module.__file__).read_text())
    statements = [
        node
        for node in tree.body
        if isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == ["SHOWN"]
    ]
    mentions = [n for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id == "SHOWN"]
    assert len(statements) == len(mentions) == 1
    outside = [node for node in tree.body if node is not statements[0]]
    calls = [n for node in outside for n in ast.walk(node) if isinstance(n, ast.Call)]
    assert not any(isinstance(c.func, ast.Name) and c.func.id == "Shown" for c in calls)
    assert issubclass(module.METRIC, MetricBase)


def test_every_metric_has_a_file_of_its_own() -> None:
    assert set(METRIC_FILES) >= {"psnr", "ssim", "lpips", "clip_score", "fid", "kid"}
    assert len(METRIC_FILES) == len(all_metrics())
