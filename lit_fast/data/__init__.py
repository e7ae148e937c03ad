"""Datasets with train, validation and test kept apart, and batches that are pure functions of (seed, epoch, step)."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from lit_fast.data.augment import Augmentation
from lit_fast.data.base import Batch, Data, Split, TensorSplit
from lit_fast.data.formats.arrays import from_arrays
from lit_fast.data.formats.datasets import as_data, from_datasets
from lit_fast.data.loaders import Loader, open_loader
from lit_fast.data.options import IMAGENET_MEAN, IMAGENET_STD, Options, numbers
from lit_fast.errors import DataError
from lit_fast.user_functions import is_function, made

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Augmentation",
    "Batch",
    "Data",
    "DataError",
    "Loader",
    "Split",
    "TensorSplit",
    "from_arrays",
    "from_datasets",
    "has_texts",
    "names",
    "open_data",
    "open_loader",
]


# Options that only one kind of dataset understands.
_TAKEN_BY = {"length": "reviews", "cache_dir": "reviews", "attributes": "celeba", "crop": "celeba"}


def names() -> tuple[str, ...]:
    """Names `open_data` knows."""
    return ("digits", "cifar10", "cifar100", "folder", "amazon-full", "amazon-polarity", "celeba")


def has_texts(name: str) -> bool:
    """Whether the dataset of that name holds texts; the others hold images."""
    return name in ("amazon-full", "amazon-polarity")


def open_data(
    name: str,
    *,
    data_dir: str | PathLike[str] | None = None,
    val_size: int | None = None,
    val_seed: int = 0,
    train_size: int | None = None,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    augmentation: Augmentation | None = None,
    on_bad_image: str = "stop",
    length: int | None = None,
    cache_dir: str | PathLike[str] | None = None,
    attributes: Sequence[str] | None = None,
    crop: int | None = None,
) -> Data:
    """Open a dataset by name.

    Args:
        name: "digits" (bundled with scikit-learn), "cifar10", "cifar100", "folder" (image files), "amazon-full" or
            "amazon-polarity" (reviews as characters), or "celeba" (faces with attributes, for generators). Or
            "module:function", a function of your own that returns a `Data`, or a mapping or an object with the datasets
            ``train``, ``val`` and ``test`` and perhaps ``num_classes`` and ``collate``, as `from_datasets` takes them
            with ``collate`` (default: torch's); it takes none of the other arguments.
        data_dir: where the files lie (not for digits). CIFAR: the unpacked folder, the .tar.gz as downloaded, or a
            folder that holds either. folder: the one that holds train/<class>/*, test/<class>/* and perhaps
            val/<class>/*; with val/, test/ may be missing. amazon: the one that holds train.csv and test.csv. celeba:
            the one that holds list_attr_celeba.txt and img_align_celeba/.
        val_size: images taken from the training set for validation, stratified. None: 180 for digits, 5,000 for CIFAR,
            2,000 for CelebA (not stratified; a tenth of fewer than 20,000), a tenth for reviews and for a folder
            without val/. 0 gives an empty validation split.
        val_seed: fixes which images validate, and which `train_size` keeps.
        train_size: train on a stratified subset of this many of the remaining images. None: all.
        image_size: resize to this many pixels squared. None: 16 for digits, 32 for CIFAR, 128 for CelebA; a
            folder needs it.
        mean, std: per-channel normalisation in units of full scale (0..1). None: the dataset's own; published
            checkpoints may have been trained with others (`IMAGENET_MEAN`, `IMAGENET_STD`).
        augmentation: None: crops after padding by an eighth of the image size, and flips except for digits.
        on_bad_image: of image files: "stop" raises when one that cannot be decoded is met, "skip" decodes every file
            once now and leaves those out that cannot be (see `Data.left_out`).
        length: tokens per review: longer ones are cut, shorter ones padded. None: 1014.
        cache_dir: where the tokens of reviews are kept. None: beside their files.
        attributes: of CelebA, which ones are labels. None: Black_Hair, Blond_Hair, Brown_Hair, Male, Young.
        crop: of CelebA, pixels of the central square that is resized. None: 178; images of half size take 89.

    Raises:
        DataError: naming the argument or file, what was expected and what was found.

    Example:
        >>> data = open_data("digits")
        >>> len(data.train), len(data.val), len(data.test), data.shape
        (1257, 180, 360, (1, 16, 16))
    """
    options = Options(
        data_dir=None if data_dir is None else Path(data_dir).expanduser(),
        val_size=val_size,
        val_seed=val_seed,
        train_size=train_size,
        image_size=image_size,
        mean=numbers(mean, "mean"),
        std=numbers(std, "std"),
        augmentation=augmentation,
        on_bad_image=on_bad_image,
        length=length,
        cache_dir=None if cache_dir is None else Path(cache_dir).expanduser(),
        attributes=None if attributes is None else tuple(attributes),
        crop=crop,
    )
    if is_function(name):
        given = [what for what, value in vars(options).items() if value != getattr(Options(), what)]
        if given:
            raise DataError(f"{name}: {given[0]} is for datasets by name; leave it out, the function decides")
        return as_data(made(name), name)
    kind = "reviews" if has_texts(name) else name
    for what, takes in _TAKEN_BY.items():
        if getattr(options, what) is not None and name in names() and kind != takes:
            raise DataError(f"{name}: {what} is for {takes}; leave it out")
    if kind == "reviews":
        from lit_fast.data.formats import amazon

        return amazon.load(name, options)
    if name == "celeba":
        from lit_fast.data.formats import celeba

        return celeba.load(options)
    if name == "digits":
        from lit_fast.data.formats import digits

        return digits.load(options)
    if name in ("cifar10", "cifar100"):
        from lit_fast.data.formats import cifar

        return cifar.load(name, options)
    if name == "folder":
        from lit_fast.data.formats import folder

        return folder.load(options)
    raise DataError(f"there is no dataset {name!r}; choose from {', '.join(names())}")
