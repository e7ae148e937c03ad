"""Stratified choices: exact sizes, classes in proportion, nothing in two splits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_fast.data import DataError
from lit_fast.data.splits import stratified, train_val_indices


@settings(max_examples=80, deadline=None)
@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(any),
    share=st.floats(0, 1),
    key=st.integers(0, 9),
)
def test_a_choice_has_the_size_asked_for_and_the_classes_in_proportion(counts, share, key):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(key))]
    size = round(share * len(labels))
    chosen, rest = stratified(labels, size, (key,))
    assert len(chosen) == size
    assert torch.equal(torch.cat([chosen, rest]).sort().values, torch.arange(len(labels)))
    assert torch.equal(chosen, chosen.sort().values)
    assert torch.equal(rest, rest.sort().values)
    for label, count in enumerate(counts):
        assert abs(int((labels[chosen] == label).sum()) - count * size / len(labels)) < 1


def test_the_same_key_chooses_the_same_and_another_key_others():
    labels = torch.arange(500) % 10
    first, again, other = (stratified(labels, 100, (key,))[0] for key in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_training_subsets_leave_validation_alone_and_larger_ones_hold_smaller_ones():
    labels = torch.arange(1_000) % 10
    train, val = train_val_indices(labels, 100, 0, None)
    small, val_small = train_val_indices(labels, 100, 0, 50)
    large, _ = train_val_indices(labels, 100, 0, 500)
    assert (len(train), len(small), len(large), len(val)) == (900, 50, 500, 100)
    assert torch.equal(val, val_small)
    assert set(small.tolist()) < set(large.tolist()) < set(train.tolist())
    assert torch.equal(torch.bincount(labels[small]), torch.full((10,), 5))


def test_no_validation_images_can_be_asked_for():
    train, val = train_val_indices(torch.arange(20) % 2, 0, 0, None)
    assert (len(train), len(val)) == (20, 0)


@pytest.mark.parametrize(
    ("val_size", "train_size", "message"),
    [
        (20, None, r"val_size: expected 0\.\.19 .* got 20"),
        (5, 16, r"train_size: expected 1\.\.15 \(20 training images less 5 for validation\), got 16"),
    ],
)
def test_sizes_that_cannot_be_given_are_refused(val_size, train_size, message):
    with pytest.raises(DataError, match=message):
        train_val_indices(torch.arange(20) % 2, val_size, 0, train_size)
