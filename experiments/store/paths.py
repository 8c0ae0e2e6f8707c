"""Where the project lies: the only place that derives it."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"
RESULTS = ROOT / "experiments" / "results"
TINY_MODELS = ROOT / "experiments" / "tiny" / "models"
SINGLE_FILES = (".safetensors", ".ckpt")  # how the name of a model in one file ends


def resolve_path(path: str) -> Path:
    """A folder as given, else below the project's root."""
    given = Path(path).expanduser()
    return given if given.exists() or given.is_absolute() else ROOT / given
