"""Where the project lies: the only place that derives it."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"
RESULTS = ROOT / "experiments" / "results"
TINY_MODELS = ROOT / "experiments" / "tiny" / "models"
