"""Magnitude pruning of a trained student, and the fine-tuning of what is left (paper, section 4.3).

The smallest weights of all convolutions and linear layers together become zero and stay so: they are set back after
every update, inside the optimizer, so captured steps and skipped ones are covered. Modules and weight files are those
of any other student.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from lit_fast.errors import RunFolderError
from lit_fast.files import write_json
from lit_fast.runs.results import percent
from lit_fast.runs.stored import read_json
from lit_fast.sections.model import SplitModel
from lit_fast.settings.classifier import Experiment
from lit_fast.settings.variants import VARIANTS
from lit_fast.training.task import RunSpec

__all__ = ["Pruning", "claim", "prunable", "prune_smallest", "pruned_specs", "refuse_others"]

_PRUNED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_SETTINGS = "pruning.json"


def pruned_specs(experiment: Experiment, spec: RunSpec) -> Iterator[RunSpec]:
    """The runs that follow ``spec``: one for each sparsity of the config."""
    phases = experiment.pruned_plan()
    for sparsity in experiment.pruning.sparsities:
        yield replace(spec, name=f"{spec.name}-pruned{percent(sparsity)}", phases=phases, sparsity=sparsity)


@torch.no_grad()
def prune_smallest(weights: Sequence[Tensor], sparsity: float) -> list[Tensor]:
    """Set the smallest magnitudes of all ``weights`` together to zero, in place.

    Args:
        weights: tensors of any shapes and layouts.
        sparsity: fraction of their elements, rounded to an element.

    Returns:
        for each a bool tensor of its shape and layout: what was set to zero.
    """
    # On the CPU, where equal magnitudes are always told apart alike: the masks are made again when a run goes on.
    flat = torch.cat([weight.detach().cpu().reshape(-1) for weight in weights])
    kept = prune.L1Unstructured(sparsity).compute_mask(flat, torch.ones_like(flat))
    gone = []
    for weight, part in zip(weights, kept.eq(0).split([weight.numel() for weight in weights]), strict=True):
        mask = torch.empty_like(weight, dtype=torch.bool).copy_(part.view(weight.shape))
        weight.masked_fill_(mask, 0.0)
        gone.append(mask)
    return gone


def prunable(student: SplitModel, spec: RunSpec, experiment: Experiment) -> list[Tensor]:
    """The weights of convolutions and linear layers, each shared one once, outside of parts frozen to the end.

    Raises:
        ValueError: there are none.
    """
    frozen = experiment.student.frozen_in_finetune if VARIANTS[spec.variant].ir != "none" else ()
    left_alone = {id(p) for name in frozen for p in student.part(name).parameters()}
    layers = (module for module in student.model.modules() if isinstance(module, _PRUNED))
    found = [weight for weight in dict.fromkeys(layer.weight for layer in layers) if id(weight) not in left_alone]
    if not found:
        raise ValueError(
            f"{spec.name}: nothing to prune: the student has no convolution and no linear layer outside of "
            f"student.frozen_in_finetune={list(frozen)}; remove pruning.sparsities"
        )
    return found


class Pruning:
    """Prunes ``student``, which has the weights its training ended with, to ``spec.sparsity``, and keeps it so.

    What is pruned follows from those weights, so a checkpoint does not keep it.
    """

    def __init__(self, spec: RunSpec, experiment: Experiment, student: SplitModel) -> None:
        self._spec, self._experiment, self._student = spec, experiment, student
        self._pruned: list[Tensor] = []
        self._gone: list[Tensor] = []

    def prune(self) -> None:
        """Set the smallest weights to zero; the draws that follow are the run's own.

        Raises:
            ValueError: see `prunable`.
        """
        assert self._spec.sparsity is not None
        torch.manual_seed(self._spec.seed)  # whether the student was trained just now or is read back
        self._pruned = prunable(self._student, self._spec, self._experiment)
        self._gone = prune_smallest(self._pruned, self._spec.sparsity)

    def keep_zero(self, optimizer: torch.optim.Optimizer) -> None:
        """Set them back after every update: momentum, weight decay and gradients move every weight."""
        optimizer.register_step_post_hook(self._set_back)

    @torch.no_grad()
    def _set_back(self, *_: Any) -> None:
        for weight, gone in zip(self._pruned, self._gone, strict=True):
            weight.masked_fill_(gone, 0.0)


# -- whose run it is: pruning is no part of an experiment's identity -----------------------------------------------


def refuse_others(folder: Path, spec: RunSpec) -> None:
    """Refuse the folder of a pruned run whose settings are not those of ``spec``.

    Raises:
        RunFolderError: it was pruned or is fine-tuned otherwise; what differs is named.
    """
    file = folder / _SETTINGS
    if not file.exists():
        return
    there, mine = read_json(file, dict[str, Any], RunFolderError), _settings(spec)
    differing = [f"{key} ({there.get(key)} there, {mine[key]} now)" for key in mine if there.get(key) != mine[key]]
    if differing:
        raise RunFolderError(
            f"{folder} holds the same student pruned with other settings; they differ in {', '.join(differing)}. Give "
            "pruning.finetune as it was, or remove this folder alone: the student itself is kept beside it"
        )


def claim(folder: Path, spec: RunSpec) -> None:
    """Note in ``folder`` with which settings its student is pruned; errors as `refuse_others`."""
    refuse_others(folder, spec)
    write_json(folder / _SETTINGS, _settings(spec))


def _settings(spec: RunSpec) -> dict[str, Any]:
    (phase,) = spec.phases
    return {"sparsity": spec.sparsity, **phase.model_dump(mode="json", exclude={"name"})}
