"""Requests that no run can be made of: refused in one line that names what was given."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from experiments.config.checks import RESERVED
from experiments.config.limits import check_pattern
from experiments.config.request import read_request
from experiments.errors import UserError

PROMPTS = "dataset.evaluation_prompts"
ONE = "dataset.calibration_prompts=1"
SLURM = ("cluster=slurm", "device=cpu")
LOCAL = ("cluster=local_parallel",)


def _refusal(words: Sequence[str], *, multirun: bool = False) -> str:
    with pytest.raises(UserError) as caught:
        read_request(words, multirun=multirun)
    said = str(caught.value)
    assert len(said.splitlines()) == 1, said
    assert len(said) < 1000, said
    return said


@pytest.mark.parametrize(
    "word",
    [
        *("~seed", "~out", "~group", "~latents", "~num_threads"),
        *("~model", "~method", "~bits", "~dataset", "~logger", "~cluster=local"),
        *("~model.call", "~model.height", "~method.alpha", "~bits.weight", "~dataset.seed"),
        *("~cluster.stages", "~metrics.settings"),
    ],
)
def test_no_setting_can_be_taken_away(word: str) -> None:
    assert "takes away a setting that every run needs" in _refusal([word])


def test_an_entry_of_an_open_setting_can_be_taken_away() -> None:
    (cell,) = read_request(["~model.call.max_sequence_length"], multirun=False).cells
    assert cell.model.call == {}


def test_what_a_model_keeps_can_be_taken_away_one_by_one_and_as_a_whole() -> None:
    (less,) = read_request(["model=sd35_medium", "~model.keep.proj_out"], multirun=False).cells
    assert set(less.model.keep) == {"time_text_embed.*", "context_embedder"}
    (nothing,) = read_request(["model=sd35_medium", "~model.keep"], multirun=False).cells
    assert nothing.model.keep == {}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["seed=${seed}"], "seed"),
        (["seed=${nope}"], "nope"),
        (["group=${nowhere}"], "nowhere"),
        (["seed=${oc.env:NO_SUCH_VARIABLE}"], "NO_SUCH_VARIABLE"),
        (["out=${oc.env:NO_SUCH_VARIABLE}"], "NO_SUCH_VARIABLE"),
        (["dataset.name=${dataset.name}"], ""),
        (["seed=${group}", "group=${seed}"], ""),
        (["model.height=${model.width}", "model.width=${model.height}"], ""),
        (["seed=${a"], "cannot read"),
        (["seed=${nosuch.resolver:1}"], ""),
        (["seed=???"], "seed is not given"),
        (["out=???"], "out is not given"),
        (["model.batch_size=???"], "model.batch_size is not given"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_value_that_leads_nowhere(words: list[str], said: str) -> None:
    assert said in _refusal(words)


@pytest.mark.parametrize("key", ["method.alpha", "model.guidance_scale", "model.call.eta"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "NaN", "1e999"])
def test_numbers_are_finite(key: str, value: str) -> None:
    assert key in _refusal(["method=smoothquant", f"{key}={value}"])


@pytest.mark.parametrize("value", ["'nan'", ".nan", "'inf'"])
def test_texts_that_read_as_such_numbers_are_no_numbers(value: str) -> None:
    assert "alpha" in _refusal(["method=smoothquant", f"method.alpha={value}"])


@pytest.mark.parametrize(
    "words",
    [
        *(
            ["bits=mixed_w4w8a8", f"bits.mixed_budget={v}"]
            for v in ("nan", "inf", "-1", "0", "1e9")
        ),
        *(
            [f"statistics_gigabytes={v}"]
            for v in ("nan", "inf", "-1", "0", "1e-12", "1e12", "true")
        ),
        *([f"replay_gigabytes={v}"] for v in ("nan", "inf", "-1", "0", "1e-12", "1e12", "null")),
        *([f"model.call.sigmas=[1.0,{v}]"] for v in ("nan", "-inf")),
        ["metrics.settings.kid.size=nan"],
        ["method=ptqd", "method.base=nan"],
        ["cluster=local_parallel", "cluster.jobs.python=/nonexistent/python"],
        ["cluster=local_parallel", "cluster.jobs.python=no-such-program -u"],
    ],
    ids=" ".join,
)
def test_numbers_in_lists_and_budgets_are_finite_too(words: list[str]) -> None:
    _refusal(words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["seed=99999999999999999999999999"], "seed has 26 digits"),
        (["dataset.seed=99999999999999999999999999"], "dataset.seed"),
        (["method=smoothquant", "method.alpha=-5"], "method.alpha=-5"),
        (["method=smoothquant", "method.alpha=1e308"], "method.alpha=1e+308"),
        (["method=gptq", "method.damping=-1"], "method.damping=-1"),
        (["method=gptq", "method.block_size=0"], "method.block_size=0"),
        (["method=gptq", "method.sample_rows=-1"], "method.sample_rows=-1"),
        (["method=adaround", "method.iterations=1000000000000"], "method.iterations"),
        (["method=adaround", "method.warm_up=7"], "method.warm_up=7"),
        (["method=quarot", "method.seed=-1"], "method.seed=-1"),
        (["method=noise_floor", "bits=w16a16", "method.batch_size=0"], "method.batch_size=0"),
        (["method=noise_floor", "bits=w16a16", "method.num_threads=0"], "method.num_threads=0"),
        (["method=svdquant", "method.rank=-1"], "rank=-1"),
        (["method=svdquant", "method.rank=1000000"], "method.rank=1000000"),
        (["model.height=-8"], "model.height=-8"),
        (["model.height=0"], "model.height=0"),
        (["model.width=7"], "model.width=7"),
        (["logger.images=-1"], "logger.images=-1"),
        (["bits.keep=['[']"], "'['"),
        (["bits.keep=[proj_out,'a[b']"], "'a[b'"),
        (["bits.name=other"], "bits.name=other with bits=w8a8_int8"),
        (["metrics.prefix=''"], "metrics.prefix=''"),
        (["metrics.prefix='a b/../c'"], "metrics.prefix"),
        (["metrics.prefix=.hidden"], "metrics.prefix='.hidden'"),
        (["dataset.name=a/b"], "dataset.name='a/b'"),
        (["device=meta"], "device='meta'; use auto, cpu, cuda or cuda:N"),
        (["device=mps"], "device='mps'"),
        (["device=cpu:7"], "device='cpu:7'"),
        (["device=[cpu]"], "device="),
        (["out=[1,2]"], "out=[1, 2] is not a text"),
        (["out={a:1}"], "is not a text"),
        (["out=''"], "out='' is not a text"),
        (["group=null"], "group=None is not a text"),
        (["group=true"], "group=True is not a text"),
        (
            ["method=smooth_search", "method.held_out=true", "dataset.calibration_prompts=1"],
            "held_",
        ),
        (["method=segquant_a", "method.held_out=true", ONE], "held_out"),
        ([*SLURM, "cluster.stages.metrics.memory_gb=1000000000"], "cluster.stages.metrics.memory"),
        (["method=glob(*)"], "glob and interval"),
        (["model=glob(tiny*)"], "glob and interval"),
        (["method.alpha=interval(0,1)"], "glob and interval"),
        (["model@x=tiny_unet"], "'@' has no meaning"),
        (["hydra.verbose=true"], "unknown key"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_out_of_its_range(words: list[str], said: str) -> None:
    assert said in _refusal(words, multirun=True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model.num_inference_steps=100000000"], "at most 10000 (each prompt takes that many"),
        (["model.height=100000"], "at most 16384"),
        (["model.batch_size=1000000"], "so many images are in memory at once"),
        ([f"{PROMPTS}=1000000000"], "at most 100000 (each is sampled for every row)"),
        (["dataset.calibration_prompts=100000000"], "at most 100000"),
        (["metrics.bootstrap_resamples=1000000000000"], "draws all prompts again"),
        ([*LOCAL, "cluster.jobs.memory_gb=1000000000"], "at most 100000 (of one machine)"),
        ([*LOCAL, "cluster.jobs.parallel=1000000000"], "jobs at a time"),
        (["num_threads=1000000"], "at most 1024 (each is a thread"),
        (["model.num_inference_steps=10000", f"{PROMPTS}=99999"], "1e+09 steps of the denoiser"),
        (["model.height=16384", "model.width=16384"], "GB of pixels in one call"),
        (["seed=range(0,1000000000)"], "more than 100000 values"),
        (["seed=range(0,1000)", "dataset.seed=range(0,1000)"], "1000000 cells; a sweep has"),
        ([f"group={'x' * 20_000}"], "group has 20000 characters"),
        (["model.call.a=" + "[" * 30 + "]" * 30], "nested too deeply"),
    ],
    ids=lambda value: value[0][:50] if isinstance(value, list) else "",
)
def test_a_plan_that_would_not_end_is_refused_with_its_cost(words: list[str], said: str) -> None:
    assert said in _refusal(words, multirun=True)


@pytest.mark.parametrize("name", list(RESERVED))
def test_arguments_that_the_harness_gives_itself(name: str) -> None:
    said = _refusal([f"model.call.{name}=2"])
    assert said.startswith(f"model.call.{name} is segbench's own: ")


@pytest.mark.parametrize("pattern", ["*", "a[0-9]b", "[!a]", "[]]", "[[]", "a]", "[a][b]", ""])
def test_patterns_that_fnmatch_reads_as_they_are_meant(pattern: str) -> None:
    assert check_pattern(pattern, key="bits.keep") is None  # raises nothing


@pytest.mark.parametrize("pattern", ["[", "a[", "[]", "[!]", "x[a]y[b", "[[]["])
def test_patterns_with_an_open_bracket(pattern: str) -> None:
    with pytest.raises(UserError, match="has a '\\['"):
        assert check_pattern(pattern, key="bits.keep") is None  # raises nothing


def test_what_is_at_its_limit_passes() -> None:
    words = ["model.num_inference_steps=10000", "model.batch_size=1", "model.height=16384"]
    words += ["metrics.bootstrap_resamples=1000000", f"{PROMPTS}=1000", "num_threads=1024"]
    (cell,) = read_request([*words, "seed=9223372036854775807"], multirun=False).cells
    assert cell.seed == 2**63 - 1
