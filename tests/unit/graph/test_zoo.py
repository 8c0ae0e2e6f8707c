"""The zoo at full published size, and the committed table of what its graphs say."""

import csv
import json
from pathlib import Path

import pytest

from experiments.studies.graph_zoo import AUTHORS, COLUMNS, OURS
from experiments.zoo import build, names
from experiments.zoo.inspection import inspect_denoiser, summarize
from experiments.zoo.published import models_with

ROOT = Path(__file__).parents[3]
TABLE = ROOT / "experiments" / "results" / "graph_zoo.csv"
# The denoisers of SD3.5-large, FLUX.1, FLUX.2, SDXL, SD1.5, PixArt, Sana, Wan, Qwen-Image, Z-Image
# and the three canny ControlNets have the sizes known of their checkpoints; the other numbers pin
# what the configs here build.
PARAMETERS = {
    "sd35-medium": 2_243_171_520,
    "sd35-large": 8_056_627_520,
    "flux.1-dev": 11_901_408_320,
    "flux.1-schnell": 11_891_178_560,
    "flux.2-dev": 32_223_281_152,
    "flux.2-klein-4b": 3_875_544_576,
    "z-image": 6_154_908_736,
    "sdxl": 2_567_463_684,
    "sd15": 859_520_964,
    "pixart-sigma": 610_856_096,
    "sana-1.6b": 1_604_462_752,
    "wan2.1": 14_288_491_584,
    "qwen-image": 20_430_401_088,
    "ltx-video": 1_923_385_472,
    "cogvideox": 5_570_283_072,
    "lumina2": 2_609_769_152,
    "hunyuan-dit": 1_516_534_048,
    "dit-xl-2": 749_826_464,
    "flux-controlnet": 3_301_956_608,
    "sd3-controlnet": 1_062_855_168,
    "flux-controlnet-canny": 1_791_605_248,
    "sd3-controlnet-canny": 538_805_760,
    "sdxl-controlnet": 1_251_014_160,
}


def rows() -> dict[str, dict[str, str]]:
    with TABLE.open() as file:
        return {row["architecture"]: row for row in csv.DictReader(file)}


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_published_size(name: str) -> None:
    total = sum(parameter.numel() for parameter in build(name).parameters())
    assert total == PARAMETERS[name]


def check_row(name: str) -> None:
    graph = inspect_denoiser(name)
    summary = {**summarize(graph), "unknown_ops": sum(graph.unknown_ops.values())}
    row = rows()[name]
    assert {key: int(row[key]) for key in COLUMNS} == {key: summary.get(key, 0) for key in COLUMNS}


def test_table_has_every_architecture_within_its_limits() -> None:
    table = rows()
    assert sorted(table) == names()
    assert all(int(row["unknown_ops"]) == 0 for row in table.values())
    assert float(table["flux.1-dev"]["peak_memory_gib"]) < 1.2


def test_everything_the_authors_detector_finds_is_found() -> None:
    table = rows()
    for name, patterns in AUTHORS.items():
        for pattern, theirs in patterns.items():
            assert sum(int(table[name][key]) for key in OURS[pattern]) >= theirs


@pytest.mark.parametrize("name", [name for name in names() if models_with(name)])
def test_every_model_of_conf_has_the_layers_and_segments_of_the_table(name: str) -> None:
    check_row(name)
    assert rows()[name]["models"].split() == models_with(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in names() if not models_with(name)])
def test_whole_table_is_current(name: str) -> None:
    check_row(name)


def test_sd35_medium_adaln_layers() -> None:
    graph = inspect_denoiser("sd35-medium")
    for block in range(24):
        parts = 9 if block < 13 else 6
        layer = graph[f"transformer_blocks.{block}.norm1.linear"]
        assert layer.output_segments == (1536,) * parts
        assert layer.input_segments[0].one_sided
    assert graph["norm_out.linear"].output_segments == (1536,) * 2


def test_flux_single_block_projection() -> None:
    graph = inspect_denoiser("flux.1-dev")
    for block in range(38):
        attention, gelu = graph[f"single_transformer_blocks.{block}.proj_out"].input_segments
        assert (attention.size, gelu.size) == (3072, 12288)
        assert not attention.one_sided
        assert gelu.one_sided
        assert gelu.producer.endswith("act_mlp(gelu)")


def test_config_files_and_pipeline_folders(tmp_path: Path) -> None:
    config = {"_class_name": "DiTTransformer2DModel", "num_layers": 1, "attention_head_dim": 8}
    config |= {"norm_type": "ada_norm_zero", "num_attention_heads": 2}
    folder = tmp_path / "pipeline" / "transformer"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    for target in (folder / "config.json", folder, tmp_path / "pipeline"):
        graph = inspect_denoiser(str(target))
        assert graph["transformer_blocks.0.norm1.linear"].output_segments == (16,) * 6
