"""The command line: `segbench VERB [key=value ...]`, also `python -m experiments VERB ...`.

It dispatches to `experiments/verbs/VERB.py` and holds no logic of its own. Exit status: 0 done, 1 a
cell failed (it is in the records), 2 the request was wrong. Answers go to stdout, progress and logs
to stderr.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.config.places import use_config_dirs
from experiments.errors import UserError

if TYPE_CHECKING:
    from experiments.verbs.answer import Answer

log = logging.getLogger("segbench")

EXIT_OK, EXIT_FAILED, EXIT_WRONG = 0, 1, 2
VERBS = {
    "run": "run one cell, or a sweep with -m or +experiment=NAME",
    "check": "whether a run could start now, what it will take, and what is missing",
    "fetch": "the models' files, brought into the hub's cache beforehand",
    "status": "where every cell stands, from records and queue",
    "retry": "run the failed cells again, and no others",
    "evaluate": "the metrics of a sweep again, from the images on disk",
    "quantize": "a pipeline's folder that diffusers loads, with the quantized denoiser in it",
    "export": "a quantized pipeline as ONNX files, or in another library's format",
    "table": "the table of an experiment from its records",
    "report": "one HTML page of an experiment, from its records: table, charts, layers, images",
    "compare": "two folders of images or pipelines; or an experiment's rows against one method's",
    "verify": "read a whole store, out=FOLDER, against its checksums",
    "sync": "push the offline W&B runs below out=FOLDER",
    "inspect": "every Linear: shape, segments, polarity, why",
    "methods": "the methods, what each does and needs; with names, all that is known of those",
    "models": "the models that conf/model names",
    "rehearse": "a model at full size with random weights: seconds and memory of each stage",
    "bench-calibration": "seconds and memory of calibration, against a loop of 22 passes",
    "bench-kernels": "speed of every Linear shape of three models, every way through it",
    "bench-model": "speed of cells (model=... method=a,b), or of a step at full size",
}
_WORDS = {
    "methods": ("name", "a method, or all"),
    "export": ("DIR", "what segbench quantize wrote, then height=512 and so on of its call"),
}
_OVERRIDES = ("key=value", "Hydra overrides")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    verbose = "--verbose" in given
    _quiet(verbose=verbose)  # first: a verb's module brings libraries that read it
    _say_in_any_encoding()
    options = _read(given)
    try:
        return _say(options, _run(options))
    except UserError as error:
        sys.stderr.write(f"segbench: {_in_one_line(error)}\n")
        return EXIT_WRONG
    except KeyboardInterrupt:
        sys.stderr.write("\nsegbench: stopped; the same command goes on where it was\n")
        return 128 + signal.SIGINT
    except BrokenPipeError:  # whoever reads the answer has read enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - Python flushes it at its end
        return EXIT_OK
    except Exception as error:  # no traceback reaches a user who has not asked for it
        if verbose:
            raise
        said = f"{type(error).__name__}: {_in_one_line(error)}"
        sys.stderr.write(f"segbench: {said} (--verbose shows where)\n")
        return EXIT_FAILED


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or "no reason given"


def _say_in_any_encoding() -> None:
    """What a terminal's or a file's encoding lacks is written as an escape, never raised."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _run(options: argparse.Namespace) -> Answer:
    use_config_dirs(options.config_dir)
    answer: Answer = _module(options.verb).run(options)
    return answer


def _say(options: argparse.Namespace, answer: Answer) -> int:
    text = json.dumps(answer.data, indent=2) if options.json else answer.text.rstrip()
    sys.stdout.write(f"{text}\n")
    if answer.wrong:
        return EXIT_WRONG
    return EXIT_FAILED if answer.failed else EXIT_OK


def _read(arguments: list[str]) -> argparse.Namespace:
    """Overrides may stand before and after options, which argparse does not allow by itself."""
    parser = _parser(next((item for item in arguments if not item.startswith("-")), ""))
    options, rest = parser.parse_known_args(arguments)
    unknown = [item for item in rest if item.startswith("-")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    options.overrides = [*options.overrides, *rest]
    return options


def _parser(chosen: str) -> argparse.ArgumentParser:
    """Every verb's name and, of the chosen one, which alone is imported, its arguments."""
    parser = argparse.ArgumentParser(
        prog="segbench",
        description="What post-training quantization does to diffusion models, measured.",
    )
    parser.add_argument("--verbose", action="store_true", help="log what is being done")
    parser.add_argument("--version", action=_Version, nargs=0, help="print it and exit")
    verbs = parser.add_subparsers(metavar="VERB", dest="verb", required=True)
    for name, text in VERBS.items():
        verb = verbs.add_parser(name, help=text, description=text)
        if name == chosen:
            _add_arguments(verb, name)
    return parser


def _add_arguments(verb: argparse.ArgumentParser, name: str) -> None:
    _module(name).add_arguments(verb)
    verb.add_argument("--json", action="store_true", help="a machine-readable answer on stdout")
    verb.add_argument(
        "--config-dir",
        action="append",
        default=[],
        type=Path,
        metavar="FOLDER",
        help="a conf/ of your own: its methods, models, data sets and so on beside the project's",
    )
    metavar, text = _WORDS.get(name, _OVERRIDES)
    verb.add_argument("overrides", nargs="*", metavar=metavar, help=text)


def _module(verb: str) -> Any:
    return importlib.import_module(f"experiments.verbs.{verb.replace('-', '_')}")


class _Version(argparse.Action):
    """Read when it is asked for: no verb needs the package's metadata."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        sys.stdout.write(f"{version('segquant-bench')}\n")
        parser.exit()


def _quiet(*, verbose: bool) -> None:
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(name)s: %(message)s", stream=sys.stderr)
    if not verbose:  # torch's word to the authors of torchao, at every start where that is there
        logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    # waiting threads spin briefly, then sleep: as fast when idle, not tenfold slower when busy
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "info" if verbose else "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "info" if verbose else "error")


if __name__ == "__main__":
    sys.exit(main())
