"""Stream video of any length from text, an image or a video, chunk by chunk.

The public names are loaded when first used (PEP 562): `import onereel` itself takes milliseconds
and imports no torch.
"""

from __future__ import annotations

import importlib as _importlib
from typing import TYPE_CHECKING as _TYPE_CHECKING

if _TYPE_CHECKING:
    from onereel.models.magi_dit.model import Magi1Transformer3DModel
    from onereel.models.magi_vae.model import AutoencoderKLMagi1
    from onereel.pipelines.base import Magi1PipelineOutput
    from onereel.pipelines.lora import Magi1LoraLoaderMixin
    from onereel.pipelines.magi1 import (
        Magi1ImageToVideoPipeline,
        Magi1Pipeline,
        Magi1VideoToVideoPipeline,
    )
    from onereel.runs.run import Run
    from onereel.runtime.auto_model import AutoModel

__version__ = "0.1.0"

__all__ = [
    "AutoModel",
    "AutoencoderKLMagi1",
    "Magi1ImageToVideoPipeline",
    "Magi1LoraLoaderMixin",
    "Magi1Pipeline",
    "Magi1PipelineOutput",
    "Magi1Transformer3DModel",
    "Magi1VideoToVideoPipeline",
    "Run",
    "__version__",
]

# Where each public name lives. Module paths are part of the file format of saved pipelines.
_HOMES = {
    "AutoModel": "onereel.runtime.auto_model",
    "AutoencoderKLMagi1": "onereel.models.magi_vae.model",
    "Magi1ImageToVideoPipeline": "onereel.pipelines.magi1",
    "Magi1LoraLoaderMixin": "onereel.pipelines.lora",
    "Magi1Pipeline": "onereel.pipelines.magi1",
    "Magi1PipelineOutput": "onereel.pipelines.base",
    "Magi1Transformer3DModel": "onereel.models.magi_dit.model",
    "Magi1VideoToVideoPipeline": "onereel.pipelines.magi1",
    "Run": "onereel.runs.run",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'onereel' has no attribute '{name}'")
    value = getattr(_importlib.import_module(_HOMES[name]), name)
    globals()[name] = value  # found without this function from now on
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
