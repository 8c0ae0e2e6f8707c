"""Networks from files of weights, against other builders of the same architecture."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.clip_evaluator import image_features, text_features
from evaluation.judges.blip_reward import (
    PROMPT_TOKENS,
    REWARD_MEAN,
    REWARD_STD,
    BlipReward,
    count_cut,
    load_blip_reward,
    rewards,
)
from evaluation.judges.clip_files import CLIP_MEAN, CLIP_STD, clip_sizes, load_clip_file
from evaluation.judges.dinov2_tower import class_tokens, load_dinov2
from evaluation.judges.pick_network import load_pick_network, picks
from evaluation.judges.read_weights import asking, checked_device, read_tensors
from evaluation.metrics.lpips import load_lpips, lpips_per_image
from tests.stand_ins import clip_config, clip_tensors, dino_network, pick_network

CPU = torch.device("cpu")
PROMPTS = ["red circle", "a blue circle"]


def noise(count: int, side: int, *, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, side, side, 3), generator=generator, dtype=torch.uint8)


# CLIP ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "head_width"),
    [("ViT-L-14-quickgelu", 64), ("ViT-L-14-336-quickgelu", 64), ("ViT-H-14", 80)],
)
def test_full_sizes_are_read_off_the_shapes(name: str, head_width: int) -> None:
    import open_clip

    config = open_clip.get_model_config(name)
    with torch.device("meta"):
        tensors = open_clip.model.CLIP(**config).state_dict()
    found = clip_sizes(dict(tensors), vision_head_width=head_width)
    assert found["embed_dim"] == config["embed_dim"]
    assert found["text_cfg"] == config["text_cfg"]
    assert found["vision_cfg"] == {"head_width": 64, **config["vision_cfg"]}


def test_openai_weights_have_quick_gelu(weights: Path) -> None:
    """open_clip's builder for OpenAI's files agrees; plain GELU gives wrong scores, not absurd."""
    import open_clip

    path = weights / "ViT-L-14.pt"
    loaded = load_clip_file(path, key="k", quick_gelu=True, device=CPU)
    names = {type(module).__name__ for module in loaded.model.modules()}
    assert "QuickGELU" in names
    assert "GELU" not in names
    theirs = open_clip.model.build_model_from_openai_state_dict(
        read_tensors(path), cast_dtype=torch.float32
    ).float()
    images = noise(2, 28)
    batch = torch.stack([loaded.preprocess(Image.fromarray(i.numpy())) for i in images])
    with torch.no_grad():
        expected = theirs.encode_image(batch, normalize=True)
        texts = theirs.encode_text(open_clip.tokenizer.SimpleTokenizer()(PROMPTS), normalize=True)
    assert torch.allclose(image_features(loaded, images), expected, atol=1e-5)
    assert torch.allclose(text_features(loaded, PROMPTS), texts, atol=1e-5)
    plain = load_clip_file(path, key="k", quick_gelu=False, device=CPU)
    wrong = image_features(plain, images)
    assert 1e-4 < (wrong - expected).abs().max() < 0.5


def test_heads_of_the_large_image_tower_are_80_wide(tmp_path: Path) -> None:
    import open_clip

    tensors = clip_tensors(head_width=80)
    torch.save({"state_dict": tensors}, tmp_path / "h.pt")
    theirs = open_clip.model.CLIP(**clip_config(head_width=80))
    theirs.load_state_dict(tensors)
    theirs.eval()
    loaded = load_clip_file(
        tmp_path / "h.pt", key="k", quick_gelu=False, vision_head_width=80, device=CPU
    )
    batch = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        assert torch.equal(loaded.model.encode_image(batch), theirs.encode_image(batch))
    assert loaded.model.visual.transformer.resblocks[0].attn.num_heads == 2


def test_a_whole_picture_has_black_beside_it_and_a_square_loses_its_sides(weights: Path) -> None:
    wide = Image.fromarray(np.full((20, 60, 3), 255, dtype=np.uint8))
    settings: dict[str, Any] = {"key": "k", "quick_gelu": False, "device": CPU}
    path = weights / "ViT-L-14.pt"
    whole = load_clip_file(path, whole_picture=True, **settings).preprocess(wide)
    black, white = ((value - CLIP_MEAN[0]) / CLIP_STD[0] for value in (0, 1))
    assert whole.shape == (3, 28, 28)
    assert whole[0, 0].tolist() == pytest.approx([black] * 28)
    assert whole[0, 14].tolist() == pytest.approx([white] * 28)
    square = load_clip_file(path, **settings).preprocess(wide)
    assert square[0].flatten().tolist() == pytest.approx([white] * 28 * 28)


# DINOv2 -------------------------------------------------------------------------------------------


def cubic_rows(*, out: int, own: int, scale: float) -> np.ndarray:
    """Each output position as a mixture of own ones: Keys' cubic, a = -0.75, ends repeated."""
    a, rows = -0.75, np.zeros((out, own))
    for i in range(out):
        at = (i + 0.5) / scale - 0.5
        for k in range(math.floor(at) - 1, math.floor(at) + 3):
            t = abs(at - k)
            near = (a + 2) * t**3 - (a + 3) * t**2 + 1
            far = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
            rows[i, min(max(k, 0), own - 1)] += near if t <= 1 else far
    return rows


def test_positions_of_224_pixels_are_the_original_codes(weights: Path) -> None:
    """The scale has 0.1 added, without antialias: timm's own resampling gives other features."""
    path = weights / "dinov2_vitl14_pretrain.pth"
    tensors = read_tensors(path)
    own = tensors["pos_embed"][0, 1:].reshape(5, 5, -1).numpy()
    rows = cubic_rows(out=16, own=5, scale=16.1 / 5)
    expected = np.einsum("ia,jb,abd->ijd", rows, rows, own)
    network = load_dinov2(path, device=CPU)
    found = network.pos_embed[0, 1:].reshape(16, 16, -1).numpy()
    assert found == pytest.approx(expected, abs=1e-5)
    assert torch.equal(network.pos_embed[0, 0], tensors["pos_embed"][0, 0])
    assert not hasattr(network, "mask_token")


def test_class_tokens_are_those_of_transformers(weights: Path, tmp_path: Path) -> None:
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(3)
    own = dino_network(224)  # 16 x 16 positions: nothing is resized
    torch.save(own.state_dict(), tmp_path / "dino.pth")
    other = Dinov2Model(
        Dinov2Config(
            hidden_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=224,
            patch_size=14,
        )
    ).eval()  # fmt: skip
    other.load_state_dict(_in_transformers_names(own.state_dict()), strict=False)
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        expected = other(pixel_values=images).last_hidden_state[:, 0]
        found = class_tokens(load_dinov2(tmp_path / "dino.pth", device=CPU), images)
    assert torch.allclose(found, expected, atol=1e-5)


def _in_transformers_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed = {
        "embeddings.cls_token": tensors["cls_token"],
        "embeddings.position_embeddings": tensors["pos_embed"],
    }
    for kind in ("weight", "bias"):
        renamed[f"embeddings.patch_embeddings.projection.{kind}"] = tensors[
            f"patch_embed.proj.{kind}"
        ]
        renamed[f"layernorm.{kind}"] = tensors[f"norm.{kind}"]
        for n in range(2):
            old, new = f"blocks.{n}", f"encoder.layer.{n}"
            parts = tensors[f"{old}.attn.qkv.{kind}"].chunk(3)
            for name, part in zip(("query", "key", "value"), parts, strict=True):
                renamed[f"{new}.attention.attention.{name}.{kind}"] = part
            for theirs, ours in (
                ("attention.output.dense", "attn.proj"), ("norm1", "norm1"), ("norm2", "norm2"),
                ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2"),
            ):  # fmt: skip
                renamed[f"{new}.{theirs}.{kind}"] = tensors[f"{old}.{ours}.{kind}"]
            renamed[f"{new}.layer_scale1.lambda1"] = tensors[f"{old}.ls1.gamma"]
            renamed[f"{new}.layer_scale2.lambda1"] = tensors[f"{old}.ls2.gamma"]
    return renamed


# ImageReward --------------------------------------------------------------------------------------


@pytest.fixture
def judge(weights: Path) -> BlipReward:
    return load_blip_reward(
        weights / "ImageReward.pt",
        vocabulary=weights / "bert-base-uncased-vocab.txt",
        device=CPU,
    )


def test_the_image_tower_is_timms(judge: BlipReward, weights: Path) -> None:
    from timm.models.vision_transformer import VisionTransformer

    tower = VisionTransformer(
        img_size=32, patch_size=16, embed_dim=128, depth=2, num_heads=2, num_classes=0
    )
    before = "blip.visual_encoder."
    tensors = read_tensors(weights / "ImageReward.pt")
    tower.load_state_dict(
        {k.removeprefix(before): v for k, v in tensors.items() if k.startswith(before)}
    )
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = tower.eval().forward_features(images)
        found = judge.vision(pixel_values=images).last_hidden_state
    assert torch.allclose(found, expected, atol=1e-5)


def attend(
    x: torch.Tensor, to: torch.Tensor, tensors: dict[str, torch.Tensor], name: str, mask: Any
) -> torch.Tensor:
    """One head of attention with BERT's names, the sum with x, and its layer norm."""

    def linear(part: str, value: torch.Tensor) -> torch.Tensor:
        weight, bias = (tensors[f"{name}.{part}.{kind}"] for kind in ("weight", "bias"))
        return torch.nn.functional.linear(value, weight, bias)

    q, k, v = linear("self.query", x), linear("self.key", to), linear("self.value", to)
    seen = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]) + mask).softmax(dim=-1) @ v
    return normed(x + linear("output.dense", seen), tensors, f"{name}.output.LayerNorm")


def normed(x: torch.Tensor, tensors: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
    return torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias, 1e-12)


def text_states(
    tensors: dict[str, torch.Tensor], ids: torch.Tensor, mask: torch.Tensor, seen: torch.Tensor
) -> torch.Tensor:
    """Li et al. 2022, fig. 2: self-attention both ways, then to the image, then the two layers."""
    x = tensors["embeddings.word_embeddings.weight"][ids]
    x = x + tensors["embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = normed(x, tensors, "embeddings.LayerNorm")
    hidden = torch.where(mask.bool(), 0.0, -torch.inf)[:, None]
    for n in range(2):
        layer = f"encoder.layer.{n}"
        x = attend(x, x, tensors, f"{layer}.attention", hidden)
        x = attend(x, seen, tensors, f"{layer}.crossattention", 0.0)
        wide = torch.nn.functional.linear(
            x,
            tensors[f"{layer}.intermediate.dense.weight"],
            tensors[f"{layer}.intermediate.dense.bias"],
        )
        wide = torch.nn.functional.linear(
            torch.nn.functional.gelu(wide),
            tensors[f"{layer}.output.dense.weight"],
            tensors[f"{layer}.output.dense.bias"],
        )
        x = normed(x + wide, tensors, f"{layer}.output.LayerNorm")
    return x


def test_rewards_are_those_of_the_equations(judge: BlipReward, weights: Path) -> None:
    tensors = read_tensors(weights / "ImageReward.pt")
    before = "blip.text_encoder."
    text = {k.removeprefix(before): v for k, v in tensors.items() if k.startswith(before)}
    # [CLS] red circle [SEP] and padding: lines of the vocabulary's file
    ids = torch.tensor([[2, 5, 7, 3] + [0] * (PROMPT_TOKENS - 4)])
    mask = torch.tensor([[1] * 4 + [0] * (PROMPT_TOKENS - 4)])
    images = torch.randn(1, 3, 32, 32)
    with asking():
        seen = judge.vision(pixel_values=images).last_hidden_state
        state = text_states(text, ids, mask, seen)[:, 0]
        for number in (0, 2, 4, 6, 7):
            names = (f"mlp.layers.{number}.weight", f"mlp.layers.{number}.bias")
            state = torch.nn.functional.linear(state, *(tensors[name] for name in names))
        found = rewards(judge, images, ["Red circle"])
    assert found.tolist() == pytest.approx(
        [(float(state) - REWARD_MEAN) / REWARD_STD], rel=1e-4, abs=1e-5
    )


def test_prompts_are_cut_at_35_tokens_and_counted(judge: BlipReward) -> None:
    images = torch.randn(1, 3, 32, 32)
    long = " ".join(["red"] * 33 + ["blue"])
    with asking():
        cut, whole = (rewards(judge, images, [text]) for text in (long, " ".join(["red"] * 33)))
        other = rewards(judge, images, [" ".join(["red"] * 32 + ["blue"])])
    assert torch.equal(cut, whole)
    assert not torch.equal(cut, other)
    assert count_cut(judge, [long, "red", " ".join(["red"] * 33)]) == 1


def test_a_file_that_is_no_vocabulary_is_refused(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("red\nblue\n")
    with pytest.raises(ValueError, match=r"no vocabulary of BERT: it lacks \[CLS\]"):
        load_blip_reward(weights / "ImageReward.pt", vocabulary=tmp_path / "words.txt", device=CPU)


# PickScore ----------------------------------------------------------------------------------------


def test_picks_are_the_models_own_logits(weights: Path) -> None:
    import open_clip

    path = weights / "pickscore_v1.safetensors"
    theirs = pick_network()
    theirs.load_state_dict(read_tensors(path))
    images, tokens = torch.randn(2, 3, 28, 28), open_clip.tokenizer.SimpleTokenizer()(PROMPTS)
    with torch.no_grad():
        logits = theirs.eval()(input_ids=tokens, pixel_values=images).logits_per_image
        found = picks(load_pick_network(path, device=CPU), images, tokens, device=CPU)
    assert found.tolist() == pytest.approx(logits.diagonal().tolist(), rel=1e-5)


def test_the_full_sizes_of_picks_network() -> None:
    from transformers import CLIPConfig, CLIPModel

    from evaluation.judges import pick_network as module

    shared = {"hidden_act": "gelu", "projection_dim": 1024}
    real = CLIPConfig(
        projection_dim=1024,
        vision_config={
            **shared, "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
            "num_attention_heads": 16, "image_size": 224, "patch_size": 14,
        },
        text_config={
            **shared, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
            "num_attention_heads": 16, "vocab_size": 49408,
        },
    )  # fmt: skip
    with torch.device("meta"):
        tensors = CLIPModel(real).state_dict()
    found = module._config(dict(tensors))
    for part in ("vision_config", "text_config"):
        ours, theirs = getattr(found, part), getattr(real, part)
        for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "hidden_act",
                     "num_attention_heads", "projection_dim"):  # fmt: skip
            assert getattr(ours, name) == getattr(theirs, name), name


# LPIPS --------------------------------------------------------------------------------------------

_TAPS = {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29)}  # ReLUs in torchvision's features


@pytest.mark.parametrize(("net", "constructor"), [("alex", "alexnet"), ("vgg", "vgg16")])
def test_lpips_is_that_of_the_equation(weights: Path, net: str, constructor: str) -> None:
    """Zhang et al. 2018, eq. 1, with torchvision's layers and the heads of torchmetrics' wheel."""
    import torchvision
    from torchmetrics.functional.image import lpips as package

    (path,) = (path for path in weights.iterdir() if path.name.startswith(constructor))
    with torch.device("meta"):
        layers = getattr(torchvision.models, constructor)(weights=None).features
    tensors = {k.removeprefix("features."): v for k, v in read_tensors(path).items()}
    layers.load_state_dict(tensors, assign=True)
    heads = read_tensors(Path(package.__file__).with_name("lpips_models") / f"{net}.pth")
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)

    def taps(image: torch.Tensor) -> list[torch.Tensor]:
        value, found = (2 * image - 1 - shift) / scale, []
        for number, layer in enumerate(layers):
            value = layer(value)
            if number in _TAPS[net]:
                found.append(value / value.square().sum(dim=1, keepdim=True).clamp(1e-16).sqrt())
        return found

    a, b = (noise(2, 64, seed=s).permute(0, 3, 1, 2).float() / 255 for s in (0, 1))
    with torch.no_grad():
        expected = sum(
            ((x - y).square() * heads[f"lin{n}.model.1.weight"].view(1, -1, 1, 1))
            .sum(dim=1)
            .mean(dim=(1, 2))
            for n, (x, y) in enumerate(zip(taps(a), taps(b), strict=True))
        )
    assert net in ("alex", "vgg")
    found = lpips_per_image(load_lpips(path, net=net), a, b)  # type: ignore[arg-type]
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-4)


# files --------------------------------------------------------------------------------------------


def test_damaged_and_other_files_are_named(tmp_path: Path, weights: Path) -> None:
    (tmp_path / "torn.pt").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"torn\.pt: cannot be read as weights"):
        read_tensors(tmp_path / "torn.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds list, not named tensors"):
        read_tensors(tmp_path / "list.pt")
    with pytest.raises(ValueError, match="no CLIP with a ViT"):
        load_clip_file(weights / "dinov2_vitl14_pretrain.pth", key="k", quick_gelu=True, device=CPU)
    tensors = read_tensors(weights / "dinov2_vitl14_pretrain.pth")
    torch.save({**tensors, "more": torch.zeros(1)}, tmp_path / "more.pth")
    with pytest.raises(ValueError, match="the weights do not fit the network"):
        load_dinov2(tmp_path / "more.pth", device=CPU)


def test_a_device_that_is_not_there_is_said() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(ValueError, match="metrics run on cuda and torch sees no CUDA device"):
        checked_device("cuda")


def test_products_are_not_in_tf32_while_asking() -> None:
    before = torch.backends.cudnn.allow_tf32
    with asking():
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
        assert not torch.is_grad_enabled()
    assert torch.backends.cudnn.allow_tf32 == before
