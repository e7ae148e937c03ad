"""`from_arrays`: what is accepted, and what is said of the rest."""

import numpy as np
import pytest
import torch

from lit_fast.data import Augmentation, DataError, from_arrays

IMAGES = torch.arange(40 * 3 * 8 * 8).remainder(256).to(torch.uint8).view(40, 3, 8, 8)
LABELS = torch.arange(40) % 4
TEST = (IMAGES[:10], LABELS[:10])


def test_tensors_and_arrays_give_the_same_data():
    data = from_arrays((IMAGES, LABELS), test=TEST)
    arrays = from_arrays((IMAGES.numpy(), LABELS.int().numpy()), test=(IMAGES[:10].numpy(), LABELS[:10].tolist()))
    assert data.fingerprint == arrays.fingerprint
    assert data.shape == (3, 8, 8)
    assert data.num_classes == 4
    assert data.augmentation == Augmentation()


def test_a_tenth_is_held_out_unless_validation_images_are_given():
    data = from_arrays((IMAGES, LABELS), test=TEST)
    assert (len(data.train), len(data.val), len(data.test)) == (36, 4, 10)
    assert data.val.labels.sort().values.tolist() == [0, 1, 2, 3]
    data = from_arrays((IMAGES, LABELS), (IMAGES[:5], LABELS[:5]), test=TEST, train_size=20)
    assert (len(data.train), len(data.val)) == (20, 5)
    with pytest.raises(DataError, match="val_size: there is a validation split already"):
        from_arrays((IMAGES, LABELS), (IMAGES[:5], LABELS[:5]), test=TEST, val_size=3)


def test_training_images_are_normalised_to_mean_0_and_deviation_1():
    data = from_arrays((IMAGES, LABELS), test=TEST)
    images, _ = next(data.eval_batches("train", batch_size=40))
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(images.std((0, 2, 3), unbiased=False), torch.ones(3), rtol=0, atol=1e-5)


def test_a_constant_channel_does_not_divide_by_zero():
    assert from_arrays((torch.zeros_like(IMAGES), LABELS), test=TEST).std == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES.permute(0, 2, 3, 1), r"got uint8 \(40, 8, 8, 3\); .*images\.permute\(0, 3, 1, 2\)"),
        (IMAGES[:, 0], r"got uint8 \(40, 8, 8\); add the channel dimension: images\[:, None\]"),
        (IMAGES.float() / 255, r"got float32 \(40, 3, 8, 8\); .*\(images \* 255\)\.round\(\) as uint8"),
        (IMAGES.int(), r"got int32 .*convert pixels 0\.\.255 to uint8"),
        (IMAGES.flatten(1), r"got uint8 \(40, 192\)"),
        (IMAGES.repeat(1, 3, 1, 1), r"1 to 4 channels, got uint8 \(40, 9, 8, 8\)"),
    ],
)
def test_images_of_another_layout_or_type_are_refused_with_the_mend(images, message):
    with pytest.raises(DataError, match=rf"train images: expected uint8 \[N, C, H, W\].*{message}"):
        from_arrays((images, LABELS), test=TEST)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.nn.functional.one_hot(LABELS), r"integers \[N\], got int64 \(40, 4\); labels\.argmax\(1\)"),
        (LABELS.float(), r"got float32 \(40,\); use labels\.long\(\)"),
        (LABELS[:39], "one label per image, got 40 images and 39 labels"),
        (LABELS - 1, "expected classes from 0, got -1"),
    ],
)
def test_unfit_labels_are_refused_with_the_mend(labels, message):
    with pytest.raises(DataError, match=message):
        from_arrays((IMAGES, labels), test=TEST)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": IMAGES, "test": TEST}, r"train: expected a pair \(images, labels\), got Tensor"),
        ({"train": (object(), LABELS), "test": TEST}, "train images: expected a tensor or a NumPy array, got object"),
        (
            {"train": (IMAGES, LABELS), "test": (IMAGES[:, :, :4], LABELS)},
            r"test images: .*\(3, 8, 8\), got \(3, 4, 8\)",
        ),
        ({"train": (IMAGES[:0], LABELS[:0]), "test": TEST}, "the training split is empty"),
        ({"train": (IMAGES[:0], LABELS[:0]), "test": TEST, "num_classes": 4}, "training set has 0 images"),
        ({"train": (IMAGES, LABELS), "test": TEST, "num_classes": 0}, "num_classes: expected an integer >= 1, got 0"),
        ({"train": (IMAGES, LABELS), "test": (IMAGES, LABELS + 1)}, r"label 4 of image 3 in the test split"),
        ({"train": (IMAGES.numpy()[::-1], LABELS), "test": TEST}, "train images: .*negative"),
    ],
)
def test_other_unfit_arguments_are_refused(arguments, message):
    with pytest.raises(DataError, match=message):
        from_arrays(**arguments)


def test_read_only_arrays_are_accepted_in_silence(recwarn):
    images = np.zeros((20, 1, 4, 4), np.uint8)
    images.setflags(write=False)
    from_arrays((images, LABELS[:20]), test=(images, LABELS[:20]))
    assert not recwarn.list


def test_the_arrays_are_shared_not_copied():
    images = np.zeros((20, 1, 4, 4), np.uint8)
    data = from_arrays((images, np.arange(20) % 2), test=(images, np.arange(20) % 2))
    images[0] = 9
    assert int(data.test.fetch(torch.tensor([0])).max()) == 9
