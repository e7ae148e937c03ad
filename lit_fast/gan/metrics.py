"""How good a generator's images are: against the teacher, by the judge's attributes, by inception score and FID."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_fast.data.base import Batch
from lit_fast.errors import MetricsError
from lit_fast.gan.samples import domains, to_pixels, translate
from lit_fast.models.stargan import with_domain

__all__ = [
    "ImageScores",
    "as_result",
    "check_inception",
    "compare",
    "distances",
    "inception_features",
    "translations",
]

_NAME = "weights-inception-2015-12-05-6726825d.pth"


@dataclass(frozen=True)
class ImageScores:
    """``inception_score`` of the generated images, and ``fid`` between them and the real ones."""

    inception_score: float
    fid: float


def check_inception(weights: Path) -> None:
    """Refuse, before anything is trained, what `inception_features` would refuse after.

    Raises:
        MetricsError: no such file, or packages are missing.
    """
    if not weights.is_file():
        raise MetricsError(
            f"metrics.inception: there is no file {weights}. Inception score and FID need the Inception-v3 weights of "
            f"the FID's authors as torch-fidelity distributes them ({_NAME}); nothing is downloaded here"
        )
    try:
        import torch_fidelity  # noqa: F401
        import torchmetrics  # noqa: F401
    except ImportError as error:
        raise MetricsError(
            f"inception score and FID need the package {error.name}: pip install '.[gan]' in a checkout of lit_fast"
        ) from error


def inception_features(weights: Path) -> tuple[nn.Module, nn.Module]:
    """The features that FID (pool, 2048) and inception score (unbiased logits, 1008) are defined on.

    Returns:
        Two modules: uint8 images [B, 3, H, W] -> features [B, F].

    Raises:
        MetricsError: see `check_inception`, or a file that is not of these weights.
    """
    check_inception(weights)
    from torchmetrics.image.fid import NoTrainInceptionV3

    try:
        pool, logits = (
            NoTrainInceptionV3("inception-v3-compat", [layer], str(weights)) for layer in ("2048", "logits_unbiased")
        )
    except Exception as error:  # torch.load and load_state_dict fail in many ways
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MetricsError(f"metrics.inception: {weights} does not hold the weights of {_NAME} ({reason})") from error
    pool.num_features = 2048
    return pool, logits


def distances(
    real: Iterable[Tensor], fake: Iterable[Tensor], pool: nn.Module, logits: nn.Module, *, splits: int = 10
) -> ImageScores:
    """FID between two sets of images and inception score of the second, by torchmetrics.

    Args:
        real, fake: batches of uint8 images [B, 3, H, W], at least two images each.
        pool: images -> features [B, F] of the FID, with an attribute ``num_features``.
        logits: images -> class logits [B, C] of the inception score.
        splits: parts that the inception score is averaged over.

    Raises:
        MetricsError: torchmetrics is not installed.
    """
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
        from torchmetrics.image.inception import InceptionScore
    except ImportError as error:
        raise MetricsError(
            "inception score and FID need torchmetrics: pip install '.[gan]' in a checkout of lit_fast"
        ) from error
    fid, score = FrechetInceptionDistance(feature=pool), InceptionScore(feature=logits, splits=splits)
    with torch.random.fork_rng(devices=[]):  # the inception score shuffles
        torch.manual_seed(0)
        with torch.no_grad():
            for images in real:
                fid.to(images.device).update(images, real=True)
            for images in fake:
                fid.to(images.device).update(images, real=False)
                score.to(images.device).update(images)
            return ImageScores(float(score.compute()[0]), float(fid.compute()))


def translations(generator: nn.Module, batches: Iterable[Batch], attributes: tuple[str, ...]) -> Iterator[Tensor]:
    """Every image in every domain, as uint8 batches."""
    for images, labels in batches:
        for out in translate(generator, images, labels, attributes):
            yield to_pixels(out)


@torch.no_grad()
def compare(
    generator: nn.Module,
    batches: Iterable[Batch],
    attributes: tuple[str, ...],
    *,
    judge: nn.Module,
    teacher: nn.Module | None = None,
) -> dict[str, float | None]:
    """What can be measured without Inception, over all images in all domains.

    Args:
        judge: a discriminator; its attribute logits say whether a translated image shows what was asked for. It is the
            teacher's, which the teacher and its students were trained against: compare students with care.
        teacher: the generator to compare with.

    Returns:
        ``attributes`` (percent of those asked for that the judge sees), ``reconstruction`` (mean absolute difference
        of an image translated there and back, on the scale -1..1), ``teacher_l1`` (the same between the generator's
        and the teacher's translations; ``None`` without a teacher).
    """
    sums = torch.zeros(3, dtype=torch.float64)
    count = 0
    for images, labels in batches:
        for wanted in domains(labels, attributes):
            out = generator(with_domain(images, wanted))
            seen = ((judge(out)[1] > 0) == (wanted > 0.5)).float().mean()
            back = (generator(with_domain(out, labels)) - images).abs().mean()
            other = out if teacher is None else teacher(with_domain(images, wanted))
            sums += len(images) * torch.stack([seen, back, (out - other).abs().mean()]).double().cpu()
            count += len(images)
    seen_share, back_mean, other_mean = (sums / count).tolist()
    return {
        "attributes": 100.0 * seen_share,
        "reconstruction": back_mean,
        "teacher_l1": None if teacher is None else other_mean,
    }


def as_result(scores: ImageScores | None) -> dict[str, Any]:
    """As it stands in ``results.json``: ``None`` where it was not measured."""
    return {"inception_score": None, "fid": None} if scores is None else asdict(scores)
