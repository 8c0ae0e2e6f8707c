"""The verbs: `segbench VERB [key=value ...]`, also `python -m experiments VERB ...`.

Exit status: 0 done, 1 a cell failed (it is in the records), 2 the request was wrong.
Answers go to stdout, progress and logs to stderr.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from experiments.errors import UserError

log = logging.getLogger("segbench")

EXIT_OK, EXIT_FAILED, EXIT_WRONG = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit status."""
    options = _read(arguments)
    _quiet(verbose=options.verbose)
    verb: Callable[[argparse.Namespace], int] = options.verb
    try:
        return verb(options)
    except UserError as error:
        sys.stderr.write(f"segbench: {error}\n")
        return EXIT_WRONG
    except KeyboardInterrupt:
        sys.stderr.write("\nsegbench: stopped; the same command goes on where it was\n")
        return 128 + signal.SIGINT


def _read(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Overrides may stand before and after options, which argparse does not allow by itself."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    unknown = [item for item in rest if item.startswith("-")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    options.overrides = [*options.overrides, *rest]
    return options


class _Version(argparse.Action):
    """Read when it is asked for: no verb needs the package's metadata."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        sys.stdout.write(f"{version('segquant-bench')}\n")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="segbench",
        description="What post-training quantization does to diffusion models, measured.",
    )
    parser.add_argument("--verbose", action="store_true", help="log what is being done")
    parser.add_argument("--version", action=_Version, nargs=0, help="print it and exit")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    run = _verb(verbs, "run", _run, "run one cell, or a sweep with -m or +experiment=NAME")
    run.add_argument("-m", "--multirun", action="store_true", help="key=a,b means both")
    run.add_argument("--dry-run", action="store_true", help="print the plan and its cost")
    follow = "wait for the jobs, one line a cell"
    run.add_argument("--follow", action="store_true", help=follow)
    status = _verb(verbs, "status", _status, "where every cell stands, from records and queue")
    retry = _verb(verbs, "retry", _retry, "run the failed cells again, and no others")
    for verb in (status, retry):
        verb.add_argument("-m", "--multirun", action="store_true", help="as run takes it")
        verb.add_argument("--follow", action="store_true", help=follow)
    _verb(verbs, "sync", _sync, "push the offline W&B runs below out=FOLDER")
    text = "the table of an experiment from its records"
    table = _verb(verbs, "table", _table, text, positional="experiment")
    table.add_argument("--format", choices=("md", "csv", "tex"), default="md")
    text = "every row of an experiment against one method's, prompt by prompt"
    compare = _verb(verbs, "compare", _compare, text, positional="experiment")
    compare.add_argument("--against", default="rtn", metavar="METHOD", help="default: rtn")
    compare.add_argument("--format", choices=("md", "csv", "tex"), default="md")
    compare.add_argument(
        "--reasons", type=Path, metavar="FILE", help="YAML; a worse row without a reason is exit 1"
    )
    for verb in (table, compare):
        verb.add_argument("-m", "--multirun", action="store_true", help="as run takes it")
    _verb(verbs, "inspect", _inspect, "every Linear: shape, segments, polarity, why")
    text = "seconds and memory of calibrating and quantizing, against a loop of 22 passes"
    _verb(verbs, "bench-calibration", _bench_calibration, text)
    text = "the methods, what each does and needs; with names, all that is known of those"
    _verb(verbs, "methods", _methods, text, rest=("name", "a method, or all"))
    _verb(verbs, "models", _models, "the models that conf/model names")
    _add_speed_verbs(verbs)
    return parser


def _add_speed_verbs(verbs: Any) -> None:
    from experiments.speed.arguments import add_arguments

    text = "speed of every Linear shape of three models, every way through it"
    add_arguments(_verb(verbs, "bench-kernels", _bench_kernels, text), table=True)
    text = "speed of one denoiser step at full size, with random weights"
    add_arguments(_verb(verbs, "bench-model", _bench_model, text), table=False)


def _verb(
    verbs: Any,
    name: str,
    function: Callable[[argparse.Namespace], int],
    text: str,
    *,
    positional: str | None = None,
    rest: tuple[str, str] = ("key=value", "Hydra overrides"),
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=text)
    parser.set_defaults(verb=function)
    if positional is not None:
        parser.add_argument(positional, metavar=f"{positional.upper()}|key=value")
    parser.add_argument("--json", action="store_true", help="a machine-readable answer on stdout")
    parser.add_argument("overrides", nargs="*", metavar=rest[0], help=rest[1])
    return parser


def _quiet(*, verbose: bool) -> None:
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(name)s: %(message)s", stream=sys.stderr)
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


def _answer(options: argparse.Namespace, *, data: Any, text: str) -> None:
    sys.stdout.write(json.dumps(data, indent=2) + "\n" if options.json else text.rstrip() + "\n")


def _run(options: argparse.Namespace) -> int:
    from evaluation.records import encode_record
    from experiments.cell.progress import Progress, duration
    from experiments.cell.sweep import check_request, make_benches, make_plan, run_request
    from experiments.config.request import read_request
    from experiments.store.folders import Store
    from experiments.verbs.cluster_verbs import Sweep
    from experiments.verbs.report_files import log_cell, write_report

    begun = time.perf_counter()
    request = read_request(options.overrides, multirun=options.multirun)
    store = Store(Path(request.cells[0].out))
    progress = Progress(cells=len(request.cells), prompts=0)
    benches = make_benches(request, store, progress)
    check_request(request, benches, store)
    if request.cells[0].cluster.jobs is not None:
        return _run_elsewhere(options, Sweep(request, store, benches), progress)
    plan = make_plan(request, benches)
    progress.expect(plan.prompts)
    if options.dry_run:
        return _print_plan(options, request, plan)

    def finished(config: Any, record: Any, bench: Any, fresh: bool) -> None:
        label = f"{record.model} {record.method_label} {record.bits_label}"
        state = record.status if fresh else f"{record.status} (found)"
        progress.note(f"{label}: {state}{': ' + record.reason if record.reason else ''}")
        if fresh:
            reason = log_cell(config, record, bench)
            if reason:
                progress.note(f"{label}: {reason}")

    records = run_request(request, progress=progress, benches=benches, finished=finished)
    folder = store.root / "reports" / request.name
    report = write_report(request, records, benches, folder=folder)
    progress.note(f"{_count(len(records), 'cell')} in {duration(time.perf_counter() - begun)}")
    for path in report.files:
        progress.note(f"wrote {path}")
    _answer(options, data=[encode_record(record) for record in records], text=report.markdown)
    return EXIT_FAILED if any(record.status == "failed" for record in records) else EXIT_OK


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _run_elsewhere(options: argparse.Namespace, sweep: Any, progress: Any) -> int:
    from experiments.verbs.cluster_verbs import describe_jobs, run_elsewhere

    if options.dry_run:
        return _say(options, describe_jobs(sweep))
    return _say(options, run_elsewhere(sweep, progress=progress, watch=options.follow))


def _say(options: argparse.Namespace, answer: Any) -> int:
    _answer(options, data=answer.data, text=answer.text)
    return EXIT_FAILED if answer.failed else EXIT_OK


def _status(options: argparse.Namespace) -> int:
    from experiments.verbs.cluster_verbs import status

    return _say(options, status(options))


def _retry(options: argparse.Namespace) -> int:
    from experiments.verbs.cluster_verbs import retry

    return _say(options, retry(options))


def _sync(options: argparse.Namespace) -> int:
    from experiments.verbs.cluster_verbs import sync

    return _say(options, sync(options))


def _print_plan(options: argparse.Namespace, request: Any, plan: Any) -> int:
    from experiments.config.naming import names

    rows = [
        {"state": state, **dict(zip(("model", "method", "bits"), names(c), strict=True))}
        for c, state in zip(request.cells, plan.states, strict=True)
    ]
    steps = max(cell.model.num_inference_steps for cell in request.cells)
    lines = [" ".join(f"{row[key]:<18}" for key in row).rstrip() for row in rows]
    cost = f"{plan.prompts} prompts to sample, {plan.prompts * steps} denoiser steps"
    data = {"cells": rows, "prompts": plan.prompts, "denoiser_steps": plan.prompts * steps}
    _answer(options, data=data, text="\n".join([*lines, cost]))
    return EXIT_OK


def _table(options: argparse.Namespace) -> int:
    from evaluation.records import encode_record
    from experiments.cell.progress import Progress
    from experiments.cell.run_cell import find_record
    from experiments.cell.sweep import make_benches, no_record
    from experiments.config.request import read_recorded
    from experiments.store.folders import Store
    from experiments.verbs.report_files import write_report

    request = read_recorded([options.experiment, *options.overrides])
    store = Store(Path(request.cells[0].out))
    benches = make_benches(request, store, Progress(cells=0, prompts=0))
    found = [find_record(benches[i], cell) for i, cell in enumerate(request.cells)]
    records = [record for record in found if record is not None]
    if not records:
        raise no_record(request, store)
    folder = store.root / "reports" / request.name
    report = write_report(request, records, benches, folder=folder)
    text = (folder / f"table.{options.format}").read_text()
    _answer(options, data=[encode_record(record) for record in records], text=text)
    sys.stderr.write("".join(f"wrote {path}\n" for path in report.files))
    return EXIT_OK


def _compare(options: argparse.Namespace) -> int:
    from experiments.verbs.compare import compare

    answer = compare(options)
    _answer(options, data=answer.data, text=answer.text)
    for row in answer.unexplained:
        names = f"{row.record.model} {row.record.method_label} {row.record.bits_label}"
        sys.stderr.write(f"worse than {options.against}, and no reason given: {names}\n")
    return EXIT_FAILED if answer.unexplained else EXIT_OK


def _inspect(options: argparse.Namespace) -> int:
    from omegaconf import OmegaConf

    from experiments.config.compose import options as choices
    from experiments.sampling.pipelines import resolve_path
    from experiments.zoo.inspection import inspect_denoiser, render_table, to_json

    given = dict(item.partition("=")[::2] for item in options.overrides)
    unknown = set(given) - {"model", "model.path"}
    if unknown or len(given) != 1:
        raise UserError("inspect takes one of model=NAME or model.path=FOLDER_OR_CONFIG")
    target: str = given.get("model.path") or given.get("model") or ""
    if target in choices("model") and target != "folder":
        from experiments.store.paths import CONF

        path = OmegaConf.load(CONF / "model" / f"{target}.yaml").path
        target = str(resolve_path(f"{path}"))
    try:
        graph = inspect_denoiser(target)
    except (ValueError, OSError) as error:
        raise UserError(" ".join(str(error).split())) from error
    if options.json:
        sys.stdout.write(to_json(graph) + "\n")
    else:
        sys.stdout.write(render_table(graph) + "\n")
    return EXIT_OK


def _bench_calibration(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from experiments.config.request import read_request
    from experiments.speed.calibration_cost import measure, ratios, render

    given = ["method=segquant_a", *options.overrides]
    (config,) = read_request(given, multirun=False).cells
    costs = measure(config)
    data = {"costs": [asdict(cost) for cost in costs], "ratios": ratios(costs)}
    _answer(options, data=data, text=render(costs))
    return EXIT_OK


def _methods(options: argparse.Namespace) -> int:
    from experiments.config.catalogue import describe_methods, render_methods

    methods = describe_methods(options.overrides)
    _answer(options, data=methods, text=render_methods(methods, whole=bool(options.overrides)))
    return EXIT_OK


def _bench_kernels(options: argparse.Namespace) -> int:
    from experiments.speed.command import bench_kernels

    data, text = bench_kernels(options)
    _answer(options, data=data, text=text)
    return EXIT_OK


def _bench_model(options: argparse.Namespace) -> int:
    from experiments.speed.command import bench_model

    data, text = bench_model(options)
    _answer(options, data=data, text=text)
    return EXIT_OK


def _models(options: argparse.Namespace) -> int:
    from experiments.config.catalogue import describe_models, render_models

    models = describe_models()
    _answer(options, data=models, text=render_models(models))
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
