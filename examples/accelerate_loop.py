"""LIT with Hugging Face's Accelerate: devices, mixed precision, accumulation and several processes are its business.

accelerate launch examples/accelerate_loop.py
python examples/accelerate_loop.py --tiny
"""

from __future__ import annotations

import argparse

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset

import lit_fast as lf


def trained_teacher(data: lf.data.Data, epochs: int) -> lf.SplitModel:
    """Yours comes from a checkpoint."""
    teacher = lf.split(lf.models.resnet20(in_channels=1))
    optimizer = torch.optim.SGD(teacher.parameters(), lr=0.05, momentum=0.9)
    step = lf.LITStep(None, teacher.train(), lf.LITLoss(alpha=1.0, beta=1.0), optimizer)
    for epoch in range(epochs):
        for images, labels in data.train_batches(epoch, batch_size=50, seed=0):
            step(images, labels)
    return teacher


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--accumulate", type=int, default=2, help="batches that make one update")
    parser.add_argument("--precision", default="no", choices=("no", "bf16", "fp16"))
    parser.add_argument("--save", default="student.pt")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    if args.tiny:
        args.epochs = 3
    digits = lf.data.open_data("digits", image_size=8, train_size=400 if args.tiny else None)
    teacher = trained_teacher(digits, 3 if args.tiny else 10)  # before there are several processes

    accelerator = Accelerator(
        mixed_precision=args.precision, gradient_accumulation_steps=args.accumulate, cpu=args.tiny
    )
    loaders = []
    for split in (digits.train, digits.val):
        images = digits.network_input(split.fetch(torch.arange(len(split))))
        loaders.append(DataLoader(TensorDataset(images, split.labels), batch_size=50, shuffle=split is digits.train))

    student = lf.split(lf.models.ResNet(8, in_channels=1))
    several = accelerator.num_processes > 1
    model = lf.LITModel(teacher, student.train(), lf.LITLoss(alpha=0.9, beta=0.5, tau=4.0), over_processes=several)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    updates = args.epochs * -(-len(loaders[0]) // args.accumulate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    # The module moves to the device with teacher and criterion; Accelerate wraps it where there are several processes.
    model, optimizer, schedule, training, validation = accelerator.prepare(model, optimizer, schedule, *loaders)

    for epoch in range(args.epochs):
        model.train()
        total = torch.zeros((), device=accelerator.device)
        for images, labels in training:
            with accelerator.accumulate(model):
                loss, parts, _ = model(images, labels)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            total += parts.total
        model.eval()
        right = []
        for images, labels in validation:
            with torch.no_grad():
                found = accelerator.unwrap_model(model).student(images).argmax(1)
            right.append(torch.eq(*accelerator.gather_for_metrics((found, labels))))
        accuracy = 100.0 * torch.cat(right).float().mean().item()
        total = accelerator.reduce(total)  # each process has its share of the whole batch's loss
        accelerator.print(f"epoch {epoch + 1}: loss {total.item() / len(training):.4f}, val {accuracy:.2f} %")
    accelerator.save(accelerator.unwrap_model(model).student.model.state_dict(), args.save)


if __name__ == "__main__":
    main()
