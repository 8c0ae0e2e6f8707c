"""What the speed verbs are given; apart from them: the command line starts without torch."""

from __future__ import annotations

import argparse
from pathlib import Path

MODEL_NAMES = ("sd35-medium", "flux.1-dev", "sdxl")
BUDGET_SECONDS = 500.0  # below nine minutes with start-up


def add_arguments(parser: argparse.ArgumentParser, *, table: bool) -> None:
    parser.add_argument(
        "--models", nargs="+", default=[], metavar="NAME", help=", ".join(MODEL_NAMES)
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--small", action="store_true", help="the tiny models' shapes")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile's rows")
    parser.add_argument("--budget-seconds", type=float, default=BUDGET_SECONDS)
    parser.add_argument("--out", type=Path, help="folder for the JSON and the Markdown")
    if table:
        text = "let the measured speeds choose the way of every layer on this device from now on"
        parser.add_argument("--write-table", action="store_true", help=text)
