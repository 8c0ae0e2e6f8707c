"""The speed tables as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evaluation.report.markdown import escape, pipe_table
from experiments.speed.acceptance import ITEMS, MODEL_ITEMS, Item, acceptance
from experiments.speed.machine_state import state_text
from experiments.speed.time_products import SIXTEEN_BIT, mean_ratio, seconds_of

# FLUX.1-dev's AdaLN, where the authors time their kernel: quantize and multiply.
PAPER_TABLE_8 = (1, 3072, 18432)
WAYS = ("symmetric", "zero_point", "dual", "w4a8", "fp8")


def heading(result: dict[str, Any], title: str) -> list[str]:
    environment = result["environment"]
    versions = ", ".join(f"{k} {v}" for k, v in environment["packages"].items() if v)
    device = environment["device"] if result["device_kind"] == "cuda" else environment["cpu"]
    lines = [
        f"# {title}",
        "",
        f"`{result['command']}` on {device} ({result.get('capability', result['device_kind'])}), "
        f"{result['started_utc']}; {versions}.",
    ]
    if result["device_kind"] != "cuda":
        lines.append("This is no GPU: the figures show that the code runs, and nothing else.")
    if result["small"]:
        lines.append("Small: shapes of the tiny models.")
    return [*lines, ""]


def kernels_markdown(result: dict[str, Any]) -> str:
    ceilings = "; ".join(
        f"{name.removesuffix('_per_second')} {value / 1e12:.4g} T/s"
        for name, value in result["ceilings"].items()
    )
    cold = "cold calls (L2 overwritten)" if result["device_kind"] == "cuda" else "warm calls"
    before, after = (state_text(result[f"machine_{when}"]) for when in ("before", "after"))
    lines = [
        *heading(result, "Speed of quantized layers"),
        f"Measured ceilings: {ceilings}. Before: {before}; after: {after}.",
        f"Medians of {cold}; spread is between two series. Every row was",
        "checked against float64 first, on poisoned memory. A simulated row has no time.",
        "",
        "## Acceptance",
        "",
        _acceptance_table(result, ITEMS),
        "",
        "## Whole models' Linears, bf16's time over ours (geometric mean by time and number)",
        "",
        _model_table(result),
        "",
        "## Every shape",
        "",
    ]
    for entry in result["shapes"]:
        lines += _shape_rows(entry, result["ceilings"])
    if result["not_measured"]:
        lines += [f"Not measured, out of time: {', '.join(result['not_measured'])}.", ""]
    return "\n".join(lines)


def _acceptance_table(result: dict[str, Any], items: Sequence[Item]) -> str:
    rows = acceptance(result, items)
    return pipe_table(
        ["item (least favourable shape)", "minimum", "target", "measured", ""],
        [[row["item"], row["minimum"], row["target"], row["text"], row["state"]] for row in rows],
    )


def _model_table(result: dict[str, Any]) -> str:
    models = list(dict.fromkeys(entry["model"] for entry in result["shapes"]))
    rows = []
    for model in models:
        values = [mean_ratio(result, model, way) for way in WAYS]
        rows.append([model, *("-" if v is None else f"{v:.2f}" for v in values)])
    return pipe_table(["model", *WAYS], rows, numeric=[False, *(True for _ in WAYS)])


def _sizes(entry: dict[str, Any]) -> tuple[int, int, int]:
    return entry["rows"], entry["in_features"], entry["out_features"]


def _of_ceiling(row: dict[str, Any], ceilings: dict[str, float]) -> str:
    """The operations done (two products are twice as many) over those of a large product."""
    if row["name"].startswith("encode"):
        return "-"
    kind = row["name"] if row["name"] == "fp8" else "int8"
    kind = "bf16" if row["name"] in SIXTEEN_BIT else kind
    ceiling = ceilings.get(f"{kind}_per_second")
    return "-" if ceiling is None else f"{row['per_second'] * row['products'] / ceiling:.2f}"


def _shape_rows(entry: dict[str, Any], ceilings: dict[str, float]) -> list[str]:
    after = f", after {entry['after']}" if entry["after"] else ""
    base = seconds_of(entry, *SIXTEEN_BIT)
    rows = []
    for row in entry["rows_measured"]:
        if row["status"] != "ok":
            rows.append([row["name"], "-", "-", "-", "-", "-", _why(row)])
            continue
        ratio = "-" if base is None else f"{base / row['seconds']:.2f}"
        rows.append(
            [
                row["name"],
                f"{row['seconds'] * 1e6:.1f}",
                f"{row['per_second'] / 1e12:.4g}",
                _of_ceiling(row, ceilings),
                ratio,
                f"{row['spread']:.1%}",
                row["what"],
            ]
        )
    paper = ", the paper's table 8" if _sizes(entry) == PAPER_TABLE_8 else ""
    title = f"### {entry['name']} ({entry['model']}, {entry['count']} layers{after}{paper})"
    head = ["way", "us", "T/s of one product", "of ceiling", "bf16 / this", "spread", "what"]
    numeric = [column not in ("way", "what") for column in head]
    return [title, "", pipe_table(head, rows, numeric=numeric), ""]


def _why(row: dict[str, Any]) -> str:
    return escape(f"{row['status']}: {row['reason']}")


def model_markdown(result: dict[str, Any]) -> str:
    rows = []
    for entry in result["rows"]:
        start = [entry["model"], entry["variant"], entry["mode"]]
        if entry["status"] != "ok":
            rows.append([*start, "-", "-", "-", "-", "-", _why(entry)])
            continue
        ratio = entry["ratio_to_bf16"]
        rows.append(
            [
                *start,
                f"{entry['seconds'] * 1e3:.2f}",
                "-" if ratio is None else f"{ratio:.2f}",
                f"{entry['spread']:.1%}",
                f"{entry['linear_bytes_ratio']:.3f}",
                f"{entry['relative_error']:.3g}",
                entry["what"],
            ]
        )
    head = ["model", "variant", "mode", "ms a step", "fastest bf16 / this", "spread"]
    head += ["Linears' bytes", "error", "what"]
    numeric = [*(False for _ in range(3)), *(True for _ in range(5)), False]
    lines = [
        *heading(result, "Speed of one denoiser step"),
        "Random weights at full size, 1024 x 1024. `Linears' bytes` is against bfloat16. The error",
        "is of the step's output against bfloat16 eager: it shows that the step computes, and says",
        "nothing of quality.",
        "",
        _acceptance_table(result, MODEL_ITEMS),
        "",
        pipe_table(head, rows, numeric=numeric),
    ]
    return "\n".join(lines) + "\n"
