"""A ViT of timm's from 12 blocks to 4, each section of four blocks learned by one or two of the student's.

python examples/timm_vit.py --images imagenet --epochs 30  # a folder with train/<class>/*
python examples/timm_vit.py --tiny                         # 6 -> 3 blocks on noise
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import lit_fast as lf

try:
    import timm
except ImportError:
    raise SystemExit("this example needs timm: pip install timm") from None


def noise(batches: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Images of ten classes that differ in brightness."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(batches):
        labels = torch.randint(10, (16,), generator=generator)
        yield torch.randn(16, 3, size, size, generator=generator) + labels[:, None, None, None] / 5, labels


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", help="a folder of images, with those of each class in a folder of their own")
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--save", default="vit-student.pt")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args(argv)
    torch.manual_seed(0)

    options: dict[str, Any] = {}
    depth, sections = 4, 4
    if args.tiny:
        args.model, args.epochs, depth, sections = "vit_tiny_patch16_224", 3, 3, 3
        options = {"img_size": 32, "embed_dim": 24, "num_heads": 2, "num_classes": 10}
        teacher_net = timm.create_model(args.model, depth=6, **options)
    else:
        teacher_net = timm.create_model(args.model, pretrained=True)
        dataset = timm.data.create_dataset("", root=args.images, split="train")
        config = timm.data.resolve_data_config({}, model=teacher_net)
        loader = timm.data.create_loader(
            dataset, batch_size=args.batch_size, is_training=True, device=torch.device(args.device), **config
        )
    student_net = timm.create_model(args.model, depth=depth, **options)

    # "blocks" is the name of the stack in timm's ViTs: what runs before it is the stem, what runs after it the head.
    teacher = lf.split(teacher_net.to(args.device).eval(), blocks="blocks", sections=sections)
    student = lf.split(student_net.to(args.device), blocks="blocks", sections=sections)
    lf.copy_parts(teacher, student)
    print("the student's blocks start as the teacher's", lf.copy_blocks(teacher, student))
    optimizer = torch.optim.AdamW(student.parameters(), lr=5e-4, weight_decay=0.05)
    precision = "bf16" if args.device == "cuda" else "fp32"
    criterion = lf.LITLoss(alpha=0.5, beta=0.5, tau=2.0)
    step = lf.LITStep(teacher, student, criterion, optimizer, precision=precision, clip_grad_norm=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
    student.train()
    for epoch in range(args.epochs):
        total, count = torch.zeros((), device=args.device), 0
        for images, labels in noise(8, 32) if args.tiny else loader:
            total += step(images.to(args.device), labels.to(args.device)).total
            count += 1
        schedule.step()
        print(f"epoch {epoch + 1}: loss {total.item() / count:.4f}", flush=True)
    torch.save(student.model.state_dict(), args.save)


if __name__ == "__main__":
    main()
