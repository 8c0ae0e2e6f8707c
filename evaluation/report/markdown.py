"""Pipe tables: the one writer of Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence


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


def escape(text: str) -> str:
    """A cell's text with its bars escaped."""
    return text.replace("|", "\\|")
