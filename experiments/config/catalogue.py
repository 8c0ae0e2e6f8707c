"""What there is: the methods that conf/ names, described from their own classes."""

from __future__ import annotations

import functools
import inspect
import json
import logging
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evaluation.report.markdown import escape, pipe_table
from experiments.config.compose import build_cell
from experiments.config.parts import settings_of
from experiments.config.places import config_dirs, find_yaml, options
from experiments.errors import UserError
from segquant.core.method_interface import Method
from segquant.core.schemes import Bits

log = logging.getLogger("segbench")

EVERYTHING = "all"
_NOT_HERE = "is not installed"
_NEEDS_NOTHING_MORE = "extremes of the inputs"
_WIDTH = 100
_HEADINGS = ("Source:", "Left out:", "Cost:")


def bits_of(method: Method) -> list[str]:
    """The names in conf/bits that a method does."""
    return _done(_reasons(method))


def _done(reasons: dict[str, str | None]) -> list[str]:
    return [name for name, reason in reasons.items() if reason is None]


def _done_once_installed(reasons: dict[str, str | None]) -> list[str]:
    """Those that only its library is missing for."""
    return [name for name, reason in reasons.items() if reason and _NOT_HERE in reason]


def _reasons(method: Method) -> dict[str, str | None]:
    return {name: method.unsupported(bits) for name, bits in _all_bits(config_dirs()).items()}


@functools.cache
def _all_bits(places: tuple[Path, ...]) -> dict[str, Bits]:
    """Every option of `bits=`; `places` is here for the cache's sake."""
    return {
        name: build_cell([f"bits={name}", "method=fp"], method_name="fp").bits
        for name in options("bits")
    }


def describe_methods(names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Per method: its class, first line of its docstring, settings, needs and bits.

    Args:
        names: of these alone; none, or `all`, for every one that can be read.

    Raises:
        UserError: a name that is no method, or one whose file cannot be read.
    """
    known = options("method")
    for name in names:
        if name != EVERYTHING and name not in known:
            raise UserError(f"{name!r} is no method; there are {', '.join(known)}, or {EVERYTHING}")
    if names and EVERYTHING not in names:
        return [_described(name) for name in known if name in names]
    rows = []
    for name in known:
        try:
            rows.append(_described(name))
        except UserError as error:
            log.warning("%s cannot be read and is left out: %s", name, error)
    return rows


def _described(name: str) -> dict[str, Any]:
    method = build_cell([f"method={name}"], method_name=name).method
    path = find_yaml("method", name)
    assert path is not None
    reasons = _reasons(method)
    return {
        "method": name,
        "class": f"{type(method).__module__}.{type(method).__qualname__}",
        "yaml": first_comment(path),
        "what": (inspect.getdoc(type(method)) or "").splitlines()[0],
        "source": _told(method, "Source:"),
        "left_out": _told(method, "Left out:"),
        "cost": _told(method, "Cost:"),
        "settings": {key: _plain(value) for key, value in settings_of(method).items()},
        "needs": asdict(method.needs()),
        "bits": _done(reasons),
        "bits_once_installed": _done_once_installed(reasons),
    }


def first_comment(path: Path) -> str:
    """The first line of a yaml, which says what it is."""
    first = path.read_text().splitlines()[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def _told(method: Method, heading: str) -> str:
    """What a method's docstring says after a heading, up to the next one or an empty line."""
    text = inspect.getdoc(type(method)) or ""
    if heading not in text:
        return ""
    rest = text.split(heading, 1)[1]
    ends = [at for end in (*_HEADINGS, "\n\n") if (at := rest.find(end)) >= 0]
    return " ".join(rest[: min(ends, default=len(rest))].split())


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _plain(value: Any) -> Any:
    return getattr(value, "name", value)


def render_methods(rows: list[dict[str, Any]], *, whole: bool = False) -> str:
    """What each method is, then what it needs and which bits it does; or all that is known."""
    if whole:
        return "\n\n".join(_whole(row) for row in rows)
    return "\n\n".join(
        [
            _table(["method", "what"], [[row["method"], row["what"]] for row in rows]),
            f"{_bits_matrix(rows)}\nx: does these bits; o: once its library is installed.",
            _bits_table(),
            "segbench methods NAME: source, what is left out of the published method, cost, "
            f"settings; segbench methods {EVERYTHING}: of every one.",
        ]
    )


def _whole(row: dict[str, Any]) -> str:
    """Everything that is known of one method, wrapped."""
    settings = ", ".join(f"{name}={_short(value)}" for name, value in row["settings"].items())
    parts = {
        "source": row["source"],
        "left out": row["left_out"],
        "needs": ", ".join(_needs(row["needs"])) or _NEEDS_NOTHING_MORE,
        "cost": row["cost"],
        "settings": settings,
        "bits": ", ".join(row["bits"])
        or "once its library is installed: " + ", ".join(row["bits_once_installed"]),
    }
    lines = [f"{row['method']}: {row['what']}", f"  {row['yaml']}", f"  {row['class']}"]
    for name, text in parts.items():
        head = f"  {name}: "
        lines += textwrap.wrap(
            text or "-", width=_WIDTH, initial_indent=head, subsequent_indent=" " * 12
        )
    return "\n".join(lines)


def _bits_matrix(rows: list[dict[str, Any]]) -> str:
    """One column a bit-width, numbered as in the table of bits."""
    names = list(_all_bits(config_dirs()))
    body = []
    for row in rows:
        marks = [
            "x" if name in row["bits"] else "o" if name in row["bits_once_installed"] else ""
            for name in names
        ]
        body.append([row["method"], *marks, ", ".join(_needs(row["needs"])) or "extremes"])
    numbers = [str(number) for number in range(1, len(names) + 1)]
    return _table(["method", *numbers, "needs"], body)


def _bits_table() -> str:
    body = [
        [str(number), name, bits.weight.describe(), bits.activation.describe()]
        for number, (name, bits) in enumerate(_all_bits(config_dirs()).items(), 1)
    ]
    return _table(["", "bits", "weights", "inputs"], body)


def _table(head: list[str], body: list[list[str]]) -> str:
    return pipe_table(head, [[escape(cell) for cell in line] for line in body])


def _needs(needs: dict[str, Any]) -> list[str]:
    words = {
        "gram": "Gram matrices",
        "graph": "static graph",
        "replay": "replayed calls",
        "steps": "statistics per step",
        "capture_bytes": "stored calls",
    }
    return [word for key, word in words.items() if needs.get(key)]
