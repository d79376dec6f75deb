"""Room `pipelines`: the only place that wires text, transformer, sampler and VAE.

Read `stream.py` first (one video as a stream of decoded chunks), then `magi1.py` (the diffusers
interface on top of it).
"""
