"""Random requests: any field, any value; each is a plan or one line that refuses it.

    python -m tests.fuzz_requests --cases 5000 --seed 7

Of the suite, `tests/integration/test_fuzz_requests.py` asks 300 of them with a fixed seed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import random
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from experiments.cli import main as segbench
from experiments.config.compose import compose_config
from experiments.config.places import GROUPS, options
from tests import micro

SECONDS = 20  # for one case; most take a tenth of one
NUMBERS = (
    *(
        "nan",
        "inf",
        "-inf",
        ".nan",
        "1e999",
        "0",
        "-0.0",
        "-1",
        "1",
        "2",
        "3",
        "7",
        "0.5",
        "1e-320",
    ),
    *("1e308", "1e12", "99999999999999999999999999", "9223372036854775807", "4294967296"),
    *("1_000", "0x10", "1e3", "true", "false", "null", "'1'", "''"),
)
TEXTS = (
    *("abc", "é", "日本", "\u2028", "'a b'", "a/b", "../..", "/", ".", "~", "/dev/null", "/proc/x"),
    *("'a\\nb'", "\x00", "\ud800", "%s", "{}", "'{'", "'['", "[", "]", "{", "}", "'\"'", "*", "?"),
    *("x" * 300, "x" * 20_000, "auto", "cpu", "cpu:7", "meta", "cuda", "cuda:0", "cuda:-1"),
)
TREES = (
    *("[]", "{}", "[1]", "[1,2]", "[nan]", "[[[[]]]]", "{a:1}", "{a:{b:nan}}", "[a,b]", "['*']"),
    *("[null]", "{1:2}", "[" * 40 + "]" * 40, "[-1]", "[4,8]", "['[']", "[true]", "{prompt:x}"),
)
READ = (
    *("${seed}", "${nope}", "${model}", "${model.path}", "${oc.env:NO_SUCH}", "${oc.env:HOME}"),
    *("${", "$", "\\${a}", "${.}", "${..x}", "${oc.decode:'['}", "${oc.select:x}", "???", "${a:b}"),
)
SWEEPS = (
    *("a,b", "1,2", "glob(*)", "range(0,3)", "range(0,1e12)", "interval(0,1)", "choice(1,2)"),
    *("shuffle(1,2)", "sort(2,1)", "choice()", "int(3.5)", "float(x)", "str([1])", "tag(a,1)"),
)
ODD_KEYS = (
    *("x", "model", "method", "bits.x", "model.call", "model.call.eta", "model.call.prompt"),
    *("metrics.settings.kid.size", "cluster.stages.metrics.cpus", "cluster.jobs.environment.A"),
    *("sweep", "hydra.verbose", "hydra", "model@x", "a.b.c", ".", "..", "model.", "é", "[0]"),
    *(
        "bits.weight",
        "bits.weight.x.y",
        "_target_",
        "method._target_",
        "dataset._target_",
        "group.x",
    ),
)
BEFORE = ("", "", "", "", "", "+", "++", "~")


@dataclass(frozen=True)
class Found:
    """A case that went wrong."""

    words: tuple[str, ...]
    what: str


def models(folder: Path) -> list[str]:
    """Words that make a run small, after small models have been put into a folder."""
    micro.save_pipeline("tiny_unet", folder / "unet")
    micro.save_untrained_evaluator(folder / "evaluator")
    return [
        f"model.path={folder / 'unet'}",
        f"metrics.evaluator={folder / 'evaluator'}",
        *("model.height=16", "model.width=16", "logger=none", "num_threads=1", "method=rtn"),
        *("dataset.evaluation_prompts=2", "dataset.calibration_prompts=2"),
    ]


def cases(small: list[str], *, count: int, seed: int) -> Iterator[list[str]]:
    """Requests of one to three hostile words after those of a small run."""
    rng = random.Random(seed)
    fields = _fields()
    for _ in range(count):
        own = [
            word
            for _ in range(rng.choice((1, 1, 1, 2, 3)))
            for word in _words(rng, *rng.choice(fields))
        ]
        # a plain word for the same key would only be a key given twice
        keys = {word.lstrip("+~").partition("=")[0] for word in own}
        yield [*(word for word in small if word.partition("=")[0] not in keys), *own]


def _fields() -> list[tuple[str, str]]:
    """Keys of all settings, each with the word that makes it one: a method has its own."""
    shared = ["dataset=prompts", "cluster=slurm"]
    keys: dict[str, str] = dict.fromkeys(GROUPS, "")
    for method in options("method"):
        for key in _keys(OmegaConf.to_container(compose_config([f"method={method}", *shared])), ""):
            keys[key] = f"method={method}" if key.startswith("method.") else ""
            if key.startswith("cluster.jobs."):
                keys[key] = "cluster=local_parallel"
    return sorted(keys.items())


def _keys(value: Any, key: str) -> Iterator[str]:
    if key:
        yield key
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _keys(item, f"{key}.{name}" if key else str(name))


def _words(rng: random.Random, key: str, needed: str) -> list[str]:
    if rng.random() < 0.15:
        key, needed = rng.choice(ODD_KEYS), ""
    if key in GROUPS and rng.random() < 0.5:
        return [f"{key}={rng.choice(options(key))}"]
    before = rng.choice(BEFORE)
    if before == "~" and rng.random() < 0.7:
        return [f"~{key}"]
    kind = rng.choice((NUMBERS, NUMBERS, TEXTS, TREES, READ, SWEEPS))
    several = ["-m"] if kind is SWEEPS and rng.random() < 0.5 else []
    return [*([needed] if needed else []), *several, f"{before}{key}={rng.choice(kind)}"]


def ask(words: list[str], out: Path) -> str:
    """What went wrong with a request, or ''."""
    said, errors = io.StringIO(), io.StringIO()
    given = ["run", *words, "--dry-run"]
    if not any(word.lstrip("+~").partition("=")[0] == "out" for word in words):
        given.append(f"out={out}")
    before = set(Path.cwd().iterdir())
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors), _limited():
            status = segbench(given)
    except SystemExit as error:
        status = int(error.code or 0)
    except BaseException as error:  # whatever it is, it is what is looked for
        return "".join(traceback.format_exception(error)[-3:])
    lines = errors.getvalue().strip().splitlines()
    made = set(Path.cwd().iterdir()) - before
    if status not in (0, 2):
        return f"exit {status}: {lines[-1:]}"
    if any("Traceback" in line for line in lines):
        return f"a traceback: {lines[-1]}"
    if status == 2 and (len(lines) != 1 or said.getvalue()):
        return f"{len(lines)} lines: {lines[:4]}"
    if status == 2 and (out.exists() or made):
        return f"refused, and yet something was written ({sorted(made)})"
    return ""


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"no answer in {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fuzz(folder: Path, *, count: int, seed: int) -> Iterator[Found]:
    """Asks so many requests, within the folder; what went wrong, as it is found."""
    small = models(folder)
    for number, words in enumerate(cases(small, count=count, seed=seed)):
        with contextlib.chdir(folder):
            what = ask(words, folder / f"out{number}")
        if what:
            yield Found(tuple(word for word in words if word not in small), what)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=7)
    options_given = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        for case in fuzz(Path(folder), count=options_given.cases, seed=options_given.seed):
            wrong += 1
            sys.stdout.write(f"{case.words!a}\n    {ascii(case.what)[:600]}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{options_given.cases} cases, {wrong} wrong\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
