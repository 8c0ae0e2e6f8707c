"""Files of weights as the publishers' are laid out, of small widths and random values.

Each has its publisher's names of tensors and kind of file; the sizes are other ones, which the
loaders read from the shapes. Heads of attention are as wide as the real ones.
"""

from __future__ import annotations

import hashlib
import itertools
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from evaluation.weight_files import WeightFile, weight_files

Tensors = dict[str, torch.Tensor]
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "blue", "circle", "a", "b", "##s")
REWARD_WIDTHS = (128, 64, 2)  # of the image tower, the text tower, and how many layers each


def write_stand_ins(folder: Path) -> dict[str, WeightFile]:
    """All files of the table in a folder, and the table as it is of them."""
    folder.mkdir(parents=True, exist_ok=True)
    table = {}
    for name, known in weight_files().items():
        torch.manual_seed(len(table))
        _WRITERS[name](folder / name)
        content = (folder / name).read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        table[name] = replace(known, bytes=len(content), sha256=sha256)
    return table


def shaken(network: torch.nn.Module) -> Tensors:
    """Its tensors with random values about those it was made with, so that each one matters."""
    return {
        name: value + 0.1 * torch.randn_like(value) if value.is_floating_point() else value
        for name, value in network.state_dict().items()
    }


class _Bag(torch.nn.Module):
    """Tensors by dotted names, to be written as TorchScript."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def write_archive(path: Path, tensors: Tensors) -> None:
    """A TorchScript archive in half precision, as OpenAI's files are."""
    root = _Bag()
    for name, value in tensors.items():
        *above, last = name.split(".")
        home: torch.nn.Module = root
        for part in above:
            if part not in dict(home.named_children()):
                home.add_module(part, _Bag())
            home = home.get_submodule(part)
        value = value.half() if value.is_floating_point() else value
        home.register_buffer(last, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(root).save(str(path))


def clip_config(*, side: int = 28, head_width: int = 64) -> dict[str, Any]:
    return {
        "embed_dim": 32,
        "vision_cfg": {
            "image_size": side, "layers": 2, "width": 2 * head_width, "head_width": head_width,
            "patch_size": 14,
        },
        "text_cfg": {
            "context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2,
        },
    }  # fmt: skip


def clip_tensors(*, side: int = 28, head_width: int = 64) -> Tensors:
    import open_clip

    return shaken(open_clip.model.CLIP(**clip_config(side=side, head_width=head_width)))


def _openai(side: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        numbers = {"input_resolution": side, "context_length": 77, "vocab_size": 49408}
        extra = {name: torch.tensor(value) for name, value in numbers.items()}
        write_archive(path, clip_tensors(side=side) | extra)

    return write


def _hps(path: Path) -> None:
    torch.save({"epoch": 1, "state_dict": clip_tensors(head_width=80)}, path)


def dino_network(side: int) -> torch.nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=side, patch_size=14, embed_dim=128, depth=2, num_heads=2, init_values=1e-5,
        num_classes=0,
    )  # fmt: skip


def _dinov2(path: Path) -> None:
    torch.save({**shaken(dino_network(70)), "mask_token": torch.zeros(1, 128)}, path)


def reward_tensors() -> Tensors:
    """As in ImageReward.pt: its image tower has timm's names, its text tower BERT's."""
    from timm.models.vision_transformer import VisionTransformer
    from transformers import BertConfig, BertModel

    seen, read, layers = REWARD_WIDTHS
    vision = VisionTransformer(
        img_size=32, patch_size=16, embed_dim=seen, depth=layers, num_heads=seen // 64,
        num_classes=0,
    )  # fmt: skip
    text = BertModel(
        BertConfig(
            vocab_size=len(WORDS) + 2, hidden_size=read, num_hidden_layers=layers,
            num_attention_heads=read // 64, intermediate_size=96, is_decoder=True,
            add_cross_attention=True, max_position_embeddings=64,
        ),
        add_pooling_layer=False,
    )  # fmt: skip
    of_text = shaken(text)
    del of_text["embeddings.token_type_embeddings.weight"]  # the original has none
    for name in list(of_text):
        if ".crossattention.self." in name and name.endswith(("key.weight", "value.weight")):
            of_text[name] = 0.1 * torch.randn(read, seen)
    of_text["embeddings.position_ids"] = torch.arange(64)[None]
    widths = (read, 16, 8, 8, 4, 1)
    head = {
        f"layers.{2 * n if n < 4 else 7}.{kind}": value
        for n, (wide, narrow) in enumerate(itertools.pairwise(widths))
        for kind, value in torch.nn.Linear(wide, narrow).state_dict().items()
    }
    parts = {"blip.visual_encoder.": shaken(vision), "blip.text_encoder.": of_text, "mlp.": head}
    tensors = {
        before + name: value for before, part in parts.items() for name, value in part.items()
    }
    return tensors | {"blip.vision_proj.weight": torch.zeros(2, 2)}  # of its training alone


def _reward(path: Path) -> None:
    torch.save(reward_tensors(), path)


def _vocabulary(path: Path) -> None:
    path.write_text("\n".join(WORDS) + "\n")


def pick_network() -> Any:
    from transformers import CLIPConfig, CLIPModel

    shared = {"hidden_act": "gelu", "projection_dim": 32, "num_hidden_layers": 2}
    return CLIPModel(
        CLIPConfig(
            projection_dim=32,
            vision_config={
                **shared, "hidden_size": 160, "intermediate_size": 96, "num_attention_heads": 2,
                "image_size": 28, "patch_size": 14,
            },
            text_config={
                **shared, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 1,
                "vocab_size": 49408, "eos_token_id": 49407, "bos_token_id": 49406,
            },
        )
    )  # fmt: skip


def _pick(path: Path) -> None:
    from safetensors.torch import save_file

    tensors = {name: value.contiguous() for name, value in shaken(pick_network()).items()}
    save_file(tensors, path)


def _backbone(name: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        import torchvision

        with torch.device("meta"):
            shapes = getattr(torchvision.models, name)(weights=None).state_dict()
        torch.save(
            {k: 0.05 * torch.randn(v.shape) for k, v in shapes.items() if k.startswith("features")},
            path,
        )

    return write


class StandInLayers(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(x, (32, 64)).mean(dim=1)


class StandInInception(torch.nn.Module):
    """The interface of the TorchScript file: `.layers` gives 2048 numbers an image."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = StandInLayers()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def _inception(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(StandInInception()).save(str(path))


_WRITERS: dict[str, Callable[[Path], None]] = {
    "inception-2015-12-05.pt": _inception,
    "alexnet-owt-7be5be79.pth": _backbone("alexnet"),
    "vgg16-397923af.pth": _backbone("vgg16"),
    "ViT-L-14.pt": _openai(28),
    "ViT-L-14-336px.pt": _openai(42),
    "dinov2_vitl14_pretrain.pth": _dinov2,
    "ImageReward.pt": _reward,
    "bert-base-uncased-vocab.txt": _vocabulary,
    "HPS_v2.1_compressed.pt": _hps,
    "pickscore_v1.safetensors": _pick,
}
