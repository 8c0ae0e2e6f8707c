"""The small text side that the tiny pipelines share: tokenizers, a CLIP and a T5 text encoder.

Both encoders learn one task, apart from any denoiser: from the states of the tokens (what cross
attention reads) and from the pooled vector (what modulation reads) a small readout must tell for
each of the nine cells the colour, shape and size of what stands there, and the background.
The readout is thrown away. The states read are those that diffusers uses: the last but one layer
of the CLIP encoder (SDXL, SD3), its pooled projection, and the output of the T5 encoder (FLUX).
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from evaluation.datasets.shapes import BACKGROUNDS, CELLS, COLOURS, SHAPES, SIZES, Sample
from experiments.tiny.training import TrainingLog, train

MAX_TOKENS = 24
CLIP_WIDTH = 64
T5_WIDTH = 128
_BOS, _EOS = "<|startoftext|>", "<|endoftext|>"
_LAYOUT_CLASSES = (len(COLOURS) + 1, len(SHAPES) + 1, len(SIZES) + 1)  # 0 is an empty cell


def words() -> list[str]:
    """Every word of a caption, sorted."""
    cells = {word for cell in CELLS for word in cell.split()}
    return sorted({*COLOURS, *BACKGROUNDS, *SHAPES, *SIZES, *cells, "background"})


def merges() -> list[tuple[str, str]]:
    """Byte-pair merges that make each word of a caption one token, in CLIP's convention.

    The most frequent pair is merged first, as byte-pair encoding is learned (Sennrich et al. 2016,
    arXiv:1508.07909); ties go to the alphabet, so that the result is one and the same everywhere.
    """
    split = [[*word[:-1], word[-1] + "</w>"] for word in words()]
    learned: list[tuple[str, str]] = []
    while any(len(pieces) > 1 for pieces in split):
        counts = Counter(pair for pieces in split for pair in pairwise(pieces))
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        learned.append(best)
        split = [_merged(pieces, best) for pieces in split]
    return learned


def _merged(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for piece in pieces:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return out


def byte_alphabet() -> list[str]:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(rest))]


def build_clip_tokenizer(*, max_tokens: int = MAX_TOKENS) -> CLIPTokenizer:
    """A CLIP tokenizer whose merges know the words of `shapes`; other text falls into bytes."""
    letters = byte_alphabet()
    pieces = [*letters, *(letter + "</w>" for letter in letters)]
    pieces += [left + right for left, right in merges()]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    for special in (_BOS, _EOS):
        vocabulary[special] = len(vocabulary)
    return CLIPTokenizer(vocab=vocabulary, merges=merges(), model_max_length=max_tokens)


def build_t5_tokenizer(*, max_tokens: int = MAX_TOKENS) -> T5TokenizerFast:
    """A T5 tokenizer with one piece a word, then single letters."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0), (",", -2.0)]
    pieces += [("▁" + word, -2.0) for word in words()]
    pieces += [(chr(code), -8.0) for code in range(ord("a"), ord("z") + 1)]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=max_tokens)


def build_clip_encoder(tokenizer: CLIPTokenizer, *, seed: int) -> CLIPTextModelWithProjection:
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=CLIP_WIDTH,
        intermediate_size=4 * CLIP_WIDTH,
        projection_dim=CLIP_WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config)


def build_t5_encoder(tokenizer: T5TokenizerFast, *, seed: int) -> T5EncoderModel:
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=T5_WIDTH,
        d_kv=32,
        d_ff=2 * T5_WIDTH,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        is_encoder_decoder=False,
        use_cache=False,
    )
    return T5EncoderModel(config)


def without_projection(encoder: CLIPTextModelWithProjection) -> CLIPTextModel:
    """The same encoder as the class that SDXL and FLUX load; its pooled output is unprojected."""
    plain = CLIPTextModel(encoder.config)
    state = {k: v for k, v in encoder.state_dict().items() if not k.startswith("text_projection")}
    missing, unexpected = plain.load_state_dict(state, strict=False)
    if missing or unexpected:
        renamed = {k.removeprefix("text_model."): v for k, v in state.items()}
        plain.load_state_dict(renamed)
    return plain.eval()


def tokenize(tokenizer: Any, prompts: list[str]) -> torch.Tensor:
    """Token ids (N, 24), padded as the pipelines pad."""
    ids = tokenizer(
        prompts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    ).input_ids
    assert isinstance(ids, torch.Tensor)
    return ids


class _Readout(nn.Module):
    """Nine cells and the background, read from token states by cross attention or from a vector."""

    def __init__(self, width: int, *, pooled: bool) -> None:
        super().__init__()
        self.pooled = pooled
        self.queries = nn.Parameter(torch.randn(len(CELLS) + 1, 64) * 0.1)
        self.keys = nn.Linear(width, 64)
        self.values = nn.Linear(width, 64)
        self.spread = nn.Linear(width, 64 * (len(CELLS) + 1)) if pooled else None
        self.mlp = nn.Sequential(nn.Linear(64, 128), nn.GELU())
        self.heads = nn.ModuleList(nn.Linear(128, count) for count in _LAYOUT_CLASSES)
        self.background = nn.Linear(128, len(BACKGROUNDS))

    def forward(self, states: torch.Tensor, layout: torch.Tensor) -> torch.Tensor:
        if self.spread is not None:
            read = self.spread(states).unflatten(-1, (len(CELLS) + 1, 64))
        else:
            queries = self.queries.expand(states.shape[0], -1, -1).unflatten(-1, (4, 16))
            keys = self.keys(states).unflatten(-1, (4, 16)).transpose(1, 2)
            values = self.values(states).unflatten(-1, (4, 16)).transpose(1, 2)
            mixed = F.scaled_dot_product_attention(queries.transpose(1, 2), keys, values)
            read = mixed.transpose(1, 2).flatten(2)
        hidden = self.mlp(read)
        total = F.cross_entropy(self.background(hidden[:, -1]), layout[:, -1, 0])
        for index, head in enumerate(self.heads):
            total = total + F.cross_entropy(
                head(hidden[:, :-1]).flatten(0, 1), layout[:, :-1, index].flatten()
            )
        return total


def layouts(samples: list[Sample]) -> torch.Tensor:
    """(N, 10, 3) classes: colour, shape and size of nine cells, then the background."""
    table = torch.zeros(len(samples), len(CELLS) + 1, 3, dtype=torch.long)
    for row, sample in enumerate(samples):
        table[row, -1, 0] = sample.scene.background
        for item in sample.scene.objects:
            table[row, item.cell] = torch.tensor([item.colour, item.shape, item.size]) + 1
    return table


class _TextTask(nn.Module):
    def __init__(self, clip: CLIPTextModelWithProjection, t5: T5EncoderModel) -> None:
        super().__init__()
        self.clip, self.t5 = clip, t5
        self.read_tokens = _Readout(CLIP_WIDTH, pooled=False)
        self.read_pooled = _Readout(CLIP_WIDTH, pooled=True)
        self.read_plain = _Readout(CLIP_WIDTH, pooled=True)
        self.read_t5 = _Readout(T5_WIDTH, pooled=False)

    def forward(
        self, clip_ids: torch.Tensor, t5_ids: torch.Tensor, y: torch.Tensor
    ) -> torch.Tensor:
        out = self.clip(clip_ids, output_hidden_states=True)
        end = (clip_ids == self.clip.config.eos_token_id).int().argmax(dim=-1)
        plain = out.last_hidden_state[torch.arange(len(end)), end]
        total = self.read_tokens(out.hidden_states[-2], y) + self.read_pooled(out.text_embeds, y)
        total = total + self.read_plain(plain, y)
        return total + self.read_t5(self.t5(t5_ids)[0], y)


def train_text(
    samples: list[Sample], *, steps: int, batch_size: int, seed: int, work: Path
) -> tuple[CLIPTextModelWithProjection, T5EncoderModel, TrainingLog]:
    """Trains both encoders on the layout task."""
    clip_tokenizer, t5_tokenizer = build_clip_tokenizer(), build_t5_tokenizer()
    task = _TextTask(
        build_clip_encoder(clip_tokenizer, seed=seed), build_t5_encoder(t5_tokenizer, seed=seed)
    )
    prompts = [sample.prompt for sample in samples]
    clip_ids, t5_ids = tokenize(clip_tokenizer, prompts), tokenize(t5_tokenizer, prompts)
    layout = layouts(samples)

    def loss(_: int, generator: torch.Generator) -> torch.Tensor:
        rows = torch.randint(len(prompts), (batch_size,), generator=generator)
        value = task(clip_ids[rows], t5_ids[rows], layout[rows])
        assert isinstance(value, torch.Tensor)
        return value

    record = train(
        task,
        loss=loss,
        name="text",
        steps=steps,
        batch_size=batch_size,
        learning_rate=2e-3,
        seed=seed,
        work=work,
        decay=0.99,
    )
    return task.clip, task.t5, record
