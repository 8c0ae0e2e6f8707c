"""How long a method that learns may learn."""

from __future__ import annotations

from enum import Enum


class Budget(Enum):
    """`paper` is the published number of iterations, `quick` a small part of it for small models.

    A row made with `quick` says so among what is left out.
    """

    quick = "quick"
    paper = "paper"


def iterations(budget: Budget, *, quick: int, paper: int) -> int:
    """How many."""
    return paper if budget is Budget.paper else quick


def shortened(done: int, *, paper: int) -> list[str]:
    """What to say of fewer than the published number."""
    return [f"{paper} iterations: {done} were done"] if done < paper else []
