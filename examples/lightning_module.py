"""LIT as a LightningModule: with automatic optimization, and with your own calls of backward and step.

python examples/lightning_module.py --tiny
python examples/lightning_module.py --manual
"""

from __future__ import annotations

import argparse
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import lit_fast as lf

Batch = tuple[Tensor, Tensor]


class Distillation(lightning.LightningModule):
    """Trains ``student`` beside ``teacher``, both split; its checkpoints hold the student alone."""

    def __init__(self, teacher: lf.SplitModel, student: lf.SplitModel, criterion: lf.LITLoss, lr: float) -> None:
        super().__init__()
        self.model, self.lr = lf.LITModel(teacher, student, criterion), lr

    def training_step(self, batch: Batch, number: int) -> Tensor:
        loss, parts, _ = self.model(*batch)
        self.log_dict({"loss": parts.total, "ce": parts.ce, "kl": parts.kl, "ir": parts.ir.sum()}, on_epoch=True)
        return loss

    def validation_step(self, batch: Batch, number: int) -> None:
        images, labels = batch
        right = self.model.student(images).argmax(1) == labels  # the student as deployed
        self.log("val_accuracy", right.float().mean(), batch_size=len(labels))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.model.parameters(), lr=self.lr, momentum=0.9)
        updates = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class ManualDistillation(Distillation):
    """The same, with backward, clipping and updates written out."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.automatic_optimization = False

    def training_step(self, batch: Batch, number: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, number))
        self.clip_gradients(optimizer, gradient_clip_val=1.0, gradient_clip_algorithm="norm")
        optimizer.step()
        self.lr_schedulers().step()


def trained_teacher(data: lf.data.Data, epochs: int) -> lf.SplitModel:
    """Yours comes from a checkpoint."""
    teacher = lf.split(lf.models.resnet20(in_channels=1))
    optimizer = torch.optim.SGD(teacher.parameters(), lr=0.05, momentum=0.9)
    step = lf.LITStep(None, teacher.train(), lf.LITLoss(alpha=1.0, beta=1.0), optimizer)
    for epoch in range(epochs):
        for images, labels in data.train_batches(epoch, batch_size=50, seed=0):
            step(images, labels)
    return teacher


class Losses(lightning.Callback):
    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        found = trainer.callback_metrics
        accuracy = 100.0 * found["val_accuracy"].item()
        print(f"epoch {trainer.current_epoch + 1}: loss {found['loss_epoch'].item():.4f}, val {accuracy:.2f} %")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--manual", action="store_true")
    parser.add_argument("--save", default="lightning.ckpt")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args(argv)
    lightning.seed_everything(0, verbose=False)
    digits = lf.data.open_data("digits", image_size=8, train_size=400 if args.tiny else None)
    loaders = []
    for split in (digits.train, digits.val):
        images = digits.network_input(split.fetch(torch.arange(len(split))))
        loaders.append(DataLoader(TensorDataset(images, split.labels), batch_size=50, shuffle=split is digits.train))
    teacher = trained_teacher(digits, 3 if args.tiny else 10)
    student = lf.split(lf.models.ResNet(8, in_channels=1))
    kind = ManualDistillation if args.manual else Distillation
    module = kind(teacher, student, lf.LITLoss(alpha=0.9, beta=0.5, tau=4.0), lr=0.05)
    trainer = lightning.Trainer(
        max_epochs=3 if args.tiny else args.epochs,
        accelerator="cpu" if args.tiny else "auto",
        devices=1,
        gradient_clip_val=None if args.manual else 1.0,
        callbacks=[Losses()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, *loaders)
    trainer.save_checkpoint(args.save)


if __name__ == "__main__":
    main()
