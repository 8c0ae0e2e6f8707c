"""Which layers see the sampling step and no token: the time embedding's and the modulation's.

A layer is one of them if its input depends on the timestep and on no argument with a token axis;
it is modulation if its output meets what does depend on tokens (as shift, scale, gate or addend)
before any other layer reads it. No name of a module is looked at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from segquant.core.timesteps import timestep_name
from segquant.graph.flow import shared_memory
from segquant.graph.names import FACTORIES, PASSES, RESHAPES
from segquant.graph.trace import Op, Ref, Trace

EMBEDDING, MODULATION = "embedding", "modulation"
_LIKE_FIRST = PASSES | RESHAPES | {"expand_as"}  # other operands lend their type or shape only


@dataclass(frozen=True, kw_only=True)
class _State:
    """What a piece of memory depends on; `sources` are the layers whose output it still is."""

    step: bool = False
    tokens: bool = False
    sources: frozenset[str] = frozenset()

    def joined(self, other: _State) -> _State:
        tokens = self.tokens or other.tokens
        return _State(
            step=self.step or other.step,
            tokens=tokens,
            sources=frozenset() if tokens else self.sources | other.sources,
        )


_NOTHING = _State()


def conditioning_layers(
    trace: Trace, *, latents: str, layer_of: Callable[[Op], str | None]
) -> dict[str, str]:
    """The layers of either kind by name.

    Args:
        latents: the denoiser's argument that holds them.
        layer_of: the layer that an operation is a call of; None if of none.
    """
    memory = _Memory(trace, latents=latents)
    found: dict[str, str] = {}
    for op in trace.ops:
        if op.name in FACTORIES and not op.written():
            continue
        refs = list(op.refs())
        states = [memory[ref] for ref in (refs[:1] if op.name in _LIKE_FIRST else refs)]
        name = layer_of(op)
        if name is not None:
            states = [memory[op.args["input"]]]
        merged = _NOTHING
        for state in states:
            merged = merged.joined(state)
        if merged.tokens:
            met = [source for state in states if not state.tokens for source in state.sources]
            found.update(dict.fromkeys(met, MODULATION))
        if name is not None:
            conditioned = merged.step and not merged.tokens
            if conditioned:
                found.setdefault(name, EMBEDDING)
            sources = frozenset([name] if conditioned else [])
            merged = _State(step=merged.step, tokens=merged.tokens, sources=sources)
        memory.note(op, merged)
    return found


class _Memory:
    """States by memory: views share that of their base, and what is written into it adds to it."""

    def __init__(self, trace: Trace, *, latents: str) -> None:
        self._base = shared_memory(trace)
        self._states: dict[Ref, _State] = {}
        names = {ref: text.removeprefix("input ") for ref, text in trace.inputs.items()}
        step = timestep_name(names.values())
        batch = _batch(trace, [ref for ref, name in names.items() if name == step])
        for ref, name in names.items():
            shape = trace.shapes[ref.index]
            small = len(shape) <= 2 and all(size in (1, batch) for size in shape[:1])
            tokens = name == latents or name.startswith(f"{latents}_") or not small
            self._states[ref] = _State(step=name == step, tokens=tokens and name != step)

    def __getitem__(self, ref: Ref) -> _State:
        return self._states.get(self._base.get(ref, ref), _NOTHING)

    def note(self, op: Op, state: _State) -> None:
        """What an operation made, or wrote into what was there; a view makes nothing."""
        for ref in op.written():
            base = self._base.get(ref, ref)
            self._states[base] = self[base].joined(state)
        made = (ref for ref in op.outputs if ref is not None and ref not in self._base)
        self._states |= dict.fromkeys(made, state)


def _batch(trace: Trace, steps: list[Ref]) -> int:
    """The samples of a call: as many as timesteps, or where all share one, of the large inputs."""
    for ref in steps:
        if trace.shapes[ref.index]:
            return trace.shapes[ref.index][0]
    large = [trace.shapes[ref.index] for ref in trace.inputs]
    counts = Counter(shape[0] for shape in large if len(shape) > 2)
    return counts.most_common(1)[0][0] if counts else 1
