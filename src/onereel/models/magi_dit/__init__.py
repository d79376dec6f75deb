"""Room `models/magi_dit`: the MAGI-1 transformer. Read `model.py` first, then `blocks.py`."""
