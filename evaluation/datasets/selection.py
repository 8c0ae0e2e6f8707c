"""Which prompts of a data set are evaluated on, and which calibrate: by stated rules."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from evaluation.outside_files import read_text

SELECTIONS = ("first", "random", "deepcompressor", "list")
_DEEPCOMPRESSOR_SEED = 0


def select_ids(
    ids: Sequence[str], *, selection: str, count: int, seed: int, listed: Sequence[str] = ()
) -> list[str]:
    """The ids that are evaluated on, of those of a data set in its file's order.

    `first` takes the first; `random` shuffles with `random.Random(seed)`, takes the first and sorts
    them; `deepcompressor` is that with seed 0, as that project chooses from MJHQ-30K and sDCI, so
    that its 5,000 are these; `list` takes the first of `listed`.

    Raises:
        ValueError: there are fewer, or an id of the list is not in the data set.
    """
    if selection == "list":
        unknown = sorted(set(listed) - set(ids))
        if unknown:
            raise ValueError(
                f"dataset.ids: {len(unknown)} of {len(listed)} ids are not in the data set, "
                f"{unknown[0]!r} among them; it is the list of another one"
            )
        ids = listed
    if len(ids) < count:
        held = "the list of ids holds" if selection == "list" else "the data set has"
        raise ValueError(f"{held} {len(ids)} prompts; dataset.evaluation_prompts asks for {count}")
    if selection in ("random", "deepcompressor"):
        shuffled = list(ids)
        random.Random(seed if selection == "random" else _DEEPCOMPRESSOR_SEED).shuffle(shuffled)
        return sorted(shuffled[:count])
    return list(ids[:count])


def calibration_ids(
    ids: Sequence[str],
    *,
    evaluated: Iterable[str],
    text_of: Callable[[str], str],
    count: int,
    seed: int,
) -> list[str]:
    """Ids to calibrate with: neither evaluated on themselves, nor with a text that is.

    Drawn from all by the seed, in an order that does not depend on what is evaluated.

    Raises:
        ValueError: too few are left.
    """
    taken = set(evaluated)
    texts = {text_of(name) for name in taken}
    order = list(ids)
    random.Random(f"calibration {seed}").shuffle(order)
    chosen: list[str] = []
    for name in order:
        if len(chosen) == count:
            break
        if name not in taken and text_of(name) not in texts:
            chosen.append(name)
    if len(chosen) < count:
        raise ValueError(
            f"{len(chosen)} prompts are left to calibrate with beside {len(taken)} that are "
            f"evaluated on; dataset.calibration_prompts asks for {count}: lower either, or give "
            "others in dataset.calibration_path"
        )
    return chosen


def id_list(ids: Iterable[str]) -> bytes:
    """The file of a list of ids: one a line."""
    return "".join(f"{name}\n" for name in ids).encode()


def read_id_list(path: Path, *, sha256: str | None) -> list[str]:
    """A list of ids, one a line.

    Raises:
        ValueError: it is missing, repeats an id, or has another checksum.
    """
    ids = [line.strip() for line in read_text(path).split("\n") if line.strip()]
    if len(set(ids)) != len(ids):
        repeated = next(name for name in ids if ids.count(name) > 1)
        raise ValueError(f"{path}: {repeated!r} is there twice; ids are unique")
    if sha256 is not None:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != sha256.lower():
            raise ValueError(f"{path}: sha256 is {found}, dataset.ids_sha256 says {sha256}")
    return ids
