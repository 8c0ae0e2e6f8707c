"""Small twins of the real models: pipelines of the true classes, small enough for a test.

    python -m experiments.zoo.twins sd35_medium /tmp/twin

writes the twin of `conf/model/sd35_medium.yaml`: its published configs with few layers and small
widths, random weights, all text encoders, the published scheduler, in diffusers' own layout. Then
`segbench run model=sd35_medium model.path=/tmp/twin model.height=64 model.width=64
model.dtype=float32 ...` runs it as it would run the model.
"""

from __future__ import annotations

import argparse
import logging
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from experiments.zoo.architectures import load_config
from experiments.zoo.published import PUBLISHED, Published, network, part_config
from experiments.zoo.twin_parts import small
from experiments.zoo.twin_texts import small_encoder, tokenizer_of

log = logging.getLogger(__name__)

_CLASSES = 1000  # of ImageNet
# Parts that a class of pipelines asks for and its published folder has nothing of that a run loads.
_NONE = {"StableDiffusionPipeline": ("safety_checker", "feature_extractor")}


def make_twin(name: str, folder: Path, *, seed: int = 0) -> dict[str, Path]:
    """Writes the twin of the model `name` to `folder`.

    Returns:
        Folders of the parts that lie apart from the pipeline's, by their names: a ControlNet
        lies in `folder` with `_controlnet` behind its name.

    Raises:
        ValueError: no such model.
    """
    if name not in PUBLISHED:
        near = get_close_matches(name, PUBLISHED, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"{name!r} has no twin{hint}; there are {', '.join(PUBLISHED)}")
    published = PUBLISHED[name]
    transformers.utils.logging.disable_progress_bar()
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        _pipeline(published).save_pretrained(folder)
        if published.controlnet is None:
            return {}
        apart = folder.with_name(f"{folder.name}_controlnet")
        network: Any = _network(small(load_config(published.controlnet)))
        network.save_pretrained(apart)
    return {"controlnet": apart}


def _pipeline(published: Published) -> Any:
    # A ControlNet's pipeline takes the folder of the one without.
    kind = published.pipeline.replace("ControlNet", "")
    parts: dict[str, Any] = dict.fromkeys(_NONE.get(kind, ()))
    for part, encoder in published.encoders.items():
        config = part_config(encoder)
        tokenizer = tokenizer_of(config)
        parts[part] = _network(small_encoder(config, tokenizer))
        parts[part.replace("text_encoder", "tokenizer")] = tokenizer
    for part, denoiser in published.denoisers.items():
        if part != "controlnet":
            parts[part] = _network(small(load_config(denoiser)))
    parts["vae"] = _network(small(part_config(published.vae)))
    scheduler = part_config(published.scheduler)
    parts["scheduler"] = getattr(diffusers, scheduler["_class_name"]).from_config(scheduler)
    if kind == "DiTPipeline":
        parts["id2label"] = {number: f"class {number}" for number in range(_CLASSES)}
    return getattr(diffusers, kind)(**parts, **published.settings)


def _network(config: dict[str, Any]) -> Any:
    made = network(config, device="cpu")
    with torch.no_grad():
        for parameter in made.parameters():
            # What training begins at zero (a ControlNet's outputs) would hide what is before it.
            if parameter.dim() > 1 and not bool(parameter.any()):
                parameter.normal_(std=0.02)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=list(PUBLISHED), metavar="NAME", help="a yaml's name")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where to write it")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    apart = make_twin(given.name, given.folder)
    log.info("wrote %s", " and ".join(map(str, [given.folder, *apart.values()])))


if __name__ == "__main__":
    main()
