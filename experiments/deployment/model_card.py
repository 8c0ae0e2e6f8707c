"""README.md of a quantized pipeline: what it is, how it was measured, how it is loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from evaluation.report.columns import default_columns
from evaluation.report.markdown import code_span, pipe_table, plain_text
from experiments.config.naming import changed_settings

if TYPE_CHECKING:
    from evaluation.records import Record
    from experiments.cell.cell import Cell
    from segquant.core.method_interface import QuantizationReport

CARD = "README.md"
_SHOWN_REASONS = 12


def card_text(
    cell: Cell,
    report: QuantizationReport,
    *,
    pipeline: Any,
    parts: Sequence[str],
    command: str,
) -> str:
    """Markdown.

    Args:
        parts: the pipeline's names of what was quantized.
        command: that made the folder.
    """
    config = cell.config
    model, bits = config.model, config.bits
    settings = ", ".join(f"{key}={value}" for key, value in changed_settings(config).items())
    method = code_span(config.method_name) + (f" ({plain_text(settings)})" if settings else "")
    lines = [
        f"# {plain_text(f'{model.name}, {config.method_name}, {bits.name}')}",
        "",
        f"{type(pipeline).__name__} of {code_span(model.path)}"
        + (f" at commit {plain_text(model.revision)}" if model.revision else "")
        + f"; {' and '.join(parts)} quantized by {method} at {code_span(bits.name)}, "
        "everything else in "
        f"{model.dtype}."
        + (f" Licence of the model: {plain_text(model.licence)}." if model.licence else ""),
        "",
        *_how_to_load(model.dtype),
        "",
        "## What was quantized",
        "",
        f"{len(report.layers_quantized)} Linears, {report.effective_bits_per_weight:.2f} bits a "
        f"weight with scales; all weights of the denoiser take {report.weight_bytes / 1e6:.1f} MB. "
        f"Products are simulated in {model.dtype}: the numerics are the method's, not its speed.",
        f"Calibrated on {config.dataset.calibration_prompts} prompts of "
        f"{plain_text(config.dataset.name)}.",
        "",
        *_elements(report),
        *_kept(report),
        "## Measured",
        "",
        *_measured(cell.record(), command),
        "",
        f"Made by {code_span(command)}.",
    ]
    return "\n".join(lines) + "\n"


def _how_to_load(dtype: str) -> list[str]:
    return [
        "```python",
        "import torch",
        "import segquant.diffusers  # makes diffusers know the format: pip install segquant-bench",
        "from diffusers import DiffusionPipeline",
        "",
        f'pipeline = DiffusionPipeline.from_pretrained("this folder", torch_dtype=torch.{dtype})',
        "```",
        "",
        "Every byte of the quantized weights is read against a checksum when they are loaded.",
    ]


def _elements(report: QuantizationReport) -> list[str]:
    done = ", ".join(report.elements) or "nothing beyond rounding"
    lines = [f"Of the published method: {plain_text(done)}."]
    if report.left_out:
        lines.append(f"Left out: {plain_text('; '.join(report.left_out))}.")
    return [*lines, ""]


def _kept(report: QuantizationReport) -> list[str]:
    """Layers that stay as they were, by reason."""
    reasons = Counter(entry["reason"] for entry in report.layers_kept)
    if not reasons:
        return []
    body = [
        [str(count), plain_text(reason)] for reason, count in reasons.most_common(_SHOWN_REASONS)
    ]
    table = pipe_table(["Linears kept", "because"], body, numeric=[True, False])
    return [table, ""]


def _measured(record: Record | None, command: str) -> list[str]:
    """The columns of a table, one a line; or how to have them."""
    if record is None or record.status != "ok":
        run = command.replace("segbench quantize", "segbench run").split(" --to ")[0]
        return [f"Not yet: {code_span(run)} measures it against the unquantized model."]
    rows = []
    for column in default_columns([record]):
        cell = column.cell(record)
        if column.metric is not None and cell.value is not None:
            rows.append(
                [plain_text(column.title), plain_text(cell.text), plain_text(column.legend)]
            )
    against = (
        f"On {record.protocol.get('evaluation_prompts')} prompts of {plain_text(record.dataset)}, "
        "against the unquantized model with the same noise:"
    )
    return [against, "", pipe_table(["metric", "value", "what it is"], rows)]
