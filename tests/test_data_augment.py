"""Crops, flips, normalisation and resizing against the plainest code that does the same."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_fast.data import Augmentation, DataError
from lit_fast.data.augment import crop_and_flip, normalise, resize


def random_images(batch: int, channels: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(batch)
    return torch.randint(1, 256, (batch, channels, height, width), dtype=torch.uint8, generator=generator)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 5), st.sampled_from([1, 3]), st.integers(1, 9), st.integers(1, 9)),
    pad=st.integers(0, 4),
    flip=st.booleans(),
    seed=st.integers(0, 99),
)
def test_every_image_equals_a_slice_of_its_padded_self(shape, pad, flip, seed):
    images = random_images(*shape)
    batch, channels, height, width = shape
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.randint(0, 2 * pad + 1, (2, batch), generator=generator)
    flips = torch.randint(0, 2, (batch,), generator=generator).bool() if flip else None
    got = crop_and_flip(images, pad, rows, columns, flips)
    for i in range(batch):
        padded = torch.zeros(channels, height + 2 * pad, width + 2 * pad, dtype=torch.uint8)
        padded[:, pad : pad + height, pad : pad + width] = images[i]
        expected = padded[:, rows[i] : rows[i] + height, columns[i] : columns[i] + width]
        if flips is not None and flips[i]:
            expected = expected.flip(-1)
        assert torch.equal(got[i], expected)
    assert got.is_contiguous()
    assert got.dtype is torch.uint8


def test_flips_without_crops_mirror_whole_images():
    images = random_images(4, 3, 5, 6)
    flips = torch.tensor([True, False, True, False])
    got = crop_and_flip(images, 0, None, None, flips)
    assert torch.equal(got[flips], images[flips].flip(-1))
    assert torch.equal(got[~flips], images[~flips])


def test_images_in_another_memory_layout_give_the_same_contiguous_result():
    images = random_images(4, 3, 8, 8)
    rows = torch.tensor([0, 1, 2, 4])
    expected = crop_and_flip(images, 2, rows, rows, rows > 1)
    got = crop_and_flip(images.to(memory_format=torch.channels_last), 2, rows, rows, rows > 1)
    assert torch.equal(got, expected)
    assert got.is_contiguous()
    assert crop_and_flip(images.to(memory_format=torch.channels_last), 0, None, None, None).is_contiguous()


def test_normalisation_is_that_of_to_tensor_and_normalize():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    got = normalise(images, mean, std)
    exact = (images.double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert got.dtype is torch.float32
    assert got.is_contiguous()
    torch.testing.assert_close(got.double(), exact, rtol=0, atol=1e-6)


def test_resizing_keeps_constant_images_and_equal_sizes():
    images = torch.full((3, 1, 8, 8), 77, dtype=torch.uint8)
    assert torch.equal(resize(images, 16), torch.full((3, 1, 16, 16), 77, dtype=torch.uint8))
    assert resize(images, 8) is images
    assert resize(images[:0], 16).shape == (0, 1, 16, 16)


@pytest.mark.parametrize(("arguments", "named"), [({"pad": -1}, "pad"), ({"pad": 1.5}, "pad"), ({"flip": 1}, "flip")])
def test_an_impossible_augmentation_is_refused_when_it_is_made(arguments, named):
    with pytest.raises(DataError, match=f"augmentation: {named} must be"):
        Augmentation(**arguments)
