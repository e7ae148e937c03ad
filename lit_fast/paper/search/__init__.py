"""Hyperparameter search on the validation split: the paper's, one after another, and a joint one by Optuna."""
