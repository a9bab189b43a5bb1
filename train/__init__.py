"""Training: one trainer, one task per stage, presets, and `python -m unclip.train STAGE …`.

config.py    TrainConfig: what describes a run, checked, overridden by key=value, dumped beside the checkpoints
presets.py   functions that return a TrainConfig, one per stage and size
trainer.py   the loop; it never asks which task it has
tasks/       one task per stage: what a batch is, what the loss is, what to show
"""
