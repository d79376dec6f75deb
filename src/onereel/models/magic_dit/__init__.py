"""Room `models/magic_dit`: the Magic 1-For-1 transformer, which is diffusers' HunyuanVideo class.

Read `model.py` first: what is ours around it (image prior, velocity, attention without masks).
`presets.py` names configs and reads official ones, `weights.py` maps key layouts.
"""
