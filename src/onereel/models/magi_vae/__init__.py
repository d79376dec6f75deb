"""Room `models/magi_vae`: the MAGI-1 VAE. Read `model.py` first, then `blocks.py`.

`posterior.py` is the encoder's distribution, `tiling.py` cuts and blends tiles, `weights.py` maps the
official key layout, `presets.py` names configs.
"""

from __future__ import annotations

from onereel.models.magi_vae.presets import VAE_PRESETS

__all__ = ["VAE_PRESETS"]
