"""What an experiment is given: its dataset, and the weights of a teacher that comes trained."""

from __future__ import annotations

from typing import Any

import torch

from lit_fast.data import Data, has_texts, open_data
from lit_fast.models.behaviour import forward_of
from lit_fast.models.own import digest, own_network, structure
from lit_fast.runs.weights import normalization_of, read_info
from lit_fast.sections.model import SplitModel
from lit_fast.settings.classifier import Experiment
from lit_fast.user_functions import is_function

__all__ = ["known_weights", "open_experiment_data"]

_RESIZED = ("digits", "folder")  # datasets whose images are brought to a size of choice


def open_experiment_data(experiment: Experiment) -> Data:
    """The experiment's dataset as a given teacher's checkpoint was trained on it, unless the config says how."""
    config, checkpoint = experiment.data, experiment.teacher.checkpoint
    if is_function(config.name):
        return open_data(config.name)
    update: dict[str, Any] = {}
    if checkpoint is not None and config.mean is None and config.std is None:
        known = normalization_of(checkpoint)
        if known is not None:
            update |= {"mean": known[0], "std": known[1]}
    if checkpoint is not None and config.image_size is None and config.name in _RESIZED:
        info = read_info(checkpoint)
        if info is not None and info.dataset == config.name:
            update["image_size"] = info.image_size
    if checkpoint is not None and config.length is None and has_texts(config.name):
        info = read_info(checkpoint)
        if info is not None:
            update["length"] = info.length
    config = config.model_copy(update=update)
    return open_data(config.name, **config.options())


def known_weights(experiment: Experiment) -> dict[str, str]:
    """Of a teacher that comes trained, and what networks of one's own do: part of an experiment's identity."""
    teacher = experiment.teacher
    known = teacher.hashes()
    for key, config in (("teacher", teacher), *((f"student {m.label}", m) for m in experiment.student.models)):
        if config.is_own:
            torch.manual_seed(teacher.seed)
            network = own_network(config.model)
            model = network.model if isinstance(network, SplitModel) else network
            if config is teacher and teacher.checkpoint is None:
                known["teacher.weights"] = digest(model)
            known |= {f"{key}.structure": structure(model), f"{key}.forward": forward_of(network)}
    return known
