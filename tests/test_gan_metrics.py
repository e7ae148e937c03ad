"""Inception score and FID on statistics that are known, grids, and what is said where weights are absent."""

from __future__ import annotations

import builtins
import importlib.util
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from lit_fast.errors import MetricsError
from lit_fast.gan import metrics
from lit_fast.gan.metrics import check_inception, compare, distances, inception_features
from lit_fast.gan.samples import domains, draw_grid, to_pixels, translate
from lit_fast.models.stargan import Generator, with_domain

ATTRIBUTES = ("Black_Hair", "Blond_Hair", "Male")


class Table(nn.Module):
    """Features that stand in a table; an image's number is written in its first two pixels."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.register_buffer("features", features)
        self.num_features = features.shape[1]

    def forward(self, images: Tensor) -> Tensor:
        assert images.dtype == torch.uint8
        return self.features[images[:, 0, 0, 0].long() + 256 * images[:, 0, 0, 1].long()]


def numbered(numbers: Tensor, batch: int = 100) -> list[Tensor]:
    images = torch.zeros(len(numbers), 3, 2, 2, dtype=torch.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = (numbers % 256).byte(), (numbers // 256).byte()
    return list(images.split(batch))


def exactly(mean: Tensor, covariance: Tensor, count: int, seed: int) -> Tensor:
    """Samples whose sample mean and sample covariance are exactly these."""
    raw = torch.randn(count, len(mean), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    raw = raw - raw.mean(0)
    whiten = torch.linalg.inv(torch.linalg.cholesky(raw.T @ raw / (count - 1)))
    return raw @ whiten.T @ torch.linalg.cholesky(covariance).T + mean


torchmetrics = pytest.mark.skipif(importlib.util.find_spec("torchmetrics") is None, reason="torchmetrics is missing")


@torchmetrics
def test_the_fid_of_gaussians_is_their_frechet_distance():
    zero, shifted = torch.zeros(3, dtype=torch.float64), torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    one, four = torch.eye(3, dtype=torch.float64), torch.diag(torch.tensor([4.0, 9.0, 1.0], dtype=torch.float64))
    features = torch.cat([exactly(zero, one, 400, 0), exactly(shifted, four, 300, 1)])
    real, fake = numbered(torch.arange(400)), numbered(torch.arange(400, 700))
    found = distances(real, fake, Table(features), Table(torch.zeros(700, 2)))
    # |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^1/2) = 5.25 + (1 + 4 - 4) + (1 + 9 - 6) + (1 + 1 - 2)
    assert found.fid == pytest.approx(5.25 + 1 + 4, rel=1e-4)


@torchmetrics
def test_equal_images_have_no_distance_and_one_class_scores_one():
    features = torch.randn(200, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits = torch.zeros(200, 5)
    logits[:, 2] = 3.0
    found = distances(
        numbered(torch.arange(200)), numbered(torch.arange(200)), Table(features), Table(logits), splits=2
    )
    assert found.fid == pytest.approx(0.0, abs=1e-4)
    assert found.inception_score == pytest.approx(1.0, abs=1e-6)


@torchmetrics
def test_the_inception_score_of_k_certain_and_equally_frequent_classes_is_k():
    logits = 100.0 * torch.eye(4)[torch.arange(400) % 4]
    images = numbered(torch.arange(400))
    found = distances(images, images, Table(torch.randn(400, 2, dtype=torch.float64)), Table(logits), splits=1)
    assert found.inception_score == pytest.approx(4.0, rel=1e-5)


@torchmetrics
def test_the_scores_do_not_touch_the_random_state():
    images = numbered(torch.arange(40))
    features = torch.randn(40, 2, dtype=torch.float64)
    before = torch.get_rng_state()
    one = distances(images, images, Table(features), Table(features.float()))
    assert torch.get_rng_state().equal(before)
    assert one == distances(images, images, Table(features), Table(features.float()))


def test_absent_weights_and_packages_are_named(tmp_path, monkeypatch):
    with pytest.raises(
        MetricsError, match=r"no file .*nowhere.pth.*weights-inception-2015-12-05.*nothing is downloaded"
    ):
        check_inception(tmp_path / "nowhere.pth")
    (tmp_path / "weights.pth").write_bytes(b"")
    real = builtins.__import__

    def without(name, *args, **options):
        if name.startswith("torch_fidelity"):
            raise ImportError("no", name="torch_fidelity")
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MetricsError, match=r"need the package torch_fidelity: pip install '.\[gan\]'"):
        inception_features(tmp_path / "weights.pth")


@pytest.mark.skipif(importlib.util.find_spec("torch_fidelity") is None, reason="torch_fidelity is missing")
def test_inception_is_built_from_a_file_of_weights(tmp_path):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    (tmp_path / "broken.pth").write_bytes(b"nothing")
    with pytest.raises(MetricsError, match=r"broken.pth does not hold the weights of"):
        inception_features(tmp_path / "broken.pth")
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:  # random weights of the right shapes, without the download
        patch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *a, **k: {})
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        net = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    pool, logits = inception_features(tmp_path / "weights.pth")
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    assert pool(images).shape == (4, 2048)
    assert logits(images).shape == (4, 1008)
    assert distances([images], [images], pool, logits, splits=1).fid == pytest.approx(0.0, abs=1e-2)


def test_a_generator_that_changes_nothing_reconstructs_and_equals_itself():
    class Same(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :3]

    class Judge(nn.Module):
        """Sees hair that is always black, and never a man."""

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            return images.flatten(1).sum(1), torch.tensor([[1.0, -1.0, -1.0]]).expand(len(images), 3)

    images, labels = torch.rand(5, 3, 4, 4), torch.tensor([[0.0, 1.0, 0.0]]).repeat(5, 1)
    found = compare(Same(), [(images[:3], labels[:3]), (images[3:], labels[3:])], ATTRIBUTES, judge=Judge())
    # Asked for: (1, 0, 0) by the first domain, (0, 1, 0) by the second, (0, 1, 1) by the third; right: 3, 1 and 0 of 3.
    assert found["attributes"] == pytest.approx(100 * 4 / 9)
    assert found["reconstruction"] == 0.0
    assert found["teacher_l1"] is None
    other = compare(Same(), [(images, labels)], ATTRIBUTES, judge=Judge(), teacher=lambda x: x[:, :3] + 0.25)
    assert other["teacher_l1"] == pytest.approx(0.25)


def test_hair_colours_exclude_each_other_and_other_attributes_are_turned_round():
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    black, blond, male = domains(labels, ATTRIBUTES)
    assert black.tolist() == [[1, 0, 1], [1, 0, 0]]
    assert blond.tolist() == [[0, 1, 1], [0, 1, 0]]
    assert male.tolist() == [[1, 0, 0], [0, 1, 1]]
    assert labels.tolist() == [[1, 0, 1], [0, 1, 0]]


def test_pixels_are_rounded_and_clipped():
    assert to_pixels(torch.tensor([-1.0, 1.0, 0.0, -3.0, 3.0, -1 + 2 / 255])).tolist() == [0, 255, 128, 0, 255, 1]


def test_a_grid_holds_every_generators_images_in_its_place(tmp_path: Path):
    torch.manual_seed(0)
    nets = {"teacher": Generator(1, 3, width=2), "a long name of a network": Generator(2, 3, width=2)}
    images, labels = torch.rand(2, 3, 8, 8) * 2 - 1, torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    draw_grid(tmp_path / "new" / "grid.png", images, labels, ATTRIBUTES, nets)
    with Image.open(tmp_path / "new" / "grid.png") as grid:
        for row, net in enumerate(nets.values()):
            for column, shown in enumerate([images, *translate(net, images, labels, ATTRIBUTES)]):
                for i in range(2):
                    left, top = 64 + column * 10, 14 + i * (2 * 10 + 2) + row * 10
                    tile = grid.crop((left, top, left + 8, top + 8))
                    expected = to_pixels(shown)[i].permute(1, 2, 0).contiguous().numpy().tobytes()
                    assert tile.tobytes() == expected, (row, column, i)


def test_translations_are_each_domain_of_each_batch():
    net, images, labels = Generator(1, 3, width=2), torch.rand(2, 3, 8, 8), torch.eye(3)[:2]
    found = list(metrics.translations(net, [(images, labels)], ATTRIBUTES))
    assert len(found) == 3
    expected = net(with_domain(images, domains(labels, ATTRIBUTES)[1])).detach()
    assert found[1].equal(to_pixels(expected))
