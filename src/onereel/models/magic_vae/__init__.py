"""Room `models/magic_vae`: the Magic 1-For-1 VAE, which is diffusers' HunyuanVideo class.

Read `model.py` first: tile sizes, attention without a mask, pixel ranges. `weights.py` reads
official configs and checkpoints, `preview.py` shows latents without decoding them.
"""
