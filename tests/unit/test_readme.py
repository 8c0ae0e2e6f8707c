"""What the README shows works as it stands."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

from omegaconf import OmegaConf
from torch import nn

from segquant.core import Method
from tests.unit.core.helpers import bits, calibrate, correlated, one

README = Path("README.md").read_text()


def test_the_method_of_the_readme_is_one() -> None:
    section = README.split("## Adding a method", 1)[1]
    code, yaml = (re.search(rf"```{kind}\n(.*?)```", section, re.S) for kind in ("python", "yaml"))
    assert code is not None
    assert yaml is not None
    settings = OmegaConf.create(yaml.group(1))
    module = types.ModuleType(settings.pop("_target_").rpartition(".")[0])
    sys.modules[module.__name__] = module  # where dataclass looks its annotations up
    try:
        exec(compile(code.group(1), "README.md", "exec"), module.__dict__)
    finally:
        del sys.modules[module.__name__]
    method = module.Mine(**settings)
    assert isinstance(method, Method)
    assert method == module.Mine()
    model = one(16, 8)
    calibration = calibrate(model, [correlated(64, 16, seed=0)])
    report = method.quantize(model, calibration=calibration, bits=bits())
    assert len(report.layers_quantized) == 1
    assert method.unsupported(bits()) is None
    assert method.corrector(calibration=calibration) is None
    assert not any(isinstance(part, nn.Linear) for part in model.modules())


def test_every_experiment_and_verb_that_the_readme_names_is_there() -> None:
    named = set(re.findall(r"\+experiment=([a-z_0-9]+)", README))
    assert named >= {"demo", "baselines"}
    assert named <= {path.stem for path in Path("conf/experiment").glob("*.yaml")}
