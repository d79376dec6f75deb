"""Runs that outlast their process: the folder of a render, and how another process goes on.

    OUT.run/
      manifest.json           what is made: settings, model hash, seed, prompts, versions
      journal.jsonl           what happened, one checked line per event
      chunks/000007.safetensors   a finished chunk's latents, and those in flight beside it
      inputs/                 copies of the given picture or video
      preview.jpg             a contact sheet of the latents

`run.py` is the door: `Run`, which iterates, steers, edits and decodes. The journal is the truth: a
chunk counts when its line is there and its file has the line's hash. A chunk is a segment where the
model is Magic 1-For-1 (`magic.py`); what both families share is in `keeper.py`.
"""
