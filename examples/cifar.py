"""ResNet-56 to ResNet-20 on CIFAR-10 by LIT, in one file: what `lit-fast distill` does, written out.

    python examples/cifar.py --data-dir data --teacher resnet56.th
    python examples/cifar.py --tiny  # handwritten digits, seconds on a CPU

CIFAR-10 as published, and a teacher from github.com/akamaster/pytorch_resnet_cifar10. The schedule is the paper's
(appendix A.1), shortened in proportion to --epochs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable

import torch
from torch import Tensor, nn

import lit_fast as lf


def accuracy(net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """In percent."""
    net.eval()
    with torch.no_grad():
        right = torch.cat([net(images).argmax(1) == labels for images, labels in batches])
    return 100.0 * right.float().mean().item()


def train(
    step: lf.LITStep, data: lf.data.Data, epochs: int, milestones: tuple[float, ...], device: str, batch_size: int
) -> None:
    """One phase: the learning rate falls to a tenth at each milestone, a share of the phase."""
    at = [max(1, round(epochs * share)) for share in milestones]
    schedule = torch.optim.lr_scheduler.MultiStepLR(step.optimizer, at, gamma=0.1)
    for epoch in range(epochs):
        step.student.train()
        total = torch.zeros((), device=device)
        for images, labels in data.train_batches(epoch, batch_size=batch_size, seed=0, device=device):
            total += step(images, labels).total
        schedule.step()
        loss = total.item() / data.steps_per_epoch(batch_size)
        val = accuracy(step.student, data.eval_batches("val", batch_size=256, device=device))
        print(f"  epoch {epoch + 1}: loss {loss:.3f}, val {val:.2f} %", flush=True)


def optimizer_for(student: nn.Module, lr: float) -> torch.optim.Optimizer:
    trained = [p for p in student.parameters() if p.requires_grad]
    return torch.optim.SGD(trained, lr=lr, momentum=0.9, weight_decay=1e-4)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", help="where CIFAR-10 lies")
    parser.add_argument("--teacher", help="a checkpoint of ResNet-56")
    parser.add_argument("--epochs", type=int, default=250, help="of both phases together")
    parser.add_argument("--save", default="student.pt")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args(argv)
    torch.manual_seed(0)

    if args.tiny:
        data = lf.data.open_data("digits", image_size=8, train_size=400)
        shape, lr, finetune_lr, batch_size, epochs = {"in_channels": 1}, 0.05, 0.01, 50, 5
        names = {"resnet20": lf.models.resnet20(**shape), "resnet8": lf.models.ResNet(8, **shape)}
    else:  # the published teachers saw images normalised with ImageNet's mean and std
        statistics = {"mean": lf.data.IMAGENET_MEAN, "std": lf.data.IMAGENET_STD}
        data = lf.data.open_data("cifar10", data_dir=args.data_dir, **statistics)
        lr, finetune_lr, batch_size, epochs = 0.1, 0.01, 32, args.epochs
        names = {"resnet56": lf.models.resnet56(), "resnet20": lf.models.resnet20()}
        lf.models.load_checkpoint(names["resnet56"], args.teacher)

    teacher, student = (lf.split(net.to(args.device)) for net in names.values())
    if args.tiny:  # no checkpoint to load, so one is trained
        scratch = lf.LITLoss(alpha=1.0, beta=1.0)
        print("teacher")
        train(lf.LITStep(None, teacher, scratch, optimizer_for(teacher, lr)), data, 3, (0.7,), args.device, batch_size)
    started = time.perf_counter()

    # LIT phase: stem and head are the teacher's; each section learns to give the teacher's IR from the teacher's IR.
    lf.copy_parts(teacher, student)
    student.freeze("stem", "head")
    teacher.eval().requires_grad_(False)
    example, _ = next(data.eval_batches("val", batch_size=2, device=args.device))
    report = lf.inspect(teacher, student, example)
    print(report)
    step = lf.LITStep(teacher, student, lf.LITLoss(alpha=0.95, beta=0.75, tau=6.0), optimizer_for(student, lr))
    first = epochs * 7 // 10
    print("LIT phase")
    train(step, data, first, (0.34, 0.57, 0.71), args.device, batch_size)

    # Fine-tune phase: the student as a whole, on the labels and the teacher's soft targets.
    student.unfreeze("stem", "head")
    kd = lf.LITLoss(alpha=0.95, beta=1.0, tau=6.0)
    step = lf.LITStep(teacher, student, kd, optimizer_for(student, finetune_lr))
    print("fine-tune phase")
    train(step, data, epochs - first, (0.47, 0.73), args.device, batch_size)
    seconds = time.perf_counter() - started

    print(f"\n{'network':10}{'training':12}{'params':>8}{'MMACs':>8}{'compression':>13}{'test %':>8}{'seconds':>9}")
    rows = (("checkpoint", report.teacher, 1.0, "-"), ("lit", report.student, report.compression, f"{seconds:.0f}"))
    for (name, net), (how, side, smaller, took) in zip(names.items(), rows):
        test = accuracy(net, data.eval_batches("test", batch_size=256, device=args.device))
        size = f"{side.parameters / 1e6:7.3f}M{side.macs / 1e6:8.1f}{smaller:12.2f}x"
        print(f"{name:10}{how:12}{size}{test:8.2f}{took:>9}")
    torch.save(student.model.state_dict(), args.save)


if __name__ == "__main__":
    main()
