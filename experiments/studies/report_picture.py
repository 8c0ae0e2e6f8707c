"""The picture of a report page in the README: what a browser shows of it at a desktop's width.

`python -m experiments.studies.report_picture runs/reports/demo/report.html --out
experiments/results/demo/report.png`. It needs a Chromium (`apt-get install chromium`) and
playwright.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import shutil
from pathlib import Path

from PIL import Image

from evaluation.report.chart_files import stamped_png
from experiments.errors import UserError

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_WIDTH, _HEIGHT = 1100, 900
_DRAWN = ("pareto", "steps", "layers", "values", "pictures")
_SHOWN = ("header", "#table", "#pareto", "#pictures")  # a README has no room for all of it
_STEP = 4  # colours are rounded to multiples: nobody sees it, and a quarter of the bytes goes
_TABLE, _SECONDS = "table.csv", "seconds_per_image"  # beside the page; its columns of seconds
_PAUSE_MILLISECONDS = 600  # for a chart that is drawn when it comes near


def table_stamp(table: Path) -> str:
    """A digest of a table's csv but for its seconds, which no two runs share."""
    with table.open(newline="", encoding="utf-8") as stream:
        rows = [
            {key: text for key, text in row.items() if not key.startswith(_SECONDS)}
            for row in csv.DictReader(stream)
        ]
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def take_picture(page: Path, out: Path) -> tuple[int, int]:
    """Width and height of the PNG.

    Raises:
        UserError: no page, or no browser.
    """
    if not page.is_file():
        raise UserError(f"{page}: no such file; segbench report demo makes one")
    browser = next((path for name in _BROWSERS if (path := shutil.which(name))), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise UserError("playwright is not installed; pip install playwright") from error
    if browser is None:
        raise UserError("no Chromium on this machine; apt-get install chromium")
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        shown = opened.new_page(viewport={"width": _WIDTH, "height": _HEIGHT})
        shown.goto(page.resolve().as_uri())
        for name in _DRAWN:
            shown.locator(f"#{name}").scroll_into_view_if_needed()
            shown.wait_for_timeout(_PAUSE_MILLISECONDS)
        shots = [shown.locator(name).first.screenshot() for name in _SHOWN]
        opened.close()
    pictures = [Image.open(io.BytesIO(shot)).convert("RGB") for shot in shots]
    sheet = Image.new("RGB", (_WIDTH, sum(one.height for one in pictures)), "white")
    top = 0
    for one in pictures:
        sheet.paste(one, ((_WIDTH - one.width) // 2, top))
        top += one.height
    out.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    coarse = [min(255, (value + 2) // _STEP * _STEP) for value in range(256)] * 3
    sheet.point(coarse).save(buffer, format="PNG")
    table = page.with_name(_TABLE)
    stamp = table_stamp(table) if table.is_file() else "no table beside the page"
    out.write_bytes(stamped_png(buffer.getvalue(), stamp))
    return sheet.size


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.studies.report_picture")
    parser.add_argument("page", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        take_picture(arguments.page, arguments.out)
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
