"""`import segquant.diffusers` makes diffusers know quantized denoisers of this project.

Then `DiffusionPipeline.from_pretrained(DIR)` and `Model.from_pretrained(DIR)` load them, and
`save_pretrained` writes them. The registration is the import's only effect.
"""

from __future__ import annotations

from diffusers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING

from segquant.deploy.quantizer import Method, SegQuantConfig, SegQuantQuantizer, as_diffusers
from segquant.deploy.seal import DamagedFile

__all__ = ["DamagedFile", "SegQuantConfig", "SegQuantQuantizer", "as_diffusers"]

AUTO_QUANTIZER_MAPPING[Method.segquant.value] = SegQuantQuantizer
AUTO_QUANTIZATION_CONFIG_MAPPING[Method.segquant.value] = SegQuantConfig
