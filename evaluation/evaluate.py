"""All image metrics of one cell: from folders of PNG files to named metrics."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from evaluation import clip, distribution, paired
from evaluation.feature_cache import cached_array, file_hash, folder_contents
from evaluation.images import check_ids, find_damaged, image_ids, iterate_images, to_float
from evaluation.per_image import write_per_image
from evaluation.records import Metric, MetricUnavailable
from evaluation.statistics import (
    RESAMPLES,
    metric_from_estimate,
    metric_from_values,
    paired_difference,
)

logger = logging.getLogger(__name__)

_BATCH = 64


@dataclass(kw_only=True)
class _Scores:
    """Per-image scores while they are collected."""

    height: int = 0
    width: int = 0
    columns: dict[str, list[float]] = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, values: torch.Tensor) -> None:
        self.columns.setdefault(name, []).extend(values.tolist())


def evaluate_images(
    images_dir: Path | str,
    *,
    reference_dir: Path | str,
    dataset_dir: Path | str | None,
    prompts: Mapping[str, str],
    evaluator: clip.Evaluator,
    prefix: str,
    lpips: bool,
    seed: int,
    resamples: int = RESAMPLES,
    spread_resamples: int = distribution.SPREAD_RESAMPLES,
    inception_dir: Path | str | None = None,
    inception_sha256: str | None = None,
    cache_dir: Path | str | None = None,
    per_image_csv: Path | str | None = None,
) -> dict[str, Metric]:
    """Score the images of one method.

    Args:
        images_dir, reference_dir: exactly one `{prompt_id}.png` for each id of `prompts`.
        dataset_dir: any number of PNG images; None leaves the distances to the dataset out, with
            the reason in the metric.
        prefix: names the evaluator's features in `fid_{prefix}_dataset` and so on.
        inception_dir: where given, the same distances again with Inception features.
        cache_dir: features and scores of the reference and the dataset are kept here, under a name
            made of the images' and the evaluator's contents.

    Raises:
        ValueError: missing or extra images, unequal sizes, a wrong format.
    """
    distribution.check_prefix(prefix)
    ids = sorted(prompts)
    for folder in (images_dir, reference_dir):
        check_ids(folder, ids)
    network, lpips_reason = _lpips_network(wanted=lpips)
    scores = _score_pairs(
        Path(images_dir),
        Path(reference_dir),
        ids=ids,
        prompts=prompts,
        evaluator=evaluator,
        network=network,
    )
    cache = Path(cache_dir) if cache_dir is not None else None
    scores.columns["clip_reference"] = _reference_clip_scores(
        Path(reference_dir), ids=ids, prompts=prompts, evaluator=evaluator, cache=cache
    ).tolist()
    metrics = _paired_metrics(scores, lpips_reason=lpips_reason, seed=seed, resamples=resamples)
    metrics |= _clip_metrics(
        scores,
        evaluator=evaluator,
        prompts=[prompts[name] for name in ids],
        seed=seed,
        resamples=resamples,
    )
    metrics["damaged_images"] = _damaged_metric(scores.damaged, n=len(ids))
    folders = _Folders(
        images=Path(images_dir),
        reference=Path(reference_dir),
        dataset=None if dataset_dir is None else Path(dataset_dir),
        ids=ids,
    )
    metrics |= _distances(
        folders,
        prefix=prefix,
        extractor=distribution.evaluator_extractor(evaluator),
        key=evaluator.key,
        cache=cache,
        seed=seed,
        resamples=spread_resamples,
    )
    if inception_dir is not None:
        metrics |= _inception_distances(
            folders,
            folder=Path(inception_dir),
            sha256=inception_sha256,
            cache=cache,
            seed=seed,
            resamples=spread_resamples,
        )
    if per_image_csv is not None:
        write_per_image(per_image_csv, ids=ids, columns=scores.columns)
    return metrics


def unavailable(reason: str, *, against: str, higher_is_better: bool | None = None) -> Metric:
    """A metric that was asked for and could not be had."""
    return Metric(value=None, higher_is_better=higher_is_better, n=0, against=against, note=reason)


def _lpips_network(*, wanted: bool) -> tuple[torch.nn.Module | None, str]:
    if not wanted:
        return None, "LPIPS is switched off"
    try:
        return paired.load_lpips(), ""
    except MetricUnavailable as error:
        logger.info("LPIPS is skipped: %s", error.reason)
        return None, error.reason


def _score_pairs(
    images_dir: Path,
    reference_dir: Path,
    *,
    ids: Sequence[str],
    prompts: Mapping[str, str],
    evaluator: clip.Evaluator,
    network: torch.nn.Module | None,
) -> _Scores:
    scores = _Scores()
    pairs = zip(
        iterate_images(images_dir, ids, batch_size=_BATCH),
        iterate_images(reference_dir, ids, batch_size=_BATCH),
        strict=True,
    )
    for index, (image_batch, reference_batch) in enumerate(pairs):
        names = ids[index * _BATCH : (index + 1) * _BATCH]
        scores.height, scores.width = image_batch.shape[1:3]
        images, reference = to_float(image_batch), to_float(reference_batch)
        scores.add("psnr", paired.psnr_per_image(images, reference))
        scores.add("ssim", paired.ssim_per_image(images, reference))
        if network is not None:
            scores.add("lpips", paired.lpips_per_image(network, images, reference))
        texts = [prompts[name] for name in names]
        scores.add("clip", clip.clip_scores(evaluator, image_batch, texts))
        scores.damaged |= find_damaged(image_batch, ids=names)
    return scores


def _paired_metrics(
    scores: _Scores, *, lpips_reason: str, seed: int, resamples: int
) -> dict[str, Metric]:
    psnr = torch.tensor(scores.columns["psnr"], dtype=torch.float64)
    ssim = torch.tensor(scores.columns["ssim"], dtype=torch.float64)
    metrics = paired.psnr_metrics(
        psnr, height=scores.height, width=scores.width, seed=seed, resamples=resamples
    )
    metrics |= paired.similarity_metrics(
        "ssim",
        ssim,
        higher_is_better=True,
        seed=seed,
        resamples=resamples,
        note="torchmetrics, RGB, 11x11 Gaussian window",
    )
    if "lpips" not in scores.columns:
        metrics["lpips"] = unavailable(lpips_reason, against="reference", higher_is_better=False)
        return metrics
    lpips = torch.tensor(scores.columns["lpips"], dtype=torch.float64)
    metrics |= paired.similarity_metrics(
        "lpips",
        lpips,
        higher_is_better=False,
        seed=seed,
        resamples=resamples,
        note="AlexNet, full resolution",
    )
    metrics["bad_case_rate"] = paired.bad_case_rate(lpips, seed=seed, resamples=resamples)
    return metrics


def _clip_metrics(
    scores: _Scores,
    *,
    evaluator: clip.Evaluator,
    prompts: Sequence[str],
    seed: int,
    resamples: int,
) -> dict[str, Metric]:
    note = "100 max(cos, 0), mean over images"
    truncated = clip.count_truncated(evaluator, prompts)
    if truncated:
        note += f"; {truncated} of {len(prompts)} prompts cut at {evaluator.context_length} tokens"
    difference = paired_difference(
        scores.columns["clip"], scores.columns["clip_reference"], seed=seed, resamples=resamples
    )
    return {
        "clip_score": metric_from_values(
            scores.columns["clip"],
            higher_is_better=True,
            against="prompts",
            seed=seed,
            resamples=resamples,
            note=note,
        ),
        "clip_score_delta": metric_from_estimate(
            difference,
            higher_is_better=True,
            against="clip_score of the reference",
            note=f"paired by prompt; two-sided p={difference.p_value:.3g}",
            unit="",
        ),
    }


def _damaged_metric(damaged: Mapping[str, str], *, n: int) -> Metric:
    listed = "; ".join(f"{name}: {what}" for name, what in damaged.items())
    return Metric(
        value=float(len(damaged)),
        higher_is_better=False,
        n=n,
        against="images",
        note=f"scored like all others; {listed}" if damaged else "none is flat",
        unit="images",
    )


@dataclass(kw_only=True)
class _Folders:
    images: Path
    reference: Path
    dataset: Path | None
    ids: list[str]


def _distances(
    folders: _Folders,
    *,
    prefix: str,
    extractor: distribution.Extractor,
    key: str,
    cache: Path | None,
    seed: int,
    resamples: int,
) -> dict[str, Metric]:
    def features(folder: Path, ids: Sequence[str], keep: Path | None) -> distribution.Array:
        return cached_array(
            keep,
            kind="features",
            parts=[key, prefix, *folder_contents(folder, ids=ids)],
            compute=lambda: distribution.folder_features(folder, ids=ids, extractor=extractor),
        )

    def distances(rows: distribution.Array, *, against: str, paired: bool) -> dict[str, Metric]:
        return distribution.distribution_metrics(
            images,
            rows,
            prefix=prefix,
            against=against,
            paired=paired,
            seed=seed,
            resamples=resamples,
        )

    images = features(folders.images, folders.ids, None)
    reference = features(folders.reference, folders.ids, cache)
    metrics = distances(reference, against="reference", paired=True)
    if folders.dataset is None:
        for name in ("fid", "kid"):
            metrics[f"{name}_{prefix}_dataset"] = unavailable(
                "no images of the dataset were given", against="dataset", higher_is_better=False
            )
        return metrics
    theirs = image_ids(folders.dataset)
    paired = sorted(theirs) == sorted(folders.ids)  # true images of the same prompts
    dataset = features(folders.dataset, folders.ids if paired else theirs, cache)
    return metrics | distances(dataset, against="dataset", paired=paired)


def _inception_distances(
    folders: _Folders,
    *,
    folder: Path,
    sha256: str | None,
    cache: Path | None,
    seed: int,
    resamples: int,
) -> dict[str, Metric]:
    try:
        extractor = distribution.inception_extractor(folder, sha256=sha256)
    except MetricUnavailable as error:
        return {
            f"{name}_inception_{against}": unavailable(
                error.reason, against=against, higher_is_better=False
            )
            for name in ("fid", "kid")
            for against in ("dataset", "reference")
        }
    key = file_hash(folder / distribution.INCEPTION_NAME)
    return _distances(
        folders,
        prefix="inception",
        extractor=extractor,
        key=key,
        cache=cache,
        seed=seed,
        resamples=resamples,
    )


def _reference_clip_scores(
    folder: Path,
    *,
    ids: Sequence[str],
    prompts: Mapping[str, str],
    evaluator: clip.Evaluator,
    cache: Path | None,
) -> distribution.Array:
    def compute() -> distribution.Array:
        parts = [
            clip.clip_scores(
                evaluator, batch, [prompts[name] for name in ids[i * _BATCH : (i + 1) * _BATCH]]
            )
            for i, batch in enumerate(iterate_images(folder, ids, batch_size=_BATCH))
        ]
        scores: distribution.Array = torch.cat(parts).numpy()
        return scores

    texts = [prompts[name] for name in ids]
    parts = [evaluator.key, *texts, *folder_contents(folder, ids=ids)]
    return cached_array(cache, kind="clip", parts=parts, compute=compute)
