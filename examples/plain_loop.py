"""A loop of your own around LITModel: averaged weights (EMA, SWA), cosine schedule, clipping, accumulation.

python examples/plain_loop.py  # on handwritten digits
python examples/plain_loop.py --tiny
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

import lit_fast as lf


def accuracy(net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """In percent."""
    net.eval()
    with torch.no_grad():
        right = torch.cat([net(images).argmax(1) == labels for images, labels in batches])
    return 100.0 * right.float().mean().item()


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
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--accumulate", type=int, default=2, help="batches that make one update")
    parser.add_argument("--save", default="averaged.pt")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    if args.tiny:
        args.epochs = 3
    data = lf.data.open_data("digits", image_size=8, train_size=400 if args.tiny else None)

    teacher = trained_teacher(data, 3 if args.tiny else 10)
    student = lf.split(lf.models.ResNet(8, in_channels=1))
    model = lf.LITModel(teacher, student, lf.LITLoss(alpha=0.9, beta=0.5, tau=4.0))

    # The module has the student's parameters and no others, so whatever takes a module takes it.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    updates = args.epochs * -(-data.steps_per_epoch(50) // args.accumulate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    # What is averaged is the network that will be deployed.
    ema = AveragedModel(student.model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    swa = AveragedModel(student.model)

    for epoch in range(args.epochs):
        model.train()
        total = 0.0
        batches = list(data.train_batches(epoch, batch_size=50, seed=0))
        for at in range(0, len(batches), args.accumulate):
            together = batches[at : at + args.accumulate]
            counts = sum(model.counts(*batch) for batch in together)  # rows of all, so that unequal batches are exact
            optimizer.zero_grad()
            for batch in together:
                loss = model(*batch, normalizer=counts).loss
                loss.backward()
                total += loss.item()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            ema.update_parameters(student.model)
        if 2 * (epoch + 1) > args.epochs:  # SWA: one copy of each epoch of the second half
            swa.update_parameters(student.model)
        print(f"epoch {epoch + 1}: loss {args.accumulate * total / len(batches):.4f}", flush=True)

    update_bn(data.train_batches(0, batch_size=50, seed=0, augment=False), swa)
    for name, net in (("student", student.model), ("EMA", ema.module), ("SWA", swa.module)):
        print(f"{name}: test {accuracy(net, data.eval_batches('test', batch_size=256)):.2f} %")
    torch.save(ema.module.state_dict(), args.save)


if __name__ == "__main__":
    main()
