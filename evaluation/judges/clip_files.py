"""CLIP from a single file in open_clip's or OpenAI's naming, of whatever sizes its tensors have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from evaluation.clip_evaluator import Evaluator
from evaluation.judges.read_weights import Tensors, count_blocks, load_strictly, read_tensors

TEXT_HEAD_WIDTH = 64  # of all published CLIP models
_NOT_TENSORS_OF_IT = ("input_resolution", "context_length", "vocab_size")  # in OpenAI's archives
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def load_clip_file(
    path: Path,
    *,
    key: str,
    quick_gelu: bool,
    vision_head_width: int = 64,
    whole_picture: bool = False,
    device: torch.device,
) -> Evaluator:
    """The network of a file with CLIP's own preprocessing and vocabulary.

    Args:
        key: names the weights.
        quick_gelu: x sigmoid(1.702 x) instead of GELU. OpenAI's models were trained with it; a
            file does not say so, and with the other one every score is wrong and plausible.
        vision_head_width: 64, but 80 in ViT-H/14.
        whole_picture: fit the longer side and pad with black, instead of cutting the longer side.
    """
    import open_clip

    tensors = {k: v for k, v in read_tensors(path).items() if k not in _NOT_TENSORS_OF_IT}
    sizes = clip_sizes(tensors, vision_head_width=vision_head_width)
    with torch.device("meta"):
        model = open_clip.model.CLIP(
            embed_dim=sizes["embed_dim"],
            vision_cfg=sizes["vision_cfg"],
            text_cfg=sizes["text_cfg"],
            quick_gelu=quick_gelu,
        )
    model.to_empty(device="cpu")
    load_strictly(model, tensors, what=str(path))
    side = int(sizes["vision_cfg"]["image_size"])
    context_length = int(sizes["text_cfg"]["context_length"])
    later = torch.full((context_length, context_length), -torch.inf).triu_(1)
    model.attn_mask.copy_(later)  # the one buffer that no file has
    return Evaluator(
        model=model.to(device),
        preprocess=_whole_picture(side) if whole_picture else centre_square(side),
        tokenize=open_clip.tokenizer.SimpleTokenizer(context_length=context_length),
        image_size=(side, side),
        mean=CLIP_MEAN,
        std=CLIP_STD,
        context_length=context_length,
        device=device,
        key=key,
    )


def clip_sizes(tensors: Tensors, *, vision_head_width: int) -> dict[str, Any]:
    """open_clip's config, read off the shapes.

    Raises:
        ValueError: these are no tensors of a CLIP with a ViT.
    """
    try:
        width, _, patch, _ = tensors["visual.conv1.weight"].shape
        grid = round((len(tensors["visual.positional_embedding"]) - 1) ** 0.5)
        context_length, text_width = tensors["positional_embedding"].shape
        vocab_size = len(tensors["token_embedding.weight"])
        embed_dim = tensors["text_projection"].shape[1]
    except KeyError as error:
        raise ValueError(f"no CLIP with a ViT: the weights hold no {error}") from error
    return {
        "embed_dim": embed_dim,
        "vision_cfg": {
            "image_size": patch * grid,
            "layers": count_blocks(tensors, before="visual.transformer.resblocks."),
            "width": width,
            "head_width": vision_head_width,
            "patch_size": patch,
        },
        "text_cfg": {
            "context_length": context_length,
            "vocab_size": vocab_size,
            "width": text_width,
            "heads": text_width // TEXT_HEAD_WIDTH,
            "layers": count_blocks(tensors, before="transformer.resblocks."),
        },
    }


def centre_square(side: int) -> Callable[[Image.Image], torch.Tensor]:
    """The shorter side to `side` (PIL, bicubic), the middle square, CLIP's mean and deviation."""
    import open_clip

    settings = open_clip.transform.PreprocessCfg(size=side, mean=CLIP_MEAN, std=CLIP_STD)
    transform: Callable[[Image.Image], torch.Tensor] = open_clip.transform.image_transform_v2(
        settings, is_train=False
    )
    return transform


def _whole_picture(side: int) -> Callable[[Image.Image], torch.Tensor]:
    """As HPSv2 has it: the tensor's longer side to `side` (bicubic, antialias), black beside it."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as transforms

    def prepare(picture: Image.Image) -> torch.Tensor:
        pixels = transforms.to_tensor(picture)
        scale = side / max(pixels.shape[1:])
        if scale != 1:
            size = [round(length * scale) for length in pixels.shape[1:]]
            pixels = transforms.resize(
                pixels, size, interpolation=InterpolationMode.BICUBIC, antialias=True
            )
            below, right = (side - length for length in size)
            pixels = transforms.pad(
                pixels, [right // 2, below // 2, right - right // 2, below - below // 2]
            )
        prepared: torch.Tensor = transforms.normalize(pixels, list(CLIP_MEAN), list(CLIP_STD))
        return prepared

    return prepare
