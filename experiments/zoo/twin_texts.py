"""Text encoders of small twins: their tokenizers, made offline, and their configs made small.

A tokenizer is of the class that the published one has, with bytes or the words of `shapes` for its
vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GemmaTokenizer,
    PixtralImageProcessor,
    PixtralProcessor,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)

from experiments.tiny import text

CLIP_WIDTH = 16
WIDTH = 32  # of every other text encoder
_CLIP_TOKENS, _TOKENS = 77, 512
_PATCH = 14
_FLUX2_KLEIN_LAYERS, _FLUX2_LAYERS = 27, 30  # the last states that their pipelines read
_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_PIXTRAL_CHAT = (
    "{% for m in messages %}[INST] {% for part in m['content'] %}{{ part['text'] }} {% endfor %}"
    "[/INST]{% endfor %}"
)


def tokenizer_of(config: Mapping[str, Any]) -> Any:
    """What makes a text encoder's ids, by the encoder's class."""
    kind = config["_class_name"]
    if kind.startswith("CLIP"):
        return text.build_clip_tokenizer(max_tokens=_CLIP_TOKENS)
    if kind.startswith("T5"):
        return text.build_t5_tokenizer(max_tokens=_TOKENS)
    if kind.startswith("Gemma"):
        return _gemma()
    return _qwen() if kind.startswith("Qwen") else _pixtral()


def small_encoder(config: Mapping[str, Any], tokenizer: Any) -> dict[str, Any]:
    """An encoder's published config with few layers, small widths and the tokenizer's ids."""
    kind = config["_class_name"]
    size = len(getattr(tokenizer, "tokenizer", tokenizer))
    if kind.startswith("CLIP"):
        return {**config, **_CLIP, "vocab_size": size, **_special_ids(tokenizer)}
    if kind.startswith("T5"):
        return {**config, **_T5, "vocab_size": size}
    if kind == "Mistral3ForConditionalGeneration":
        words = {**config["text_config"], **_decoder(size, layers=_FLUX2_LAYERS)}
        eyes = {**config["vision_config"], **_VISION, "num_attention_heads": 2, "head_dim": 16}
        eyes |= {"num_hidden_layers": 1, "image_size": 2 * _PATCH}
        return {**config, "text_config": words, "vision_config": eyes, "image_token_index": 3}
    if kind == "Qwen2_5_VLForConditionalGeneration":
        rope = {**config["text_config"]["rope_parameters"], "mrope_section": [2, 3, 3]}
        words = {**config["text_config"], **_decoder(size), "rope_parameters": rope}
        eyes = {**config["vision_config"], **_VISION, "num_heads": 2, "depth": 1}
        eyes |= {"out_hidden_size": WIDTH, "fullatt_block_indexes": [0]}
        return {**config, "text_config": words, "vision_config": eyes}
    layers = _FLUX2_KLEIN_LAYERS if kind == "Qwen3ForCausalLM" else 2
    return {**config, **_decoder(size, layers=layers)}


_CLIP = {
    "hidden_size": CLIP_WIDTH,
    "intermediate_size": 2 * CLIP_WIDTH,
    "projection_dim": CLIP_WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
_T5 = {"d_model": WIDTH, "d_kv": 16, "d_ff": WIDTH, "num_layers": 1, "num_heads": 2}
_VISION = {"hidden_size": WIDTH, "intermediate_size": WIDTH}


def _decoder(vocabulary: int, *, layers: int = 2) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }


def _special_ids(tokenizer: Any) -> dict[str, int]:
    return {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in _SPECIAL}


_SPECIAL = ("bos", "eos", "pad")


def _qwen() -> Qwen2Tokenizer:
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    pieces = [*text.byte_alphabet(), *specials]
    made = Qwen2Tokenizer(
        vocab={piece: number for number, piece in enumerate(pieces)},
        merges=[],
        extra_special_tokens=specials[1:],
        model_max_length=2 * _TOKENS,
    )
    made.chat_template = _CHAT
    return made


def _gemma() -> GemmaTokenizer:
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁"]
    pieces += [f"<0x{byte:02X}>" for byte in range(256)]
    pieces += [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    return GemmaTokenizer(vocab=vocabulary, merges=[], model_max_length=_TOKENS)


def _pixtral() -> PixtralProcessor:
    specials = ["<unk>", "<pad>", "<s>", "[IMG]", "[IMG_BREAK]", "[IMG_END]", "[INST]", "[/INST]"]
    vocabulary = {piece: number for number, piece in enumerate([*specials, *text.words(), ","])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    words = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<s>",
        extra_special_tokens=specials[3:],
        model_max_length=_TOKENS,
    )
    pixels = PixtralImageProcessor(size={"longest_edge": 2 * _PATCH}, patch_size=_PATCH)
    return PixtralProcessor(
        image_processor=pixels, tokenizer=words, patch_size=_PATCH, chat_template=_PIXTRAL_CHAT
    )
