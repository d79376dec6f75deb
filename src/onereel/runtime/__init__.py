"""Room `runtime`: what is applied to models from outside. Read `source.py` first, then `load.py`.

`source.py` says which checkpoint a name means, `shards.py` reads headers and tensors, `layout.py`
knows both folder layouts, `text_files.py` the text encoder's files, `verify.py` accounts for every
tensor before anything is loaded, `load.py` builds the components, `convert.py` translates between
the layouts, `auto_model.py` is diffusers' AutoModel for our classes. `magic.py` reads weights of
the Magic 1-For-1 family, `int8.py` stores linear layers in 8 bits. `cost.py`, `machine.py` and
`estimate.py` say what a video takes.
"""
