"""The csv files beside the studies' tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence


def csv_text(head: Sequence[str], body: Iterable[Sequence[str | float]]) -> str:
    """Floats keep every digit that tells them from their neighbours."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([head, *body])
    return buffer.getvalue()
