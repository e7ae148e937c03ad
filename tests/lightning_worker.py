"""Weights that Lightning trains in two processes, against those of a plain loop with twice the batch.

    python tests/lightning_worker.py

Lightning itself starts the second process. Rows have other lengths and ignored labels, in each process others.
"""

from __future__ import annotations

import os
import warnings

import lightning
import torch
from lightning.pytorch.strategies import DDPStrategy
from text_networks import CLASSES, Text
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

import lit_fast as lf

ROWS, EPOCHS, PROCESSES = 16, 2, 2


def rows() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 20, (ROWS, 9), generator=generator)
    lengths = torch.randint(2, 10, (ROWS, 1), generator=generator)
    labels = torch.randint(0, CLASSES, (ROWS,), generator=generator)
    labels[[1, 6, 7]] = -100
    mask = (torch.arange(9) < lengths).long()
    return [{"input_ids": i, "attention_mask": m, "labels": y} for i, m, y in zip(ids, mask, labels)]


def lit_model(over_processes: bool) -> lf.LITModel:
    torch.manual_seed(0)
    teacher, student = (lf.split(Text(layers).double(), blocks="layers", sections=2) for layers in (4, 2))
    weight = torch.arange(1.0, CLASSES + 1, dtype=torch.float64)
    criterion = lf.LITLoss(alpha=0.5, beta=0.5, tau=2.0, class_weight=weight)
    return lf.LITModel(teacher, student.train(), criterion, skip_padding=True, over_processes=over_processes)


def sgd(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


class Distillation(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = lit_model(over_processes=True)

    def training_step(self, batch: dict[str, Tensor], number: int) -> Tensor:
        return self.model(batch).loss

    def train_dataloader(self) -> DataLoader:
        # Lightning's own sampler would shuffle the rows before it deals them out.
        data = rows()
        sampler = DistributedSampler(data, self.trainer.world_size, self.global_rank, shuffle=False)
        return DataLoader(data, batch_size=4, sampler=sampler)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return sgd(self.model)


def in_a_plain_loop() -> lf.LITModel:
    model = lit_model(over_processes=False)
    optimizer = sgd(model)
    for _ in range(EPOCHS):
        for batch in DataLoader(rows(), batch_size=4 * PROCESSES):
            optimizer.zero_grad()
            model(batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    return model


def main() -> None:
    warnings.simplefilter("ignore")
    module = Distillation()
    trainer = lightning.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        devices=PROCESSES,
        strategy=DDPStrategy(process_group_backend="gloo"),
        use_distributed_sampler=False,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module)
    assert trainer.world_size == PROCESSES
    if trainer.is_global_zero:
        found, right = module.model.state_dict(), in_a_plain_loop().state_dict()
        torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-12)
    os._exit(0)  # as in wrapped_worker.py


if __name__ == "__main__":
    main()
