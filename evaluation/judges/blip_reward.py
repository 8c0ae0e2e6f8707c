"""ImageReward: BLIP's image tower, a text tower that looks at it, and a stack of linear layers.

Built of transformers' own BLIP; the file has the original BLIP's names.

Source: Xu et al. 2023 (arXiv:2304.05977); Li et al. 2022 (arXiv:2201.12086), fig. 2.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from evaluation.judges.read_weights import Tensors, count_blocks, load_strictly, read_tensors
from evaluation.outside_files import read_text

PROMPT_TOKENS = 35  # with [CLS] and [SEP]; the rest of a prompt is cut off
REWARD_MEAN, REWARD_STD = (
    0.16717362830052426,
    1.0333394966054072,
)  # the rewards' on the training set
_HEAD_WIDTH = 64
_BEGIN, _END, _PAD = "[CLS]", "[SEP]", "[PAD]"
_VISION, _TEXT, _MLP = "blip.visual_encoder.", "blip.text_encoder.", "mlp."
_RENAMED = (
    ("cls_token", "embeddings.class_embedding"),
    ("pos_embed", "embeddings.position_embedding"),
    (r"patch_embed\.proj", "embeddings.patch_embedding"),
    (r"blocks\.(\d+)\.norm([12])", r"encoder.layers.\1.layer_norm\2"),
    (r"blocks\.(\d+)\.attn\.qkv", r"encoder.layers.\1.self_attn.qkv"),
    (r"blocks\.(\d+)\.attn\.proj", r"encoder.layers.\1.self_attn.projection"),
    (r"blocks\.(\d+)\.mlp", r"encoder.layers.\1.mlp"),
    ("norm", "post_layernorm"),
)


@dataclass(kw_only=True)
class BlipReward:
    """A loaded ImageReward; `rewards` asks it."""

    vision: Any
    text: Any
    head: torch.nn.Sequential
    tokenizer: Any
    image_size: int
    device: torch.device


def load_blip_reward(path: Path, *, vocabulary: Path, device: torch.device) -> BlipReward:
    """Of the sizes that the file's tensors have; its tensors for training are left out."""
    tensors = read_tensors(path)
    vision, text = _part(tensors, _VISION), _part(tensors, _TEXT)
    text.pop("embeddings.position_ids", None)
    tower = _vision_tower({_renamed(name): tensor for name, tensor in vision.items()}, path=path)
    return BlipReward(
        vision=tower.to(device),
        text=_text_tower(text, looks_at=tower.config.hidden_size, path=path).to(device),
        head=_head(_part(tensors, _MLP), path=path).to(device),
        tokenizer=_tokenizer(vocabulary),
        image_size=tower.config.image_size,
        device=device,
    )


def rewards(judge: BlipReward, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
    """The standardised reward of each image, float64 (N,).

    Args:
        images: (N, 3, S, S), as CLIP has them: bicubic, middle square, mean and deviation.
    """
    tokens = [_cut(found.ids) for found in judge.tokenizer.encode_batch(list(prompts))]
    filled = [
        ids + [judge.tokenizer.token_to_id(_PAD)] * (PROMPT_TOKENS - len(ids)) for ids in tokens
    ]
    mask = [[1] * len(ids) + [0] * (PROMPT_TOKENS - len(ids)) for ids in tokens]
    seen = judge.vision(pixel_values=images.to(judge.device)).last_hidden_state
    read = judge.text(
        input_ids=torch.tensor(filled, device=judge.device),
        attention_mask=torch.tensor(mask, device=judge.device),
        encoder_hidden_states=seen,
        encoder_attention_mask=torch.ones(seen.shape[:-1], device=judge.device),
    ).last_hidden_state
    raw: torch.Tensor = judge.head(read[:, 0].float()).squeeze(1).double().cpu()
    return (raw - REWARD_MEAN) / REWARD_STD


def count_cut(judge: BlipReward, prompts: Sequence[str]) -> int:
    """How many prompts have more tokens than are read."""
    encoded = judge.tokenizer.encode_batch(list(prompts))
    return sum(len(found.ids) > PROMPT_TOKENS for found in encoded)


def _cut(ids: list[int]) -> list[int]:
    """What is read of a prompt: its begin, and [SEP] at the end of it."""
    return ids if len(ids) <= PROMPT_TOKENS else [*ids[: PROMPT_TOKENS - 1], ids[-1]]


def _part(tensors: Tensors, before: str) -> Tensors:
    part = {k[len(before) :]: v for k, v in tensors.items() if k.startswith(before)}
    if not part:
        raise ValueError(f"no ImageReward: the weights hold no {before}...")
    return part


def _renamed(name: str) -> str:
    for pattern, new in _RENAMED:
        if re.match(rf"{pattern}(?=\.|$)", name):
            return re.sub(rf"^{pattern}(?=\.|$)", new, name)
    return name


def _vision_tower(tensors: Tensors, *, path: Path) -> Any:
    from transformers import BlipVisionConfig, BlipVisionModel

    width, _, patch, _ = tensors["embeddings.patch_embedding.weight"].shape
    grid = round((tensors["embeddings.position_embedding"].shape[1] - 1) ** 0.5)
    tower = BlipVisionModel(
        BlipVisionConfig(
            hidden_size=width,
            intermediate_size=len(tensors["encoder.layers.0.mlp.fc1.bias"]),
            num_hidden_layers=count_blocks(tensors, before="encoder.layers."),
            num_attention_heads=width // _HEAD_WIDTH,
            image_size=patch * grid,
            patch_size=patch,
            hidden_act="gelu",
            layer_norm_eps=1e-6,  # the original's; transformers' own default is another
        )
    )
    load_strictly(tower, tensors, what=str(path))
    return tower


def _text_tower(tensors: Tensors, *, looks_at: int, path: Path) -> Any:
    from transformers import BlipTextConfig, BlipTextModel

    vocabulary, width = tensors["embeddings.word_embeddings.weight"].shape
    tower = BlipTextModel(
        BlipTextConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            encoder_hidden_size=looks_at,
            intermediate_size=len(tensors["encoder.layer.0.intermediate.dense.bias"]),
            num_hidden_layers=count_blocks(tensors, before="encoder.layer."),
            num_attention_heads=width // _HEAD_WIDTH,
            max_position_embeddings=len(tensors["embeddings.position_embeddings.weight"]),
            hidden_act="gelu",
            layer_norm_eps=1e-12,
            bos_token_id=0,  # never used: ids of the defaults may lie outside a small vocabulary
            sep_token_id=0,
        ),
        add_pooling_layer=False,
    )
    load_strictly(tower, tensors, what=str(path))
    return tower


def _head(tensors: Tensors, *, path: Path) -> torch.nn.Sequential:
    """Linear layers one after the other; between them the original has dropout alone."""
    numbers = sorted({int(name.split(".")[1]) for name in tensors})
    shapes = [tensors[f"layers.{number}.weight"].shape for number in numbers]
    head = torch.nn.Sequential(*(torch.nn.Linear(width, out) for out, width in shapes))
    renumbered = {
        f"{index}.{kind}": tensors[f"layers.{number}.{kind}"]
        for index, number in enumerate(numbers)
        for kind in ("weight", "bias")
    }
    load_strictly(head, renumbered, what=str(path))
    return head


def _tokenizer(vocabulary: Path) -> Any:
    """BERT's, lower case; [DEC] and [ENC] of the original stand in no prompt.

    Raises:
        ValueError: the vocabulary lacks a token that every text has.
    """
    from tokenizers import BertWordPieceTokenizer

    words = read_text(vocabulary).split("\n")
    numbers = {word.rstrip("\r"): number for number, word in enumerate(words) if word}
    lacking = [token for token in (_BEGIN, _END, _PAD, "[UNK]") if token not in numbers]
    if lacking:
        raise ValueError(f"{vocabulary}: no vocabulary of BERT: it lacks {', '.join(lacking)}")
    return BertWordPieceTokenizer(numbers, lowercase=True)
