"""Stream video of any length from text, an image or a video, chunk by chunk."""

from __future__ import annotations

__version__ = "0.1.0"
