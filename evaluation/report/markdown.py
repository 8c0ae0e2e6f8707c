"""Pipe tables and plain text: what Markdown would read as its own is shown as it stands."""

from __future__ import annotations

import re
from collections.abc import Sequence

# always; then what is markup in some places alone, so that `segquant_a` and `[1.2, 3.4]` stay
_SIGNS = re.compile(
    r"[\\|<*`]"
    r"|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])"  # emphasis: within a word it is none
    r"|\](?=[(\[:])"  # a link
    r"|~(?=\S)|(?<=\S)~"  # struck out
    r"|&(?=#?[A-Za-z0-9]+;)"  # an entity
    r"|\$(?=\S)|(?<=\S)\$"  # a formula
)
# what makes a line a heading, a quotation, a rule or an entry of a list
_FIRST = re.compile(r"^(\d*)(?=#{1,6}(?:\s|$)|>|[+-](?:\s|$)|[=-]+$|(?<=\d)[.)](?:\s|$))")


def pipe_table(
    head: Sequence[str], body: Sequence[Sequence[str]], *, numeric: Sequence[bool] = ()
) -> str:
    """Aligned columns, without a newline at the end.

    Args:
        numeric: per column, whether it stands right; none for all on the left. A bar in a cell is
            the caller's to escape (`escape`).
    """
    right = list(numeric) or [False] * len(head)
    widths = [max(len(line[index]) for line in (head, *body)) for index in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        shown = (
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(cells, widths, right, strict=True)
        )
        return f"| {' | '.join(shown)} |"

    rule = "|".join(
        "-" * (width + 1) + (":" if is_right else "-")
        for width, is_right in zip(widths, right, strict=True)
    )
    return "\n".join([line(head), f"|{rule}|", *(line(cells) for cells in body)])


def plain_text(text: str) -> str:
    """One line that is shown as it stands, in a table's cell or after a list's dash."""
    one_line = " ".join(text.split())
    return _SIGNS.sub(r"\\\g<0>", one_line)


def plain_line(text: str) -> str:
    """The same where a line begins with it."""
    return _FIRST.sub(r"\1\\", plain_text(text))


def code_span(text: str) -> str:
    """Between as many backticks as the text itself has nowhere."""
    one_line = " ".join(text.split())
    longest = max((len(run) for run in re.findall("`+", one_line)), default=0)
    fence, space = "`" * (longest + 1), " " if longest else ""
    return f"{fence}{space}{one_line}{space}{fence}"


def escape(text: str) -> str:
    """A cell's text with its bars escaped."""
    return text.replace("|", "\\|")
