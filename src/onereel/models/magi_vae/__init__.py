"""Room `models/magi_vae`: the MAGI-1 VAE. Read `model.py` first, then `blocks.py`.

`posterior.py` is the encoder's distribution, `tiling.py` cuts and blends tiles, `pixels.py` holds
number ranges, `weights.py` reads official checkpoints, `presets.py` names configs.
"""

from __future__ import annotations

from onereel.models.magi_vae.presets import VAE_PRESETS

__all__ = ["VAE_PRESETS"]
