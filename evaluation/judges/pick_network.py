"""PickScore's network: transformers' CLIP, of the sizes that the file's tensors have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from evaluation.judges.read_weights import Tensors, count_blocks, load_strictly, read_tensors

_VISION_HEAD_WIDTH, _TEXT_HEAD_WIDTH = 80, 64  # of ViT-H/14
_VISION, _TEXT = "vision_model.", "text_model."


def load_pick_network(path: Path, *, device: torch.device) -> Any:
    """A `CLIPModel` with GELU, as CLIP ViT-H/14 of LAION has it."""
    from transformers import CLIPModel

    tensors = {k: v for k, v in read_tensors(path).items() if not k.endswith(".position_ids")}
    network = CLIPModel(_config(tensors))
    load_strictly(network, tensors, what=str(path))
    return network.to(device)


def _config(tensors: Tensors) -> Any:
    from transformers import CLIPConfig

    width, _, patch, _ = tensors[f"{_VISION}embeddings.patch_embedding.weight"].shape
    places = len(tensors[f"{_VISION}embeddings.position_embedding.weight"])
    vocabulary, text_width = tensors[f"{_TEXT}embeddings.token_embedding.weight"].shape
    shared = {"hidden_act": "gelu", "projection_dim": len(tensors["text_projection.weight"])}
    return CLIPConfig(
        projection_dim=shared["projection_dim"],
        vision_config={
            **shared,
            "hidden_size": width,
            "intermediate_size": len(tensors[f"{_VISION}encoder.layers.0.mlp.fc1.bias"]),
            "num_hidden_layers": count_blocks(tensors, before=f"{_VISION}encoder.layers."),
            "num_attention_heads": width // _VISION_HEAD_WIDTH,
            "image_size": patch * round((places - 1) ** 0.5),
            "patch_size": patch,
        },
        text_config={
            **shared,
            "vocab_size": vocabulary,
            "hidden_size": text_width,
            "intermediate_size": len(tensors[f"{_TEXT}encoder.layers.0.mlp.fc1.bias"]),
            "num_hidden_layers": count_blocks(tensors, before=f"{_TEXT}encoder.layers."),
            "num_attention_heads": text_width // _TEXT_HEAD_WIDTH,
            "max_position_embeddings": len(tensors[f"{_TEXT}embeddings.position_embedding.weight"]),
            "eos_token_id": vocabulary - 1,  # <|endoftext|> is the last: its state is the text's
            "bos_token_id": vocabulary - 2,
        },
    )


def picks(
    network: Any, images: torch.Tensor, tokens: torch.Tensor, *, device: torch.device
) -> torch.Tensor:
    """exp(logit scale) times the cosine of image and prompt, float64 (N,).

    Source: Kirstain et al. 2023 (arXiv:2305.01569), eq. 1.
    """
    seen = network.visual_projection(
        network.vision_model(pixel_values=images.to(device)).pooler_output
    )
    read = network.text_projection(network.text_model(input_ids=tokens.to(device)).pooler_output)
    cosine = torch.nn.functional.cosine_similarity(seen.double(), read.double(), dim=1)
    scores: torch.Tensor = network.logit_scale.double().exp() * cosine
    return scores.cpu()
