"""Gradients of a LITModel wrapped by torch for several processes, against those of one process with all rows.

    python -m torch.distributed.run --standalone --nproc-per-node 2 tests/wrapped_worker.py ddp|fsdp|fsdp_teacher

Each process has other rows: of other numbers and lengths, with ignored labels, classes weighted.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
import torch.distributed as dist
from text_networks import CLASSES, Text
from tiny_networks import Net
from tiny_networks import split as split_net
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import lit_fast as lf


def text_pair() -> tuple[lf.SplitModel, lf.SplitModel]:
    torch.manual_seed(0)
    teacher, student = (lf.split(Text(n).double(), blocks="layers", sections=2) for n in (4, 2))
    return teacher, student.train()


def image_pair() -> tuple[lf.SplitModel, lf.SplitModel]:
    torch.manual_seed(0)
    teacher, student = (split_net(Net().double()) for _ in range(2))
    for module in (*teacher.modules(), *student.modules()):
        if isinstance(module, nn.BatchNorm2d):  # its statistics would be those of a process's own rows
            module.eval()
            module.train = lambda mode=True, module=module: module  # type: ignore[method-assign]
    return teacher, student.train()


def texts() -> tuple[dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 20, (5, 9), generator=generator)
    lengths = torch.tensor([9, 2, 5, 3, 4])
    labels = torch.randint(0, CLASSES, (5,), generator=generator)
    labels[1] = -100
    return {"input_ids": ids, "attention_mask": (torch.arange(9)[None] < lengths[:, None]).long()}, labels


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, CLASSES, (5,), generator=generator)
    labels[1] = -100
    return torch.randn(5, 3, 8, 8, generator=generator, dtype=torch.float64), labels


def rows_of(inputs: Any, rows: slice) -> Any:
    return {name: value[rows] for name, value in inputs.items()} if isinstance(inputs, dict) else inputs[rows]


def model_of(pair: tuple[lf.SplitModel, lf.SplitModel], text: bool, **options: Any) -> lf.LITModel:
    weight = torch.arange(1.0, CLASSES + 1, dtype=torch.float64)
    criterion = lf.LITLoss(alpha=0.5, beta=0.5, tau=2.0, class_weight=weight)
    return lf.LITModel(*pair, criterion, engine="eager", skip_padding=text, **options)


def gradients(model: lf.LITModel) -> dict[str, Tensor]:
    found = {}
    for name, parameter in model.student.model.named_parameters():
        grad = parameter.grad
        assert grad is not None, name
        found[name] = grad.full_tensor() if isinstance(grad, DTensor) else grad
    return found


def shard(split: lf.SplitModel) -> None:
    blocks = split.model.layers if isinstance(split.model, Text) else (split.model.layer1, split.model.layer3)
    for block in blocks:
        fully_shard(block)
    if split.how == "recorded":  # a traced model's own forward, which would gather the rest of it, does not run
        fully_shard(split.model)


def main(kind: str) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    rows = (slice(0, 3), slice(3, 5))[rank]
    for text in (True, False):
        pair_of, (inputs, labels) = (text_pair, texts()) if text else (image_pair, images())
        alone = model_of(pair_of(), text)
        alone(inputs, labels).loss.backward()
        model = model_of(pair_of(), text, over_processes=True)
        wrapped: nn.Module = model
        if kind == "ddp":
            wrapped = DistributedDataParallel(model)
        else:
            shard(model.teacher if kind == "fsdp_teacher" else model.student)
            if kind == "fsdp":
                fully_shard(model)
        output = wrapped(rows_of(inputs, rows), labels[rows])
        output.loss.backward()
        if kind == "fsdp_teacher":  # the student is not wrapped
            for parameter in model.student.parameters():
                dist.all_reduce(parameter.grad)
                parameter.grad /= dist.get_world_size()
        ours, right = gradients(model), gradients(alone)
        for name in right:
            torch.testing.assert_close(
                ours[name], right[name], rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}"
            )
        total = output.parts.total.clone()
        dist.all_reduce(total)
        torch.testing.assert_close(total, alone.criterion.parts.total, rtol=1e-9, atol=1e-12)
    dist.barrier()
    os._exit(0)  # gloo's threads may hold tensors yet, and wait for an interpreter that waits for them (pytorch#190489)


if __name__ == "__main__":
    main(sys.argv[1])
