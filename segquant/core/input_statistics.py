"""What one pass of the calibration set through the denoiser leaves behind: numbers, not tensors.

Per Linear: extremes of each input channel, a bounded sample of rows, and (where a method asks)
the Gram matrix X^T X. Layers that read one tensor (q, k, v) share one Gram matrix. Which do is seen
at every call, by the identity of the tensor; a layer that shares only now and then comes out right.

Gram matrices are accumulated in float32: each product X^T X is float32 already, the sum has no
cancellation on its diagonal, and GPTQ adds 1 % of the mean diagonal to it, a thousand times the
rounding error of some thousands of additions. Float64 would double the largest item of memory.

Legend: T rows (tokens of all samples), I input features.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from segquant.core.plain_linears import linear_layers
from segquant.core.row_sample import RowSample
from segquant.core.several import called_parts

logger = logging.getLogger(__name__)

# On fewer the alpha search is off by more than 2 % on some layers
# (experiments/studies/alpha_check.py).
DEFAULT_SAMPLE_ROWS = 1024
PARTS = 4  # in which a calibration set is run, if it has as many prompts
# Calls whose input may still turn out to be another layer's too. A Gram matrix is held for each.
OPEN_INPUTS = 4
LARGEST_INPUT = 1e15


@dataclass(frozen=True, kw_only=True)
class LayerStatistics:
    """What the inputs of one Linear looked like. Tensors are on the CPU, float32 but for draws."""

    low_I: Tensor
    high_I: Tensor
    sample_TI: Tensor  # rows drawn uniformly, without replacement, from all; by their priority
    rows: int
    calls: int
    gram_II: Tensor | None = None  # sum over all rows; may be shared with other layers
    # Of each part of the calibration set, where it was run in parts; and the sampled rows' parts.
    part_low_PI: Tensor | None = None
    part_high_PI: Tensor | None = None
    sample_part_T: Tensor | None = None
    priority_T: Tensor | None = None  # the sampled rows' draws (float64), smallest first
    parts: tuple[int, ...] = (0,)  # which were seen, ascending; `sample_part_T` counts in these
    # (X - X~)^T X~ with the unquantized denoiser's inputs X, where X~ are a quantized one's
    # (`segquant.core.mismatch`); never stored
    mismatch_II: Tensor | None = None
    shared_with: tuple[str, ...] = ()  # other layers that read the same tensors at every call

    @property
    def amax(self) -> Tensor:
        return torch.maximum(-self.low_I, self.high_I)

    @property
    def in_features(self) -> int:
        return self.low_I.shape[0]

    def narrowed(self, *, gram: bool, rows: int) -> LayerStatistics:
        """As if recorded with these: sampled rows lie by priority, so fewer are the first ones."""
        part_T, priority_T = self.sample_part_T, self.priority_T
        return replace(
            self,
            sample_TI=self.sample_TI[:rows],
            sample_part_T=None if part_T is None else part_T[:rows],
            priority_T=None if priority_T is None else priority_T[:rows],
            gram_II=self.gram_II if gram else None,
        )


@dataclass
class _Accumulator:
    """The running numbers of one Linear."""

    sample: RowSample
    rows: int = 0
    calls: int = 0
    extremes: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # by part


@dataclass
class _OpenInput:
    """A tensor that was just read, and the layers that read it."""

    tensor: Tensor
    version: int
    copy: Tensor | None  # of what has no version, as nothing has under torch.inference_mode
    gram_II: Tensor | None
    low_I: Tensor
    high_I: Tensor
    readers: list[str] = field(default_factory=list)


class StatisticsRecorder:
    """Records the inputs of a denoiser's Linears while it runs inside the `with` block.

    Inputs are read, never written. Which rows are sampled depends on `seed`, on the numbers of the
    batches and on the order of the rows within each alone, so that layers that share an input keep
    the same rows, and batches that are seen apart give what one pass gives (`merge_statistics`).

    Set `batch` to its number before each batch, each number once; all is batch 0 otherwise.

    Set `part` before each part of the calibration set, where ranges are to be judged on other parts
    than those they come from; all is one part otherwise.

    Args:
        denoiser: any module; its `nn.Linear`s are hooked, it stays as it is.
        layers: names to record; None for all.
        gram: whether to accumulate Gram matrices.
        sample_rows: rows kept per layer.
        seed: of the row sample.
        shared_inputs: layer -> another that reads the same tensor, as the static graph has it.
            It is only checked: sharing itself is seen at run time.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        *,
        layers: Iterable[str] | None = None,
        gram: bool,
        sample_rows: int = DEFAULT_SAMPLE_ROWS,
        seed: int = 0,
        shared_inputs: Mapping[str, str] | None = None,
    ) -> None:
        if sample_rows < 1:
            raise ValueError(f"sample_rows={sample_rows}; keep at least one row per layer")
        self._denoiser = denoiser
        self._linears = _select(denoiser, layers)
        self._gram = gram
        self._shared_inputs = dict(shared_inputs or {})
        self._accumulators = {
            name: _Accumulator(RowSample(keep=sample_rows, seed=seed)) for name in self._linears
        }
        self._open: list[_OpenInput] = []
        self._grams: dict[tuple[str, ...], Tensor | None] = {}
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self.forwards = 0
        self.part = 0
        self.batch = 0

    def __enter__(self) -> Self:
        for part in called_parts(self._denoiser).values():
            self._hooks.append(part.register_forward_pre_hook(self._count_forward))
        for name, linear in self._linears.items():
            hook = self._hook(name)
            self._hooks.append(linear.register_forward_pre_hook(hook, with_kwargs=True))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._hooks:
            handle.remove()
        self._hooks.clear()
        self._close_inputs(keep=0)

    def statistics(self) -> dict[str, LayerStatistics]:
        """What was seen of each layer that was called, in the denoiser's order.

        Raises:
            ValueError: an input held NaN or infinity, or values whose squares are.
        """
        self._close_inputs(keep=0)
        grams, sharers = self._grams_by_layer()
        result: dict[str, LayerStatistics] = {}
        for name, seen in self._accumulators.items():
            if not seen.extremes:
                continue
            parts = sorted(seen.extremes)
            low_PI, high_PI = (
                torch.stack([seen.extremes[part][end] for part in parts]).cpu() for end in (0, 1)
            )
            if not bool(low_PI.isfinite().all() and high_PI.isfinite().all()):
                raise ValueError(
                    f"{name}: its input held NaN or infinity during calibration; run the denoiser "
                    "in bfloat16 or float32, or look for a broken calibration sample"
                )
            reach = float(torch.maximum(-low_PI, high_PI).amax())
            if reach > LARGEST_INPUT:
                raise ValueError(
                    f"{name}: its input reaches {reach:.3g}, whose square overflows float32; look "
                    "for a broken weight or calibration sample before this layer"
                )
            several = len(parts) > 1
            result[name] = LayerStatistics(
                low_I=low_PI.amin(0),
                high_I=high_PI.amax(0),
                part_low_PI=low_PI if several else None,
                part_high_PI=high_PI if several else None,
                sample_part_T=_ranks(seen.sample.part_K, parts) if several else None,
                priority_T=seen.sample.priority_K,
                parts=tuple(parts),
                sample_TI=self._same_rows(seen, [result[o] for o in sharers[name] if o in result]),
                rows=seen.rows,
                calls=seen.calls,
                gram_II=grams.get(name),
                shared_with=sharers[name],
            )
        self._check_hints(sharers)
        return result

    def _count_forward(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.forwards += 1

    def _hook(self, name: str) -> Any:
        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._record(name, args[0] if args else kwargs["input"])

        return record

    @torch.inference_mode(mode=False)  # sums go on after the caller has left that mode
    @torch.no_grad()
    def _record(self, name: str, x: Tensor) -> None:
        x_TI = x.detach().reshape(-1, x.shape[-1])
        if not x_TI.shape[0]:
            return
        opened = self._open_input(x, x_TI)
        opened.readers.append(name)
        seen = self._accumulators[name]
        low_I, high_I = seen.extremes.get(self.part, (opened.low_I, opened.high_I))
        seen.extremes[self.part] = (
            torch.minimum(low_I, opened.low_I),
            torch.maximum(high_I, opened.high_I),
        )
        seen.calls += 1
        seen.rows += x_TI.shape[0]
        seen.sample.add(x_TI, batch=self.batch, part=self.part)

    def _open_input(self, x: Tensor, x_TI: Tensor) -> _OpenInput:
        unversioned = x.is_inference()
        version = 0 if unversioned else x._version
        for opened in self._open:
            if opened.tensor is not x or opened.version != version:
                continue
            if opened.copy is None or torch.equal(opened.copy, x):
                return opened
        wide_TI = x_TI.float()
        opened = _OpenInput(
            tensor=x,
            version=version,
            copy=x.clone() if unversioned else None,
            gram_II=wide_TI.T @ wide_TI if self._gram else None,
            low_I=wide_TI.amin(0),
            high_I=wide_TI.amax(0),
        )
        self._open.append(opened)
        self._close_inputs(keep=OPEN_INPUTS)
        return opened

    def _close_inputs(self, *, keep: int) -> None:
        while len(self._open) > keep:
            closed = self._open.pop(0)
            key = tuple(closed.readers)
            total_II = self._grams.get(key)
            if total_II is None or closed.gram_II is None:
                self._grams[key] = closed.gram_II
            else:
                total_II += closed.gram_II

    def _grams_by_layer(self) -> tuple[dict[str, Tensor], dict[str, tuple[str, ...]]]:
        keys: dict[str, list[tuple[str, ...]]] = {}
        for key in self._grams:
            for name in dict.fromkeys(key):
                keys.setdefault(name, []).append(key)
        grams: dict[str, Tensor] = {}
        sharers: dict[str, tuple[str, ...]] = {}
        by_source: dict[tuple[tuple[tuple[str, ...], int], ...], Tensor] = {}
        for name, own in keys.items():
            sharers[name] = tuple(o for o in self._linears if o != name and keys.get(o) == own)
            # A layer called twice with one tensor counts it twice.
            source = tuple((key, key.count(name)) for key in own)
            if source not in by_source:
                parts = [(g, n) for key, n in source if (g := self._grams[key]) is not None]
                if not parts:
                    continue
                alone = len(parts) == 1 and parts[0][1] == 1
                total = parts[0][0] if alone else torch.stack([g * n for g, n in parts]).sum(0)
                by_source[source] = total.cpu()
            grams[name] = by_source[source]
        return grams, sharers

    def _same_rows(self, seen: _Accumulator, sharers: list[LayerStatistics]) -> Tensor:
        sample_TI = seen.sample.rows_KI
        assert sample_TI is not None
        for other in sharers:
            if torch.equal(other.sample_TI, sample_TI):
                return other.sample_TI
        return sample_TI

    def _check_hints(self, sharers: Mapping[str, tuple[str, ...]]) -> None:
        for name, other in self._shared_inputs.items():
            if name != other and name in sharers and other not in sharers[name]:
                logger.warning(
                    "%s and %s were expected to read one tensor; they do not", name, other
                )


def _select(denoiser: nn.Module, layers: Iterable[str] | None) -> dict[str, nn.Linear]:
    linears = linear_layers(denoiser)
    if layers is None:
        return linears
    wanted = list(layers)
    unknown = [name for name in wanted if name not in linears]
    if unknown:
        raise ValueError(
            f"layers not found among the denoiser's {len(linears)} Linears: {', '.join(unknown)}"
        )
    return {name: linear for name, linear in linears.items() if name in set(wanted)}


def _ranks(part_T: Tensor | None, parts: list[int]) -> Tensor:
    assert part_T is not None
    return torch.searchsorted(torch.tensor(parts), part_T)
