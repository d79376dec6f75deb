"""Room `pipelines`: the only place that wires text, transformer, sampler and VAE.

Read `stream.py` first: one video as a stream of decoded chunks, which every caller shares.

| file | holds |
|---|---|
| `stream.py` | the request, the given frames, the engine's set-up, decoding |
| `sampling.py`, `prompts.py`, `timeline.py` | settings, encoded texts, which prompt holds when |
| `magi1.py`, `base.py` | the diffusers interface: three pipelines over what they share |
| `magic141.py`, `magic_sampling.py` | Magic 1-For-1: its pipeline, its stream of segments |
| `magic141_t2v.py`, `picture_*.py` | text to video by a picture, and where that comes from |
| `families.py` | which wishes mean something to which family of models |
| `magic_prepare.py`, `magic_parts.py`, `magic_run.py`, `magic_record.py` | one run of it |
| `magic_writing.py`, `magic_previews.py` | its segments on their way to a file and to the eye |
| `magic_yaml.py` | its official configs |
| `loading.py`, `lora.py`, `pictures.py` | its components, its adapters, its inputs and outputs |
| `wishes.py`, `files.py`, `prepare.py`, `run.py`, `record.py` | one run of `onereel generate` |
| `listeners.py`, `watch.py`, `previews.py` | how far it is, what it will look like |
| `keeping.py`, `decoding.py` | chunks that outlast a process, decoding when memory is short |

From Python, a run is `run(prepare(RunWishes(prompt="..."), "out.mp4"), listener)`: `prepare` checks
everything before a model is loaded, `run` loads, samples and writes chunk by chunk.
"""
