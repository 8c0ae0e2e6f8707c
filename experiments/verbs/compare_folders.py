"""`segbench compare A B`: two folders of images, or of what makes images, held against each other.

No config and no store: what is worked out on the way lies in a temporary folder, or in `--work`.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from evaluation.datasets.picture_files import PictureFile, check_readable, folder_pictures
from evaluation.image_pairs import Prepared, check_sizes, pair_names, prepare
from evaluation.metrics.metric_catalogue import all_metrics
from evaluation.metrics.metric_interface import MetricBase
from evaluation.per_image import write_per_image
from evaluation.report.figures import contact_sheet
from evaluation.report.folder_page import Page, folder_table, markdown, shown_names, verdict
from evaluation.report.folder_pair import FolderPair, Line, PairInputs, compare_folders
from evaluation.report.render import FORMATS
from evaluation.report.thresholds import Checked, check_thresholds
from experiments.cell.surroundings import Surroundings
from experiments.cell.sweep import gather_cells
from experiments.config.request import read_request
from experiments.errors import UserError, told_to_the_user
from experiments.store.folders import Store, write_text
from experiments.verbs.answer import Answer
from experiments.verbs.compare_pipelines import AGAIN, Kind, Sampled, kind_of, name_of, sample_both
from experiments.verbs.pace import Pace
from experiments.verbs.prompt_texts import read_texts
from experiments.verbs.words import check_writable, quiet

NAME = "comparison"  # of the files below --out
SHEET = "contact_sheet.png"
_WITH_EVALUATOR = ("metrics=", "metrics.evaluator=")
_WITH_METRICS = ("metrics=", "metrics.measured=")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("two folders, A and B, of images or of what makes them")
    group.add_argument("--common", action="store_true", help="leave out images without a partner")
    group.add_argument(
        "--noise",
        metavar="FOLDER",
        help="images of a second run of A: the noise floor; of a pipeline, `again` samples them",
    )
    group.add_argument("--dataset", type=Path, metavar="FOLDER", help="true images: FID and KID")
    group.add_argument(
        "--prompt-texts", type=Path, metavar="FILE", help="JSON, JSONL or CSV of id and prompt"
    )
    group.add_argument(
        "--prompts", metavar="FILE|N", help="of two pipelines: a file, or so many of the data set's"
    )
    group.add_argument(
        "--threshold",
        action="append",
        default=[],
        metavar="METRIC=VALUE",
        help="exit 1 where the whole 95 %% interval is beyond it: of B to A its value (psnr=30), "
        "else the drop from A (clip_score=0.5)",
    )
    group.add_argument("--out", type=Path, metavar="FOLDER", help="page, table, scores and sheet")
    group.add_argument("--work", type=Path, metavar="FOLDER", help="keeps what pipelines sampled")


def own_options(options: argparse.Namespace) -> list[str]:
    """Which of the above were given."""
    names = ("common", "noise", "dataset", "prompt_texts", "prompts", "threshold", "out", "work")
    return [f"--{name.replace('_', '-')}" for name in names if getattr(options, name)]


def compare_two(options: argparse.Namespace, *, b: str, words: Sequence[str]) -> Answer:
    """Measures, writes below `--out`, and judges the thresholds.

    Raises:
        UserError: what cannot be compared as it stands.
    """
    thresholds = _thresholds(options.threshold)
    a_path, b_path = Path(options.experiment), Path(b)
    kinds = kind_of(a_path), kind_of(b_path)
    check_writable(options.out)
    with tempfile.TemporaryDirectory(prefix="segbench-compare-") as folder:
        temporary = Path(folder)
        work = _Work(options=options, words=words, folder=temporary)
        if kinds == (Kind.images, Kind.images):
            if options.prompts or options.work:
                raise UserError("--prompts and --work are of pipelines; these are images")
            noise = None if options.noise is None else Path(options.noise)
            sampled = Sampled(a=a_path, b=b_path, noise=noise, texts=work.texts())
        else:
            if options.noise not in (None, AGAIN) or options.prompt_texts or options.common:
                raise UserError(
                    f"--noise FOLDER, --prompt-texts and --common are of images; of pipelines say "
                    f"--noise {AGAIN}, and their prompts are known"
                )
            sampled = sample_both(
                a_path,
                b_path,
                kinds=kinds,
                prompts=options.prompts,
                words=words,
                work=options.work or temporary / "store",
                with_noise=options.noise == AGAIN,
            )
        return work.compare(sampled, thresholds=thresholds, names=(str(a_path), str(b_path)))


@dataclass(kw_only=True)
class _Work:
    """One comparison."""

    options: argparse.Namespace
    words: Sequence[str]
    folder: Path

    def texts(self) -> dict[str, str] | None:
        if self.options.prompt_texts is None:
            return None
        with told_to_the_user():
            return read_texts(self.options.prompt_texts)

    def _say_what_is_missing(self, missing: Mapping[str, str]) -> None:
        """A line a reason where words asked for metrics, else one for all."""
        if missing and not self.words:
            sys.stderr.write(
                f"not measured: {', '.join(missing)}; --json says why; most need weights: "
                "metrics.weights=FOLDER (docs/metrics.md)\n"
            )
            return
        reasons: dict[str, list[str]] = {}
        for name, reason in missing.items():
            reasons.setdefault(reason, []).append(name)
        for reason, which in reasons.items():
            sys.stderr.write(f"not measured: {', '.join(which)}: {reason}\n")

    def compare(
        self, sampled: Sampled, *, thresholds: Mapping[str, float], names: tuple[str, str]
    ) -> Answer:
        with told_to_the_user():
            folders = {"A": sampled.a, "B": sampled.b}
            if sampled.noise is not None:
                folders["--noise"] = sampled.noise
            sides = {label: folder_pictures(path) for label, path in folders.items()}
            paired = pair_names(sides, common=self.options.common)
            ready = {
                label: prepare(files, self.folder / label.strip("-"), names=paired.names)
                for label, files in sides.items()
            }
            for label in list(ready)[1:]:
                check_sizes(ready["A"], ready[label], labels=("A", label))
            pair = self._measure(ready, texts=sampled.texts)
            checked = check_thresholds(pair, thresholds)
        page = self._page(names, ready=ready, checked=checked)
        page.notes += sampled.notes
        page.notes += [
            f"Left out of {label}, as not every folder has them: {count} images."
            for label, count in paired.left_out.items()
        ]
        self._say_what_is_missing(pair.reasons)
        self._write(pair, page, ready=ready)
        return Answer(
            markdown(pair, page)
            if self.options.format == "md"
            else FORMATS[self.options.format](folder_table(pair, page)),
            _plain(pair, page),
            failed=any(one.broken for one in checked),
        )

    # measuring ------------------------------------------------------------------------------

    def _measure(
        self, ready: Mapping[str, Prepared], *, texts: Mapping[str, str] | None
    ) -> FolderPair:
        around = self._around()
        settings = replace(around.metric_settings, cache=self.folder / "features")
        if not any(word.startswith(_WITH_EVALUATOR) for word in self.words):
            settings = replace(settings, evaluator=cast(Any, None))  # a toy's says nothing of these
        sizes = ready["A"].sizes
        prompts = {name: None if texts is None else texts.get(name) for name in sizes}
        if texts is not None and None in prompts.values():
            missing = [name for name, text in prompts.items() if text is None]
            raise UserError(f"--prompt-texts has no text for {len(missing)}: {missing[0]}, ...")

        dataset = self.options.dataset
        true_images = None if dataset is None else folder_pictures(dataset)

        def inputs(label: str) -> PairInputs:
            return PairInputs(
                images=ready[label].folder,
                reference=ready["A"].folder,
                prompts=prompts,
                settings=settings,
                dataset=true_images,
                sizes=sizes,
                told=Pace(what=label, count=len(sizes), size=_sizes(ready["A"])).told,
            )

        try:
            return compare_folders(
                self._metrics(around),
                pair=inputs("B"),
                noise=inputs("--noise") if "--noise" in ready else None,
            )
        except OSError as error:
            for side in ready.values():
                linked = (side.folder / f"{name}.png" for name in side.sizes)
                check_readable(PictureFile(path=path.resolve()) for path in linked)
            raise UserError(f"an image cannot be read: {error}") from error

    def _metrics(self, around: Surroundings) -> Sequence[MetricBase]:
        """What the words name; else all that there are, of which some will say what they lack."""
        if any(word.startswith(_WITH_METRICS) for word in self.words):
            return around.metrics
        given = around.config.metrics
        return all_metrics(also=given.also, settings=given.settings)

    def _around(self) -> Surroundings:
        """Settings of the metrics, from the words."""
        store = Store(self.folder / "settings")
        store.prepare()
        config = read_request([*self.words, f"out='{store.root}'"], multirun=False).cells[0]
        return gather_cells([config], store=store, progress=quiet())[0].around

    # saying ---------------------------------------------------------------------------------

    def _page(
        self, names: tuple[str, str], *, ready: Mapping[str, Prepared], checked: Sequence[Checked]
    ) -> Page:
        short = tuple(name_of(Path(name)) for name in names)
        a, b = names if short[0] == short[1] else short
        noise = "" if self.options.noise is None else Path(self.options.noise).resolve().name
        noise = "A sampled again" if noise == AGAIN else noise
        lossy = {label: side.lossy for label, side in ready.items() if side.lossy}
        notes = [
            f"{label} holds {' and '.join(kinds)}: what compression lost is part of the difference."
            for label, kinds in lossy.items()
        ]
        return Page(
            a=a,
            b=b,
            sizes=_sizes(ready["A"]),
            noise=noise,
            notes=notes,
            checked=checked,
            sheet=SHEET if self.options.out is not None else "",
        )

    def _write(self, pair: FolderPair, page: Page, *, ready: Mapping[str, Prepared]) -> None:
        out = self.options.out
        if out is None:
            return
        table = folder_table(pair, page)
        for suffix, render in FORMATS.items():
            text = markdown(pair, page) if suffix == "md" else render(table)
            write_text(out / f"{NAME}.{suffix}", text)
        write_per_image(out / "per_image.csv", ids=pair.names, scores=pair.scores)
        captions = shown_names(pair)
        rows = {label: ready[label].folder for label in ("A", "B")}
        contact_sheet(rows, list(captions), captions, "A", out / SHEET)
        files = (*(f"{NAME}.{suffix}" for suffix in FORMATS), "per_image.csv", SHEET)
        sys.stderr.write("".join(f"wrote {out / name}\n" for name in files))


def _sizes(side: Prepared) -> str:
    several = sorted(set(side.sizes.values()))
    first = f"{several[0][0]}x{several[0][1]}"
    return first if len(several) == 1 else f"{len(several)} sizes"


def _thresholds(given: Sequence[str]) -> dict[str, float]:
    thresholds = {}
    for item in given:
        name, _, value = item.partition("=")
        try:
            thresholds[name] = float(value)
        except ValueError as error:
            raise UserError(f"--threshold {item}: write METRIC=VALUE, as psnr=30") from error
        if not name or not math.isfinite(thresholds[name]):
            raise UserError(f"--threshold {item}: write METRIC=VALUE, as psnr=30")
    if len(thresholds) < len(given):
        raise UserError("--threshold: a metric has one, the stricter of them")
    return thresholds


def _plain(pair: FolderPair, page: Page) -> dict[str, Any]:
    return {
        "verdict": verdict(pair, page),
        "n": len(pair.names),
        "identical": pair.identical,
        "metrics": [_plain_line(line) for line in pair.lines],
        "not_measured": pair.reasons,
        "thresholds": [_readable(asdict(one)) for one in page.checked],
        "flat": pair.flat,
    }


def _plain_line(line: Line) -> dict[str, Any]:
    interval = None if line.estimate is None else [line.estimate.low, line.estimate.high]
    plain = {
        "metric": line.name,
        "to_a": line.to_a,
        "a": line.of_a,
        "b": line.of_b.value,
        "interval": interval,
        "difference": None if line.difference is None else vars(line.difference),
        "noise": None if line.noise is None else vars(line.noise),
        "p_adjusted": line.adjusted,
        "verdict": line.said.value,
    }
    readable: dict[str, Any] = _readable(plain)
    return readable


def _readable(value: Any) -> Any:
    """JSON has no infinity: its name, as in records."""
    if isinstance(value, dict):
        return {key: _readable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_readable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
