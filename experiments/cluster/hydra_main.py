"""One cell under Hydra's own command line, for those who want its launchers and sweepers.

    python -m experiments.cluster.hydra_main -m hydra/launcher=submitit_slurm method=rtn,gptq

`segbench run` is the way that skips what is done, shares stages and tells Slurm of failures; here a
cell finds the stages of others in the store all the same, and a finished cell returns at once.
"""

from __future__ import annotations

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from experiments.cell.mirror import run_mirrored
from experiments.cell.progress import Progress
from experiments.cell.sweep import gather_cells
from experiments.config.compose import build
from experiments.store.folders import Store
from experiments.store.paths import CONF


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")  # type: ignore[untyped-decorator]
def main(node: DictConfig) -> str:
    """Runs the cell; returns where its record lies."""
    OmegaConf.set_struct(node, False)
    config = build(node, method_name=HydraConfig.get().runtime.choices["method"])
    store = Store(Path(config.out))
    store.prepare()
    progress = Progress(cells=1, prompts=0)
    (cell,) = gather_cells([config], store=store, progress=progress, makes=True)
    record = cell.record() or run_mirrored(cell)[0]
    if record.status == "failed":
        raise RuntimeError(f"{config.method_name} {config.bits.name}: {record.reason}")
    return str(cell.folder)


if __name__ == "__main__":
    from experiments.cluster import hydra_main  # jobs find it by this name, not as __main__

    hydra_main.main()
