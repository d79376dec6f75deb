"""Training: the loop, its data and the recipes.

Read `engine.py` first: it says what a method is and what the loop does with it. `distributed.py`
spreads networks over processes, `optim.py` holds the optimizers and the learning-rate schedules,
`ema.py` the averaged weights, `checkpoint.py` the files of a run and `state.py` what is in them,
`data.py` the streams and `latent_cache.py` the stored latents, `recipes.py` the names that
`onereel train` knows and `vae.py` the recipe of the toybox VAE. `flow.py` is what all trainings of
a transformer share, `shortcut.py` the few-step distillation. Training on somebody's own videos
starts in `own_run.py`: `own_files.py` checks them, `own_cache.py` encodes them, `own_data.py` makes
batches and `finetune.py` trains a LoRA or all weights.
"""
