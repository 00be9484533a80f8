"""Training: the Trainer, its data, its checkpoints and what a run leaves behind."""
