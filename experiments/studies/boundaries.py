"""Does it matter that SegLinear cuts where the graph does?

`python -m experiments.studies.boundaries`.

The SegQuant paper's table 6 as an experiment: the same method with as many segments, cut at the
graph's boundaries, at random ones, at ones moved by half a segment, or not at all. The layer error
is of the layers that the graph cuts. Results: `experiments/results/boundaries.{md,csv}`.
"""

from __future__ import annotations

from experiments.cell.surroundings import Surroundings
from experiments.studies.study import Arm, Study, main


def _cut(around: Surroundings, name: str) -> bool:
    layer = around.graph[name]
    return len(layer.output_segments) > 1 or len(layer.input_segments) > 1


def _arm(boundaries: str) -> Arm:
    settings = (f"method.boundaries={boundaries}", "method.boundary_seed={seed}")
    return Arm(method="segquant_seg_only", settings=settings)


STUDY = Study(
    name="boundaries",
    title="SegLinear's boundaries",
    recipes={
        "scales only": ("method.smoothing=none",),
        "alpha search": (),
        "alpha search, GPTQ": ("method.rounding=gptq",),
    },
    arms={name: _arm(name) for name in ("none", "graph", "random", "mismatched")},
    pairs=(
        ("graph", "none"),
        ("random", "none"),
        ("mismatched", "none"),
        ("graph", "random"),
        ("graph", "mismatched"),
    ),
    bits=("w8a8_int8", "w4a8_int"),
    concerned=_cut,
)

if __name__ == "__main__":
    main(STUDY)
