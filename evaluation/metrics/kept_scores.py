"""What judges share: scores kept a batch at a time, and the difference from the reference's scores.

A score is kept under a name made of the images' contents, the prompts, the weights, the code and
the packages: a run that was killed goes on, and the reference is judged once for all rows.

Shapes: N images of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from evaluation.feature_cache import cached_array, judges_source
from evaluation.metrics.metric_inputs import Batch, Inputs
from evaluation.metrics.metric_interface import DELTA
from evaluation.records import Metric
from evaluation.statistics import metric_from_estimate, metric_from_values, paired_difference

Judge = Callable[[torch.Tensor, Sequence[str]], torch.Tensor]  # uint8 (N, H, W, 3), prompts -> (N,)


def judged_images(
    inputs: Inputs, batch: Batch, *, which: str, key: str, judge: Judge
) -> torch.Tensor:
    """`judge` of the batch's "images" or "reference", float64 (N,).

    Args:
        key: names the judge and its weights.
    """
    kept = cached_array(
        inputs.settings.cache,
        kind="scores",
        parts=_parts(inputs, batch, key=key, whose=[which], prompts=batch.prompts),
        compute=lambda: judge(getattr(batch, which), batch.prompts).double().numpy(),
    )
    return torch.from_numpy(kept)


def judged_pairs(
    inputs: Inputs, batch: Batch, *, key: str, judge: Callable[[Batch], torch.Tensor]
) -> torch.Tensor:
    """`judge` of the batch's images beside the reference's, float64 (N,)."""
    kept = cached_array(
        inputs.settings.cache,
        kind="scores",
        parts=_parts(inputs, batch, key=key, whose=["images", "reference"], prompts=[]),
        compute=lambda: judge(batch).double().numpy(),
    )
    return torch.from_numpy(kept)


def reference_scores(inputs: Inputs, *, key: str, judge: Judge) -> dict[str, float]:
    """The reference's score of each prompt."""
    scores: dict[str, float] = {}
    for batch in inputs.batches():
        values_N = judged_images(inputs, batch, which="reference", key=key, judge=judge)
        scores.update(zip(batch.ids, values_N.tolist(), strict=True))
    return scores


def score_and_delta(
    inputs: Inputs, *, name: str, column: str, against: str, note: str
) -> dict[str, Metric]:
    """Entries `{name}` and `{name}_delta`, of the columns `{column}` and `{column}_reference`.

    The difference is paired by prompt; each prompt's is left in `inputs.scores`.
    """
    seed, resamples = inputs.settings.seed, inputs.settings.resamples
    own, theirs = inputs.values(column), inputs.values(f"{column}_reference")
    score = metric_from_values(
        own, higher_is_better=True, against=against, seed=seed, resamples=resamples, note=note
    )
    deltas = (mine - reference for mine, reference in zip(own, theirs, strict=True))
    inputs.scores[f"{name}{DELTA}"] = dict(zip(inputs.ids, deltas, strict=True))
    difference = paired_difference(own, theirs, seed=seed, resamples=resamples)
    delta = metric_from_estimate(
        difference,
        higher_is_better=True,
        against=f"{name} of the reference",
        note=f"paired by prompt; two-sided p={difference.p_value:.3g}; median "
        f"{difference.median:.3g}, sign test p={difference.sign_p_value:.3g}",
        unit="",
    )
    return {name: score, f"{name}{DELTA}": delta}


def cut_note(cut: int | None, *, of: int, tokens: int) -> str:
    """What a note says of prompts that are longer than what is read of them."""
    return f"; {cut} of {of} prompts cut at {tokens} tokens" if cut else ""


def _parts(
    inputs: Inputs, batch: Batch, *, key: str, whose: Sequence[str], prompts: Sequence[str]
) -> Iterator[str]:
    """Images are read for it when it is asked for."""
    yield from (key, inputs.device.type, judges_source(), *prompts)
    for which in whose:
        yield from inputs.contents(which, batch.ids)
