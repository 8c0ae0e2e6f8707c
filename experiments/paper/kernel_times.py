"""DualScale's product by the clock, on the layer of the paper's Table 8: FLUX's AdaNorm.

The layer at full size with random weights, so that no run and no weights are needed; on the device
of the configuration. Every way is checked against float64 before it is timed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evaluation.resources import describe_environment
from experiments.errors import UserError
from experiments.paper.studies_of_stages import Measured, text_table

if TYPE_CHECKING:
    import torch

    from evaluation.report.tables import Table
    from experiments.cell.sweep import Sweep
    from experiments.paper.joined_table import Asked
    from experiments.paper.paper_setup import PaperSetup
    from experiments.speed.full_sizes import Shape

_MODEL, _AFTER = "flux.1-dev", "SiLU"  # of experiments/speed: the model, and what its AdaNorm reads
_WAYS = ("bf16", "symmetric", "zero_point", "dual", "dual, two products")
_PAPERS = {"dual": "dual_scale", "dual, two products": "ptq4vit"}
_BUDGET_SECONDS = 60.0
_MICRO = 1e6
_HEAD = ("device", "machine", "layer", "shape", "way", "products", "seconds", "p10", "p90", "error")
_TITLES = (
    *("Device", "Layer (rows x in x out)", "Way", "Products", "Microseconds", "10 to 90 %"),
    *("Over bf16", "Microseconds, paper"),
)
_LEGEND = (
    "Quantize and multiply, static W8A8, one row: the modulation of one image; bf16 is nn.Linear.",
    "dual, two products: DualScale in plain torch, a product for each sign, beside what the paper "
    "calls PTQ4ViT's; dual: this project's own kernel of the device.",
    "Paper: on an RTX 4090, which rows and layers it timed is in no note; no number of another "
    "device may be compared with it.",
)


def measure(sweep: Sweep) -> Measured:
    """Times each way; one that is simulated here, or is wrong, is a row without a time."""
    from experiments.sampling.machine import device_of
    from experiments.speed import candidates as ways
    from experiments.speed.libraries import naive_dual
    from experiments.speed.setting import Setting
    from experiments.speed.time_products import check
    from experiments.speed.timing import Timer

    measured, shape = Measured(head=_HEAD), _layer()
    try:
        device = device_of(sweep.cells[0].config)
    except UserError as refused:
        measured.add(layer=shape.example, shape=shape.name, missing=str(refused))
        return measured
    timer = Timer(device=device, budget_seconds=_BUDGET_SECONDS)
    setting = Setting(shape=shape, device=device, compiled=False)
    found = {one.name: one for one in [*ways.candidates(setting), *naive_dual(setting)]}
    said = {"device": _device_name(device), "machine": _state(device), "layer": shape.example}
    said["shape"] = shape.name
    for name in _WAYS:
        way = found.get(name)
        if way is None:
            measured.add(**said, way=name, missing="no such way on this device")
            continue
        error = check(way, device)
        if not error <= way.tolerance:
            measured.add(**said, way=name, missing=f"wrong: off by {error:.2g} of the largest")
        elif way.execution == "simulated":
            measured.add(**said, way=name, missing="simulated here: no speed")
        else:
            taken = timer.measure(way.call)
            measured.add(
                **said,
                way=name,
                products=way.products,
                seconds=taken.seconds,
                p10=taken.p10_seconds,
                p90=taken.p90_seconds,
                error=error,
            )
    return measured


def _layer() -> Shape:
    from experiments.speed.full_sizes import find_models, shapes

    (model,) = find_models([_MODEL])
    after = [one for one in shapes(model, small=False) if one.after == _AFTER]
    return max(after, key=lambda one: one.out_features)


def _device_name(device: torch.device) -> str:
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return str(describe_environment()["cpu"])


def _state(device: torch.device) -> str:
    from experiments.speed.machine_state import machine_state, state_text

    return state_text(machine_state(device))


def table(measured: Measured, *, asked: Asked, setup: PaperSetup) -> Table:
    rows = () if setup.table is None else setup.table.rows
    published = {str(row.at["kernel"]): next(iter(row.values.values())) for row in rows}
    plain = [float(row["seconds"]) for row in measured.there if row["way"] == "bf16"]
    body = [_cells(row, plain=plain, published=published) for row in measured.there]
    states = list(dict.fromkeys(f"Machine before: {row['machine']}." for row in measured.there))
    return text_table(
        _TITLES,
        body,
        caption=f"{asked.name}: DualScale's product on FLUX's AdaNorm.",
        legend=[*_LEGEND, *states],
        asked=asked,
        measured=measured,
        run=False,
    )


def _cells(
    row: dict[str, Any], *, plain: list[float], published: dict[str, float | None]
) -> list[str]:
    seconds = float(row["seconds"])
    low, high = (_MICRO * float(row[key]) for key in ("p10", "p90"))
    theirs = published.get(_PAPERS.get(str(row["way"]), ""))
    return [
        *(str(row["device"]), f"{row['layer']} ({row['shape']})", str(row["way"])),
        *(str(row["products"]), f"{_MICRO * seconds:.0f}", f"{low:.0f} to {high:.0f}"),
        f"{seconds / plain[0]:.2f}" if plain else "",
        "" if theirs is None else f"{theirs:g} unverified",
    ]
