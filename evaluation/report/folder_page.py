"""The page of two folders: verdict first, then the table, thresholds and the images to look at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from evaluation.metrics.metric_interface import Shown
from evaluation.power import images_needed, smallest_told
from evaluation.records import Metric, Record
from evaluation.report.columns import (
    HEADLINE_FROM,
    NO_VALUE,
    Cell,
    Column,
    format_number,
    metric_cell,
)
from evaluation.report.folder_pair import BAD, FolderPair, Line, Said
from evaluation.report.markdown import plain_text
from evaluation.report.marks import Row
from evaluation.report.render import to_markdown
from evaluation.report.rows import Pooled
from evaluation.report.tables import Table
from evaluation.report.thresholds import RULE, Checked
from evaluation.statistics import Estimate, metric_from_estimate

RANKED_BY = ("lpips_alex", "lpips", "mdsi", "flip", "psnr")  # whichever is there first
_LISTED = 5

_TITLES = ("Metric", "A", "B", "B - A", "noise", "n to tell", "verdict")


@dataclass(kw_only=True)
class Page:
    """What is said of a pair, besides the numbers."""

    a: str
    b: str
    sizes: str
    noise: str = ""
    notes: list[str] = field(default_factory=list)
    checked: Sequence[Checked] = ()
    sheet: str = ""  # a picture beside the page


def ranked(pair: FolderPair) -> tuple[Line | None, list[str]]:
    """The metric by which images are ordered, and their names, the farthest from A first."""
    lines = {line.name: line for line in pair.lines if line.to_a}
    line = next((lines[name] for name in RANKED_BY if name in lines), None)
    if line is None:
        return None, list(pair.names)
    scores = pair.scores[line.shown.per_image]
    sign = 1 if line.better else -1
    return line, sorted(pair.names, key=lambda name: (sign * scores[name], name))


def shown_names(pair: FolderPair, *, each: int = 2) -> dict[str, str]:
    """Name -> caption of the worst, the median and the best images."""
    line, names = ranked(pair)
    middle = len(names) // 2
    picks = {
        "worst": names[:each],
        "median": names[max(0, middle - each // 2) : middle + each - each // 2],
        "best": names[-each:][::-1],
    }
    captions: dict[str, str] = {}
    for word, chosen in picks.items():
        for name in chosen:
            captions.setdefault(name, f"{word}: {name}{_score(pair, line, name)}")
    return captions


def _score(pair: FolderPair, line: Line | None, name: str) -> str:
    if line is None:
        return ""
    value = pair.scores[line.shown.per_image][name] * line.shown.scale
    return f", {line.shown.title} {format_number(value, decimals=line.shown.digits)}"


def verdict(pair: FolderPair, page: Page) -> str:
    """One or two sentences, which say what they are held against."""
    count = len(pair.names)
    if pair.identical == count:
        return f"B is A: all {count} images are equal in every pixel."
    told = {said: [line for line in pair.lines if line.said is said] for said in Said}
    parts = []
    if told[Said.beyond]:
        parts.append(
            f"B differs from A beyond the noise floor ({page.noise}) in "
            f"{_listed(told[Said.beyond])}"
        )
    if told[Said.worse]:
        parts.append(f"B is worse than A in {_listed(told[Said.worse])}")
    if told[Said.better]:
        parts.append(f"B is better than A in {_listed(told[Said.better])}")
    if told[Said.shift]:
        parts.append(
            f"{_listed(told[Said.shift])} below A's: a shift of the distribution, no improvement"
        )
    if not parts:
        held = f"the noise floor ({page.noise})" if page.noise else "no difference"
        parts.append(f"nothing tells B from A, held against {held}")
    sentence = "; ".join(parts)
    sentence = f"{sentence[0].upper()}{sentence[1:]}, at 5 % over the table (Holm)."
    if told[Said.unjudged] and not page.noise:
        sentence = (
            f"B's images are {'not' if not pair.identical else 'not all'} A's "
            f"({pair.identical or 0} of {count} identical); how far is too far is not judged "
            "without a second run of A (--noise FOLDER) or a --threshold."
        ) + ("" if _only_unjudged(told) else f" {sentence}")
    return sentence


def _only_unjudged(told: dict[Said, list[Line]]) -> bool:
    return not any(lines for said, lines in told.items() if said is not Said.unjudged)


def _listed(lines: Sequence[Line]) -> str:
    return ", ".join(line.shown.title for line in lines)


def folder_table(pair: FolderPair, page: Page) -> Table:
    """One row a metric; Frechet distances of few images, which are no headline, stand last."""
    lines = sorted(pair.lines, key=_is_no_headline)
    titles = [title for title in _TITLES if title != "noise" or page.noise]
    columns = [
        Column(
            key=title.lower().replace(" - ", "_minus_").replace(" ", "_"),
            title=title,
            legend="",
            cell=lambda _: Cell(text=NO_VALUE),
            numeric=title not in ("Metric", "verdict"),
        )
        for title in titles
    ]
    rows = []
    for line in lines:
        cells = _cells(line)
        record = Record(
            run_id="", status="ok", model="", method=line.name, bits="", dataset="", seed=0,
            metrics={line.name: line.of_b},
        )  # fmt: skip
        pooled = Pooled(record=record, cells=())
        rows.append(Row(pooled=pooled, kind="metric", cells=[cells[title] for title in titles]))
    caption = f"B = {page.b} against A = {page.a}; n = {len(pair.names)} pairs of {page.sizes}"
    if page.noise:
        caption += f"; noise = {page.noise}, a second run of A"
    return Table(caption=f"{caption}.", columns=columns, rows=rows, legend=_legend(page), notes=[])


def _legend(page: Page) -> list[str]:
    lines = [
        "Metrics without a value of A are of B to A, image by image of the same name; [95 % "
        "interval], ± one standard deviation; B - A is paired.",
        "n to tell: images at which such a difference (from A, or from the noise) is told with "
        "80 % power at 5 %.",
    ]
    if page.noise:
        lines.append(
            "noise: the second run of A, to A; where A has a value, its difference from A."
        )
    return lines


def _is_no_headline(line: Line) -> bool:
    return line.shown.biased_below is not None and line.of_b.n < HEADLINE_FROM


def _cells(line: Line) -> dict[str, Cell]:
    shown = line.shown
    title = shown.title
    if shown.biased_below is not None and line.of_b.n < shown.biased_below:
        no = ": no headline" if _is_no_headline(line) else ""
        title += f" (biased, n = {line.of_b.n}{no})"
    arrow = {True: " ↑", False: " ↓", None: ""}[line.better]
    b = metric_cell(line.of_b, scale=shown.scale, digits=shown.digits)
    if line.identical and line.to_a:
        b.text += f" (= {line.identical})"
    difference = None if line.to_a else line.difference
    needed = None if line.difference is None else images_needed(line.difference)
    return {
        "Metric": Cell(text=f"{title}{arrow}", value=line.name),
        "A": Cell(text=NO_VALUE) if line.of_a is None else _number(line.of_a, shown),
        "B": b,
        "B - A": _estimated(difference, shown),
        "noise": _estimated(line.noise, shown),
        "n to tell": Cell(text=NO_VALUE if needed is None else f"{needed:,}", value=needed),
        "verdict": Cell(text=line.said.value, value=line.said.value, bold=line.said in BAD),
    }


def _number(value: float, shown: Shown) -> Cell:
    return metric_cell(
        Metric(value=value, higher_is_better=None, n=0, against=""),
        scale=shown.scale,
        digits=shown.digits,
    )


def _estimated(estimate: Estimate | None, shown: Shown) -> Cell:
    if estimate is None:
        return Cell(text=NO_VALUE)
    if math.isinf(estimate.value):
        return _number(estimate.value, shown)
    metric = metric_from_estimate(estimate, higher_is_better=None, against="", note="", unit="")
    return metric_cell(metric, scale=shown.scale, digits=shown.digits)


def markdown(pair: FolderPair, page: Page) -> str:
    """The whole page, for a pull request."""
    parts = [f"**{verdict(pair, page)}**", "", to_markdown(folder_table(pair, page)).rstrip()]
    parts += [f"- {note}" for note in _notes(pair, page)]
    if page.sheet:
        parts += ["", f"![worst, median and best pairs, with |B - A|]({page.sheet})"]
    return "\n".join(parts) + "\n"


def _notes(pair: FolderPair, page: Page) -> list[str]:
    notes = [_threshold_note(one) for one in page.checked]
    if page.checked:
        notes.append(f"Thresholds: {RULE}.")
    if pair.identical is not None:
        again = "" if pair.noise_identical is None else f" (noise: {pair.noise_identical})"
        notes.append(f"Identical in every pixel: {pair.identical} of {len(pair.names)}{again}.")
    line, names = ranked(pair)
    if line is not None and pair.identical != len(pair.names):
        worst = [f"{plain_text(name)} ({_score(pair, line, name)[2:]})" for name in names[:_LISTED]]
        notes.append(f"Farthest from A: {', '.join(worst)}.")
    told = [f"{line.shown.title} {least}" for line in pair.lines if (least := _least(line))]
    if told:
        notes.append(
            f"What {len(pair.names)} images would tell with 80 % power: {', '.join(told)}."
        )
    flat = pair.flat.items()
    notes += [f"Flat images in {plain_text(label)}: {plain_text(said)}." for label, said in flat]
    notes += [plain_text(note) for note in page.notes]
    if pair.reasons:
        titles = ", ".join(pair.titles.get(name, name) for name in pair.reasons)
        notes.append(f"Not measured (why: on stderr and in --json): {titles}.")
    return notes


def _least(line: Line) -> str:
    """Of a line that was not told apart, the difference that would have been."""
    if line.said not in (Said.unclear, Said.within) or line.difference is None:
        return ""
    least = smallest_told(line.difference)
    return f"{least * line.shown.scale:.2g}" if least else ""


def _threshold_note(one: Checked) -> str:
    word = "**broken**" if one.broken else "kept"
    more = "" if one.why in ("kept", "beyond it") else f" ({one.why.removeprefix('kept: ')})"
    near = "" if one.near is None else f"; the interval's near end is {one.near:.4g}"
    return f"Threshold {one.metric} = {one.allowed:g}: {word}{more}{near}."
