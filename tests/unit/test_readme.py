"""What the README shows works as it stands."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

from omegaconf import OmegaConf
from torch import nn

from segquant.core import Method, corrector_of
from tests.unit.core.helpers import bits, calibrate, correlated, one

README = Path("README.md").read_text()
EXTENDING = Path("docs/extending.md").read_text()
PAGES = README + "".join(path.read_text() for path in sorted(Path("docs").glob("*.md")))


def test_the_method_of_the_docs_is_one() -> None:
    section = EXTENDING.split("## Adding a method", 1)[1]
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
    assert corrector_of(method, calibration=calibration) is None
    assert not any(isinstance(part, nn.Linear) for part in model.modules())


def test_every_experiment_and_verb_that_the_readme_names_is_there() -> None:
    named = set(re.findall(r"\+experiment=([a-z_0-9]+)", PAGES))
    assert named >= {"demo", "baselines"}
    assert named <= {path.stem for path in Path("conf/experiment").glob("*.yaml")}


def test_every_link_of_the_readme_and_the_pages_leads_somewhere() -> None:
    for page in (Path("README.md"), *sorted(Path("docs").glob("*.md"))):
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), (page, target)
