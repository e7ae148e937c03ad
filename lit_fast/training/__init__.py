"""Training: configs, the trainer, checkpoints, experiments, evaluation, export and reports."""
