"""What the speed verbs are given; apart from them: the command line starts without torch."""

from __future__ import annotations

import argparse
from pathlib import Path

MODEL_NAMES = ("sd35-medium", "flux.1-dev", "sdxl")
AUTO = "auto"
BATCHES = (1, 4)
IMAGES = 10
ENERGY_SECONDS = 30.0  # the counter moves in steps: shorter loops say little
BUDGET_SECONDS = 500.0  # below nine minutes with start-up


def add_arguments(parser: argparse.ArgumentParser, *, table: bool) -> None:
    parser.add_argument(
        "--models", nargs="+", default=[], metavar="NAME", help=", ".join(MODEL_NAMES)
    )
    parser.add_argument("--device", default=AUTO, help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--small", action="store_true", help="the tiny models' shapes")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile's rows")
    parser.add_argument("--budget-seconds", type=float, default=BUDGET_SECONDS)
    parser.add_argument("--out", type=Path, help="folder for the JSON and the Markdown")
    if not table:
        _add_cells(parser)
    if table:
        text = "let the measured speeds choose the way of every layer on this device from now on"
        parser.add_argument("--write-table", action="store_true", help=text)


def _add_cells(parser: argparse.ArgumentParser) -> None:
    """Of `bench-model model=... method=a,b bits=...`: the denoisers that runs use."""
    add = parser.add_argument
    add("--batches", nargs="+", type=int, default=list(BATCHES), help="prompts in one call")
    add("--images", type=int, default=IMAGES, help="timed end to end, after two warm-ups")
    add("--energy-seconds", type=float, default=ENERGY_SECONDS, help="of the loop, on a GPU")
    add("--order-seed", type=int, default=0, help="of the random order of methods")
