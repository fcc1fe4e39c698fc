"""The training pipeline: clips, teacher, causal adaptation, Self Forcing with DMD, tiny VAE; see `command.py`."""
