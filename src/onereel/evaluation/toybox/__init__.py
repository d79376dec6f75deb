"""Room `evaluation/toybox`: the instrument for our own world. Read `tracks.py` first."""
