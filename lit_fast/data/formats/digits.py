"""scikit-learn's bundled handwritten digits (Alpaydin and Kaynak 1998): 1,797 8x8 images, ten classes, no download."""

import torch
from torch import Tensor

from lit_fast.data.augment import Augmentation, resize
from lit_fast.data.base import Data, TensorSplit
from lit_fast.data.options import Options, normalisation
from lit_fast.data.splits import stratified, train_val_indices
from lit_fast.errors import DataError

TEST_SIZE = 360
VAL_SIZE = 180
IMAGE_SIZE = 16


def load(options: Options) -> Data:
    """Digits as one-channel images, upscaled once; 1,257 train, 180 val and 360 test images by default, stratified.

    The test split never changes; `val_seed` moves only the border between training and validation. Mirrored digits are
    other signs, so the default augmentation crops and does not flip.

    Raises:
        DataError: if scikit-learn is missing, a size cannot be given, or a folder is.
    """
    if options.data_dir is not None:
        raise DataError(f"digits: they come with scikit-learn; leave data_dir out (got {options.data_dir})")
    pixels, labels = _read()
    size = options.image_size or IMAGE_SIZE
    images = resize(pixels, size)
    test, rest = stratified(labels, TEST_SIZE, ("digits test",))
    val_size = VAL_SIZE if options.val_size is None else options.val_size
    train, val = (
        rest[part] for part in train_val_indices(labels[rest], val_size, options.val_seed, options.train_size)
    )
    mean, std = normalisation(options, lambda: images[train])
    return Data(
        name="digits",
        shape=(1, size, size),
        classes=tuple(str(digit) for digit in range(10)),
        mean=mean,
        std=std,
        augmentation=options.augmentation or Augmentation(pad=size // 8, flip=False),
        train=TensorSplit(images, labels, train),
        val=TensorSplit(images, labels, val),
        test=TensorSplit(images, labels, test),
    )


def _read() -> tuple[Tensor, Tensor]:
    """(uint8 [1797, 1, 8, 8] in 0..255, int64 [1797])."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("digits: needs scikit-learn, which is not installed; pip install scikit-learn") from error
    bunch = load_digits()
    images = torch.as_tensor(bunch.images, dtype=torch.float32)  # [1797, 8, 8], values 0..16
    labels = torch.as_tensor(bunch.target, dtype=torch.int64)
    return (images * (255 / 16)).round_().to(torch.uint8)[:, None], labels
