"""DINOv2's image tower from the published file, at 224 pixels.

Shapes: N images, D features.
"""

from __future__ import annotations

from pathlib import Path

import torch

from evaluation.judges.read_weights import Tensors, count_blocks, load_strictly, read_tensors

SIDE = 224
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
_HEAD_WIDTH = 64
_OFFSET = 0.1  # of the positions' scale, in the original code and so in published features


def load_dinov2(path: Path, *, device: torch.device) -> torch.nn.Module:
    """A timm VisionTransformer of the file's sizes; `class_tokens` asks it."""
    from timm.models.vision_transformer import VisionTransformer

    tensors = read_tensors(path)
    tensors.pop("mask_token", None)
    width, _, patch, _ = tensors["patch_embed.proj.weight"].shape
    network = VisionTransformer(
        img_size=SIDE,
        patch_size=patch,
        embed_dim=width,
        depth=count_blocks(tensors, before="blocks."),
        num_heads=width // _HEAD_WIDTH,
        init_values=1.0,  # there are layer scales, and the file has their values
        num_classes=0,
    )
    tensors["pos_embed"] = _positions(tensors, grid=SIDE // patch)
    load_strictly(network, tensors, what=str(path))
    return network.to(device)


def class_tokens(network: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The normalised class token (N, D) of normalised images (N, 3, 224, 224)."""
    tokens: torch.Tensor = network.forward_features(images)  # type: ignore[operator]
    return tokens[:, 0].float()


def _positions(tensors: Tensors, *, grid: int) -> torch.Tensor:
    """The positions of a grid x grid image, from those of the size it was trained at.

    Source: Oquab et al. 2023 (arXiv:2304.07193), their code: bicubic without antialias, by a scale
    of (grid + 0.1) / trained.
    """
    positions = tensors["pos_embed"].float()
    own = round((positions.shape[1] - 1) ** 0.5)
    if own == grid:
        return positions
    patches = positions[:, 1:].reshape(1, own, own, -1).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(
        patches, scale_factor=(grid + _OFFSET) / own, mode="bicubic", align_corners=False
    )
    assert resized.shape[-2:] == (grid, grid)
    return torch.cat([positions[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)
