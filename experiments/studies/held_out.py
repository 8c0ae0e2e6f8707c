"""Does the search for alpha fit its own calibration? `python -m experiments.studies.held_out`.

A static scale reaches exactly as far as the calibration did, and smoothing tightens every channel's
range to it. Judged on the rows that the ranges come from, that costs nothing; on other prompts
values are clipped. Compared: no smoothing, a fixed alpha, the search as published (judged on its
own rows), and the search in which each row is judged by the other parts of the calibration set,
for small and larger calibration sets. Results: `experiments/results/held_out.{md,csv}`.
"""

from __future__ import annotations

from experiments.studies.study import Arm, Study, main

STUDY = Study(
    name="held_out",
    title="The search for alpha judged on its own rows or on held-out ones (tiny_unet)",
    recipes={
        f"{count} calibration prompts": (f"dataset.calibration_prompts={count}",)
        for count in (8, 32, 128)
    },
    arms={
        "rtn": Arm(method="rtn"),
        "alpha 0.5": Arm(method="smoothquant", settings=("method.fold=false",)),
        "search": Arm(method="smooth_search"),
        "held-out search": Arm(method="smooth_search", settings=("method.held_out=true",)),
    },
    pairs=(
        ("alpha 0.5", "rtn"),
        ("search", "rtn"),
        ("held-out search", "rtn"),
        ("held-out search", "alpha 0.5"),
        ("held-out search", "search"),
    ),
    bits=("w8a8_int8",),
    model="tiny_unet",
)

if __name__ == "__main__":
    main(STUDY)
