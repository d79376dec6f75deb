"""Room `models/magi_dit`: the MAGI-1 transformer. Read `model.py` first, then `blocks.py`.

`weights.py` maps the official key layout, `official.py` reads the official JSON configs, `fp8.py`
holds the float8 linears.
"""
