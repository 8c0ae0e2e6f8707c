"""Sweeps on a cluster whose Slurm is a few stand-in commands; the real one is in tests/slurm."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from evaluation.records import read_record, stable_view
from experiments.cell.shards import shards_of
from experiments.cell.sweep import open_sweep
from experiments.cluster.work import CellsFailed, CellWork
from experiments.config.request import Request, read_request
from segquant.core.method_interface import OfThisMachine
from tests.conftest import Answer

Segbench = Callable[..., Answer]
Small = Callable[..., list[str]]

ON_SLURM = ("device=cpu", "cluster=slurm", "cluster.jobs.partition=gpu")


class StandIn:
    """Slurm's commands as scripts: sbatch counts jobs, squeue prints what a file says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.queue = folder / "queue"
        self.queue.touch()
        self.script("srun", "exit 1")
        self.script("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
        self.script("scontrol", "echo 'MaxArraySize = 1001'")
        self.script("squeue", f'case "$*" in *--name*) ;; *) cat {self.queue} ;; esac')
        self.script(
            "sbatch",
            f"echo x >> {folder}/count; n=$(wc -l < {folder}/count); cp $1 {folder}/$n.sh; "
            "echo Submitted batch job $n",
        )

    def script(self, name: str, text: str) -> None:
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    @property
    def submitted(self) -> list[str]:
        return [path.read_text() for path in sorted(self.folder.glob("*.sh"))]

    def say(self, *lines: str) -> None:
        self.queue.write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return StandIn(folder)


@pytest.fixture
def request_(small: Small, tmp_path: Path) -> list[str]:
    return small("tiny_unet", "method=fp,rtn,gptq", *ON_SLURM, f"out={tmp_path / 'out'}")


def test_a_dry_run_shows_jobs_resources_hours_and_scripts(
    segbench: Segbench, slurm: StandIn, request_: list[str]
) -> None:
    answer = segbench("run", "-m", "--dry-run", *request_)
    assert answer.status == 0
    for word in (
        "1 x reference in gpu",
        "1 x calibration",
        "2 x images",
        "2 x metrics",
        "8 CPUs, 64 GB, 1 GPUs, at most 240 min",
        "8 CPUs, 32 GB, 0 GPUs",
        "hours unknown until one cell has run",
        "#SBATCH --gpus-per-node=1",
        "#SBATCH --signal=USR2@120",
        "#SBATCH --requeue",
        "export HF_HUB_OFFLINE=1",
        "afterok:<reference",
        "aftercorr:<array 2>",
    ):
        assert word in answer.out, word
    assert slurm.submitted == []
    plan = json.loads(segbench("run", "-m", "--dry-run", "--json", *request_).out)
    assert [array["stage"] for array in plan["arrays"]] == [
        "reference",
        "calibration",
        "images",
        "metrics",
    ]


def test_the_same_command_submits_what_is_not_in_the_queue(
    segbench: Segbench, slurm: StandIn, request_: list[str]
) -> None:
    first = segbench("run", "-m", "--json", *request_)
    assert first.status == 0, first.err
    said = json.loads(first.out)
    assert said == {"jobs": ["1", "2", "3", "4"], "cells": 2, "in_flight": 0}
    reference, calibration, cells, metrics = slurm.submitted
    assert "--dependency" not in reference + calibration
    assert "afterok:1:2" in cells
    assert "aftercorr:3" in metrics
    assert "--kill-on-invalid-dep=yes" in cells
    waiting = [f"{job}|PENDING|Dependency|" for job in ("3_0", "3_1", "4_0", "4_1")]
    slurm.say("1|RUNNING|None|n1", "2|PENDING|Priority|", *waiting)
    again = json.loads(segbench("run", "-m", "--json", *request_).out)
    assert again == {"jobs": [], "cells": 0, "in_flight": 2}
    slurm.say("1|RUNNING|None|n1", "2|PENDING|Priority|", "3_0|FAILED|x|n1", *waiting[1:2])
    third = json.loads(segbench("run", "-m", "--json", *request_).out)
    assert third["cells"] == 2, "both metrics jobs have gone"
    assert "afterok:1:2" in slurm.submitted[4], "shared stages in flight are waited for"


def test_status_tells_queued_running_lost_and_missing(
    segbench: Segbench, slurm: StandIn, request_: list[str]
) -> None:
    def states() -> dict[str, str]:
        answer = segbench("status", "-m", "--json", *request_)
        return {cell["method"]: cell["state"] for cell in json.loads(answer.out)}

    assert set(states().values()) == {"missing"}
    assert segbench("run", "-m", *request_).status == 0
    slurm.say("3_0|RUNNING|None|n1", "3_1|PENDING|Dependency|", "4_0|PENDING|x|", "4_1|PENDING|x|")
    assert states() == {"fp": "skipped", "rtn": "running", "gptq": "queued"}
    slurm.say("3_0|COMPLETED|None|n1", "4_0|NODE_FAIL|None|n1", "3_1|CANCELLED|None|n1")
    assert states() == {"fp": "skipped", "rtn": "lost", "gptq": "lost"}
    answer = segbench("status", "-m", *request_)
    assert answer.status == 1
    assert "ended NODE_FAIL without a record" in answer.out
    assert "3 cells: 1 skipped, 2 lost" in answer.out


def test_a_controller_that_is_down_submits_nothing_twice(
    segbench: Segbench, slurm: StandIn, request_: list[str]
) -> None:
    assert segbench("run", "-m", *request_).status == 0
    slurm.script("squeue", "echo 'Unable to contact slurm controller' >&2; exit 1")
    for verb in ("run", "status"):
        answer = segbench(verb, "-m", *request_)
        assert answer.status == 2
        assert "Unable to contact slurm controller" in answer.err
    assert len(slurm.submitted) == 4


def test_what_sbatch_refuses_is_one_line(
    segbench: Segbench, slurm: StandIn, request_: list[str]
) -> None:
    slurm.script("sbatch", "echo 'sbatch: error: invalid partition specified: gpu' >&2; exit 1")
    answer = segbench("run", "-m", *request_)
    assert answer.status == 2
    assert "invalid partition specified: gpu" in answer.err.strip().splitlines()[-1]


def test_gpus_that_this_machine_lacks_must_be_named(
    segbench: Segbench, slurm: StandIn, request_: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images depend on the GPU: its name is part of their key, so it is known beforehand."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    given = [item for item in request_ if item != "device=cpu"]
    answer = segbench("run", "-m", *given)
    assert answer.status == 2
    assert "cluster.gpu_name" in answer.err
    assert segbench("run", "-m", *given, "cluster.gpu_name=NVIDIA H100").status == 0
    assert len(slurm.submitted) == 4


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        ("unet/diffusion_pytorch_model.safetensors", ["unet", "no weights"]),
        ("vae", ["vae", "missing"]),
    ],
)
def test_missing_weights_are_named_before_anything_is_queued(
    segbench: Segbench,
    slurm: StandIn,
    small: Small,
    zoo: Path,
    tmp_path: Path,
    lost: str,
    words: list[str],
) -> None:
    broken = tmp_path / "model"
    shutil.copytree(zoo / "tiny_unet", broken)
    path = broken / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    given = [f"model.path={broken}", *small("tiny_unet")[1:], *ON_SLURM, f"out={tmp_path / 'out'}"]
    answer = segbench("run", *given)
    assert answer.status == 2
    assert all(word in answer.err for word in words), answer.err
    assert slurm.submitted == []


def test_an_evaluator_without_weights_is_named(
    segbench: Segbench, slurm: StandIn, small: Small, zoo: Path, tmp_path: Path
) -> None:
    evaluator = tmp_path / "evaluator"
    shutil.copytree(zoo / "evaluator", evaluator)
    (evaluator / "open_clip_model.safetensors").unlink()
    model, _, *rest = small("tiny_unet", *ON_SLURM, f"out={tmp_path / 'out'}")
    answer = segbench("run", model, f"metrics.evaluator={evaluator}", *rest)
    assert answer.status == 2
    assert "no weights" in answer.err
    assert slurm.submitted == []


def test_short_cells_are_packed_by_what_an_image_took(
    segbench: Segbench, slurm: StandIn, small: Small, tmp_path: Path
) -> None:
    out = f"out={tmp_path / 'out'}"
    assert segbench("run", *small("tiny_unet", "method=fp", "bits=w16a16", out)).status == 0
    given = small("tiny_unet", "method=rtn,gptq,smoothquant", "num_threads=1", *ON_SLURM, out)
    plan = json.loads(segbench("run", "-m", "--dry-run", "--json", *given).out)
    sizes = {array["stage"]: len(array["jobs"]) for array in plan["arrays"]}
    assert sizes == {"calibration": 1, "images": 1, "metrics": 1}
    assert plan["arrays"][1]["hours"] > 0


def test_sync_pushes_each_offline_run_once(
    segbench: Segbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evaluation.report import offline_runs

    runs = [tmp_path / "cells" / c / "wandb" / f"offline-run-{i}-x" for i, c in enumerate("ab")]
    for run in runs:
        run.mkdir(parents=True)
        (run / "run-x.wandb").touch()
    called: list[str] = []

    def push(folder: Path) -> str:
        called.append(folder.name)
        if folder == runs[1]:
            return "no permission"
        (folder / "run-x.wandb.synced").touch()
        return ""

    monkeypatch.setattr(offline_runs, "_push", push)
    answer = segbench("sync", f"out={tmp_path}")
    assert answer.status == 1
    assert "1 runs pushed, 1 failed" in answer.out
    assert "no permission" in answer.err
    segbench("sync", f"out={tmp_path}")
    assert called == ["offline-run-0-x", "offline-run-1-x", "offline-run-1-x"]
    assert segbench("sync", "method=rtn").status == 2


def test_retry_without_failures_does_nothing(
    segbench: Segbench, small: Small, tmp_path: Path
) -> None:
    given = small("tiny_unet", "method=rtn", f"out={tmp_path}")
    assert segbench("retry", *given).out == "nothing failed\n"


def test_metrics_as_a_job_of_their_own_end_in_the_same_record(
    segbench: Segbench, small: Small, tmp_path: Path
) -> None:
    """On a machine that makes no stage: it finds the images and measures them."""
    words = small("tiny_mmdit", "method=segquant_a", "device=cpu")
    assert segbench("run", *words, f"out={tmp_path / 'whole'}").status == 0
    (config,) = read_request([*words, f"out={tmp_path / 'parts'}"], multirun=False).cells
    (cell,) = open_sweep(Request(name="parts", cells=(config,))).cells
    given = {"cells": [config], "needs": config.method.needs(), "run_ids": [cell.run_id]}
    with pytest.raises(CellsFailed, match="this job only measures"):
        CellWork(**given, part="metrics")()
    CellWork(**given, part="images")()
    assert cell.record() is None
    CellWork(**given, part="metrics")()
    records = [
        read_record(path)
        for out in ("whole", "parts")
        for path in (tmp_path / out / "cells").glob("*/record.json")
    ]
    assert stable_view(records[0]) == stable_view(records[1])


def test_what_a_login_node_lacks_is_asked_of_the_nodes(
    segbench: Segbench,
    small: Small,
    slurm: StandIn,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A library's row is no skipped row before a machine that may have it has said so."""
    lacks = "baselines.rtn.RoundToNearest.unsupported"
    words = small("tiny_unet", "method=rtn,smoothquant", f"out={tmp_path / 'out'}")
    on_slurm = [*words, *ON_SLURM]
    with monkeypatch.context() as login:
        login.setattr(lacks, lambda self, bits: OfThisMachine("run on a GPU"))
        answer = segbench("run", "-m", *on_slurm)
        assert answer.status == 0, answer.err
        assert "submitted 2 cells" in answer.out
        assert not list((tmp_path / "out" / "cells").glob("*/record.json"))
        # a node has none either, and says so in other words
        login.setattr(lacks, lambda self, bits: OfThisMachine("this node is too old"))
        assert segbench("run", "-m", *words).status == 0
        login.setattr(lacks, lambda self, bits: OfThisMachine("run on a GPU"))
        assert "1 done, 1 skipped" in segbench("status", "-m", *on_slurm).out
    with monkeypatch.context() as never:
        never.setattr(lacks, lambda self, bits: "no such bits")
        more = [word.replace("/out", "/other") for word in on_slurm]
        assert "submitted 1 cells" in segbench("run", "-m", *more).out


def test_a_row_that_quantizes_nothing_stands_once(
    segbench: Segbench, small: Small, tmp_path: Path
) -> None:
    """Whatever executions a sweep asks for: there is one way to run the unquantized model."""
    words = small(
        "tiny_unet", "method=fp,noise_floor", "bits=w16a16", "execution=simulated,kernel",
        f"out={tmp_path}",
    )  # fmt: skip
    answer = segbench("run", "-m", *words, "--json")
    assert answer.status == 0, answer.err
    assert sorted(record["method"] for record in answer.records) == ["fp", "noise_floor"]
    table = segbench("table", "-m", *words).out
    assert table.count("| fp ") == 1
    assert "| missing" not in table


def test_shards_are_arrays_and_those_that_are_there_are_not_made_again(
    segbench: Segbench, small: Small, slurm: StandIn, tmp_path: Path
) -> None:
    words = [a for a in small("tiny_unet") if not a.startswith("model.batch_size")]
    words += ["model.batch_size=2", "method=rtn,gptq", *ON_SLURM, f"out={tmp_path / 'out'}"]
    words += ["cluster.shards=3", "~cluster.stages.metrics"]

    def arrays() -> list[tuple[str, int]]:
        plan = json.loads(segbench("run", "-m", "--dry-run", "--json", *words).out)
        return [(array["stage"], len(array["jobs"])) for array in plan["arrays"]]

    shared = [("calibration-shard", 3), ("reference", 1), ("calibration", 1)]
    cells = [("quantize", 2), ("images-shard", 3), ("images-shard", 3), ("cell", 1), ("cell", 1)]
    assert arrays() == [("reference-shard", 3), *shared, *cells]
    request = read_request(words, multirun=True)
    reference = open_sweep(request).cells[0].reference
    store, kind = reference.around.store, f"images_shards_{reference.hash}"
    first = shards_of(reference)[0]
    store.build(kind, first.key(), lambda folder: {"made": folder.joinpath("x").write_text("x")})
    assert first.find() is not None
    assert arrays() == [("reference-shard", 2), *shared, *cells]
    assert segbench("run", "-m", *words).status == 0
    scripts = slurm.submitted
    assert len(scripts) == 9
    assert "afterok:1_0:1_1" in scripts[2], "the reference waits for its shards"
    assert "afterok:2_0:2_1:2_2" in scripts[3], "and the calibration for its own"
    assert "afterok:3:4" in scripts[4], "quantizing waits for both"
    assert "5_0" in scripts[5]
    assert "5_1" in scripts[6]
    assert "6_0:6_1:6_2" in scripts[7], "a cell waits for its own shards"
    waiting = [f"{job}|PENDING|Dependency|" for job in ("3", "4", "5_0", "5_1", "8", "9")]
    slurm.say("6_0|RUNNING|None|n1", "6_1|PENDING|Priority|", *waiting)
    told = segbench("status", "-m", *words).out
    assert "job 6_0 on n1; 0 of 3 shards done" in told
    assert "2 cells: 1 running, 1 queued" in told
    slurm.say("1_1|FAILED|None|n1", "8|CANCELLED|None|", "9|CANCELLED|None|")
    told = segbench("status", "-m", *words).out
    assert "reference shard 3 of 3 is not there (job 1_1)" in told
