"""What a verb says: text for people, data for programs, and whether something failed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answer:
    """`failed` is exit status 1: the request was right, and not all of it could be done.

    `wrong` is exit status 2: as it stands, the request could not be done at all.
    """

    text: str
    data: Any  # JSON's types, for --json
    failed: bool = False
    wrong: bool = False
