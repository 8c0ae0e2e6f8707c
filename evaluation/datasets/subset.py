"""The id lists of a data set's subsets, from its own file: `python -m evaluation.datasets.subset`.

    python -m evaluation.datasets.subset mjhq /data/mjhq --count 5000 1024 128 --out lists

writes `lists/mjhq_deepcompressor_5000.txt` and so on, an id a line, and prints the sha256 of each:
what `dataset.ids` and `dataset.ids_sha256` take.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

from evaluation.datasets.coco import Coco
from evaluation.datasets.dci import Dci
from evaluation.datasets.drawbench import DrawBench
from evaluation.datasets.geneval import GenEval
from evaluation.datasets.mjhq import Mjhq
from evaluation.datasets.own_folder import OwnFolder
from evaluation.datasets.partiprompts import PartiPrompts
from evaluation.datasets.published_data import PublishedData
from evaluation.datasets.sdci import Sdci
from evaluation.datasets.selection import SELECTIONS, id_list, select_ids

READERS: dict[str, type[PublishedData]] = {
    "coco": Coco,
    "dci": Dci,
    "drawbench": DrawBench,
    "folder": OwnFolder,
    "geneval": GenEval,
    "mjhq": Mjhq,
    "partiprompts": PartiPrompts,
    "sdci": Sdci,
}
COUNTS = (5000, 1024, 128)


def subset(name: str, root: str, *, selection: str, count: int, seed: int) -> bytes:
    """The content of a subset's id list.

    Raises:
        ValueError: a file is missing or malformed, or has too few prompts.
    """
    data = READERS[name](name=name, root=root, evaluation_prompts=count, calibration_prompts=0)
    return id_list(select_ids(data.all_ids(), selection=selection, count=count, seed=seed))


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 2 the request was wrong."""
    options = _parser().parse_args(arguments)
    folder = Path(options.out)
    try:
        for count in options.count:
            content = subset(
                options.dataset,
                options.root,
                selection=options.selection,
                count=count,
                seed=options.seed,
            )
            rule = options.selection + (f"{options.seed}" if options.selection == "random" else "")
            path = folder / f"{options.dataset}_{rule}_{count}.txt"
            folder.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            sys.stdout.write(f"{path} sha256 {hashlib.sha256(content).hexdigest()}\n")
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m evaluation.datasets.subset")
    parser.add_argument("dataset", choices=READERS)
    parser.add_argument("root", help="folder with the data set's own files")
    rules = [rule for rule in SELECTIONS if rule != "list"]
    parser.add_argument("--selection", choices=rules, default="deepcompressor")
    parser.add_argument("--count", type=int, nargs="+", default=list(COUNTS))
    parser.add_argument("--seed", type=int, default=0, help="of --selection random")
    parser.add_argument("--out", default=".", help="folder for the lists")
    return parser


if __name__ == "__main__":
    sys.exit(main())
