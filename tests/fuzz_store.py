"""Damages files of a finished store at random and holds every answer afterwards against the first.

    python -m tests.fuzz_store --cases 2000 --seed 7

prints each case that went wrong, and how often each kind of damage was tried; exit status 1 if any
did. The suite runs 200 cases: tests/integration/test_fuzz_store.py.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from experiments.cli import main as segbench
from tests import micro

LOOKS = ("status", "table", "compare")
_AGAIN = 0.3
NEVER_SEEN = b"\x89\x00\xff\xfe binary \x80"


@dataclass(frozen=True)
class Said:
    """What one call of the command did."""

    status: int
    out: str
    err: str


def call(verb: str, *words: str) -> Said:
    """A verb of a sweep."""
    return answer(verb, "-m", *words)


def answer(*arguments: str) -> Said:
    """The command in this process; a map of ratios, which takes longest, is not drawn."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch("experiments.verbs.compare.ratio_map"),
    ):
        status = segbench(arguments)
    return Said(status, out.getvalue(), err.getvalue())


# damages ------------------------------------------------------------------------------------------


def _flip(path: Path, chance: random.Random) -> None:
    """Another byte of the same length; of a text with digits, another digit."""
    content = bytearray(path.read_bytes())
    if not content:
        content = bytearray(b"x")
    digits = [at for at, byte in enumerate(content) if chr(byte).isdigit()]
    if path.suffix in (".json", ".csv") and digits:
        at = chance.choice(digits)
        content[at] = ord("9") - (content[at] - ord("0"))
    else:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _instead(path: Path, content: bytes) -> None:
    _remove(path)
    path.write_bytes(content)


def _half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _folder(path: Path) -> None:
    _remove(path)
    path.mkdir()
    (path / "something").write_text("in it")


def _link(path: Path, target: Path) -> None:
    _remove(path)
    path.symlink_to(target)


def _anothers(path: Path, chance: random.Random) -> None:
    """A whole file of the same kind that is not this one, or a whole folder."""
    tops = ("stages", "cells", "reports")
    root = next((parent for parent in path.parents if parent.name in tops), path.parent)
    alike = [
        other
        for other in sorted(root.rglob(f"*{path.suffix}"))
        if other != path and other.is_dir() == path.is_dir() and path not in other.parents
        and other not in path.parents
    ]  # fmt: skip
    if not alike:
        return
    other = chance.choice([o for o in alike if o.name == path.name] or alike)
    _remove(path)
    if other.is_dir():
        shutil.copytree(other, path)
    else:
        shutil.copyfile(other, path)


Damage = Callable[[Path, random.Random], Any]
OF_FILES: dict[str, Damage] = {
    "a byte": _flip,
    "half": lambda path, _: _half(path),
    "longer": lambda path, _: path.write_bytes(path.read_bytes() + b"0"),
    "empty": lambda path, _: path.write_bytes(b""),
}
OF_ANYTHING: dict[str, Damage] = {
    "a brace": lambda path, _: _instead(path, b"{"),
    "a list": lambda path, _: _instead(path, b"[]"),
    "null": lambda path, _: _instead(path, b"null"),
    "nested": lambda path, _: _instead(path, b"[" * 50_000),
    "binary": lambda path, _: _instead(path, NEVER_SEEN),
    "gone": lambda path, _: _remove(path),
    "a folder": lambda path, _: _folder(path),
    "a loop": lambda path, _: _link(path, path),
    "a dead link": lambda path, _: _link(path, path.with_name("nowhere")),
    "another's": _anothers,
}
DAMAGES = OF_FILES | OF_ANYTHING


# a store ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FinishedStore:
    """A small sweep that has run, a copy of its store, and what the verbs say of it."""

    words: tuple[str, ...]
    out: Path
    copy: Path
    answers: dict[str, str]

    def restore(self) -> None:
        _remove(self.out)
        shutil.copytree(self.copy, self.out, symlinks=True)

    def paths(self) -> list[Path]:
        """Everything in the store: files, and the folders that hold them."""
        return sorted(path for path in self.out.rglob("*"))


def make_store(folder: Path) -> FinishedStore:
    micro.save_pipeline("tiny_unet", folder / "tiny_unet")
    micro.save_untrained_evaluator(folder / "evaluator")
    out = folder / "runs"
    words = (
        f"model.path={folder / 'tiny_unet'}",
        f"metrics.evaluator={folder / 'evaluator'}",
        *("model.height=16", "model.width=16", "model.num_inference_steps=1"),
        *("model.batch_size=1", "dataset.evaluation_prompts=2", "dataset.calibration_prompts=1"),
        *("metrics.teacher_forced_prompts=2", "metrics.bootstrap_resamples=100"),
        *("num_threads=1", "logger=none", "bits=w8a8_int8", "method=rtn,smoothquant"),
        f"out={out}",
    )
    said = call("run", *words)
    assert said.status == 0, said.err
    answers = {verb: call(verb, *words).out for verb in LOOKS}
    shutil.copytree(out, folder / "copy")
    return FinishedStore(words, out, folder / "copy", answers)


def check(store: FinishedStore, verb: str) -> list[str]:
    """What is wrong with the store's answers: a look, then a run, then the same looks again."""
    wrong = []
    look = call(verb, *store.words)
    if look.status == 0 and not _only_less(look.out, store.answers[verb]):
        wrong.append(f"{verb} answers something else: {_differing(look.out, store.answers[verb])}")
    if look.status == 2 and look.err.count("segbench: ") != 1:
        wrong.append(f"{verb} answers {look.status}: {look.err}")
    run = call("run", *store.words)
    if "Traceback" in look.out + look.err + run.out + run.err:
        wrong.append("a traceback")
    if run.status != 0:
        wrong.append(f"run answers {run.status}: {run.err[-600:]}")
    if run.out != store.answers["table"]:
        wrong.append(f"run answers something else: {_differing(run.out, store.answers['table'])}")
    if (look.status, look.out) == (0, store.answers[verb]):
        return wrong  # the run changed nothing that this verb reads
    after = call(verb, *store.words)
    if (after.status, after.out) != (0, store.answers[verb]):
        told = _differing(after.out, store.answers[verb])
        wrong.append(f"{verb} after a run answers {after.status}: {told} {after.err}")
    return wrong


def _only_less(said: str, whole: str) -> bool:
    """Whether each row is the whole store's, or says that its cell is missing.

    Which row is bold depends on the others that are there.
    """
    known = {_bare(line) for line in whole.splitlines()}
    return all(_bare(line) in known or not _tells_a_number(line) for line in said.splitlines())


def _bare(line: str) -> str:
    return " ".join(line.replace("*", " ").split())


def _tells_a_number(line: str) -> bool:
    row = line.startswith("|") and "w8a8" in line
    return row and "missing" not in line


def _differing(said: str, whole: str) -> list[str]:
    known = set(whole.splitlines())
    return [line[:300] for line in said.splitlines() if line not in known][:4]


@dataclass(frozen=True)
class Case:
    """One damage of one thing, and the verb that meets it first.

    `again`: with the records and metrics gone, so that a run reads all that they were made from.
    """

    path: Path
    damage: str
    verb: str
    again: bool = False

    def __str__(self) -> str:
        gone = ", records gone" if self.again else ""
        return f"{self.path}: {self.damage}{gone}, then {self.verb}"


def cases(
    store: FinishedStore, *, count: int, seed: int, again: float = 0.0
) -> Iterator[tuple[Case, random.Random]]:
    """Args: again: the share of cases with the records gone; they take longest."""
    chance = random.Random(seed)
    paths = [path.relative_to(store.out) for path in store.paths()]
    for _ in range(count):
        path = chance.choice(paths)
        kinds = OF_ANYTHING if (store.out / path).is_dir() else DAMAGES
        damage, verb = chance.choice(sorted(kinds)), chance.choice(LOOKS)
        whole = {"cells", "metrics"} & set(path.parts) or chance.random() >= again
        yield Case(path, damage, verb, again=not whole), chance


def try_case(store: FinishedStore, case: Case, chance: random.Random) -> list[str]:
    """What went wrong; the store is whole again afterwards."""
    try:
        DAMAGES[case.damage](store.out / case.path, chance)
        for part in ("cells", "stages/metrics") if case.again else ():
            shutil.rmtree(store.out / part, ignore_errors=True)
        return check(store, case.verb)
    except Exception:  # whatever comes out of a verb is a fault
        return [traceback.format_exc()]
    finally:
        store.restore()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    tried: Counter[str] = Counter()
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder))
        for case, chance in cases(store, count=options.cases, seed=options.seed, again=_AGAIN):
            tried[case.damage] += 1
            wrong = try_case(store, case, chance)
            failed += bool(wrong)
            for line in wrong:
                sys.stdout.write(f"{case}\n    {line.rstrip()}\n")
    sys.stdout.write(f"{json.dumps(tried)}\n{failed} of {options.cases} cases went wrong\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
