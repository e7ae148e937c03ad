"""The random tables: their distribution, and that they depend on nothing but seed and epoch."""

import pytest
import torch

from lit_fast.data import Augmentation
from lit_fast.data.tables import epoch_tables, generator, share

CIFAR = Augmentation(pad=4, flip=True)


def test_crop_offsets_are_uniform_integers_as_torchvisions():
    # torchvision's RandomCrop draws randint(0, padded - size + 1) for each side: 81 equally likely pairs at padding 4.
    tables = epoch_tables(81 * 500, seed=3, epoch=0, augmentation=CIFAR)
    counts = torch.bincount(tables.rows * 9 + tables.columns, minlength=81).double()
    assert len(counts) == 81
    chi_squared = float(((counts - 500) ** 2 / 500).sum())
    assert 40 < chi_squared < 135  # 80 degrees of freedom: both bounds lie beyond 1 in 10,000


def test_flips_come_up_half_of_the_time():
    flips = epoch_tables(40_000, seed=3, epoch=0, augmentation=CIFAR).flips
    assert abs(float(flips.double().mean()) - 0.5) < 4 * 0.5 / 200


def test_an_epoch_visits_every_image_once():
    order = epoch_tables(1_000, seed=1, epoch=5, augmentation=None).order
    assert torch.equal(order.sort().values, torch.arange(1_000))


@pytest.mark.parametrize("other", [(0, 1), (1, 0), (-1, 0), (2**70, 0), (2**32, 0)])
def test_other_seeds_and_epochs_give_other_tables(other):
    a, b = (epoch_tables(200, seed, epoch, CIFAR) for seed, epoch in [(0, 0), other])
    assert not torch.equal(a.order, b.order)
    assert not torch.equal(a.rows, b.rows)
    assert not torch.equal(a.flips, b.flips)


def test_seed_plus_epoch_is_not_what_counts():
    a, b = (epoch_tables(200, seed, epoch, CIFAR) for seed, epoch in [(0, 1), (1, 0)])
    assert not torch.equal(a.order, b.order)


def test_tables_ignore_and_leave_the_global_generator():
    torch.manual_seed(1)
    first = epoch_tables(50, 0, 0, CIFAR)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    second = epoch_tables(50, 0, 0, CIFAR)
    assert torch.equal(first.order, second.order)
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


def test_switching_one_augmentation_off_leaves_the_others():
    both = epoch_tables(50, 0, 0, CIFAR)
    crops = epoch_tables(50, 0, 0, Augmentation(pad=4))
    flips = epoch_tables(50, 0, 0, Augmentation(flip=True))
    assert crops.flips is None
    assert flips.rows is None
    assert torch.equal(both.rows, crops.rows)
    assert torch.equal(both.flips, flips.flips)
    assert torch.equal(both.order, flips.order)


def test_tables_stay_what_they_were():
    # A changed value means that runs of earlier versions can no longer be resumed or repeated.
    assert generator("order", 0, 0).initial_seed() == 876272428676890156
    tables = epoch_tables(8, 0, 0, CIFAR)
    assert tables.order.tolist() == [5, 7, 0, 4, 2, 1, 6, 3]
    assert tables.rows.tolist() == [2, 1, 1, 7, 1, 2, 8, 7]
    assert tables.columns.tolist() == [5, 0, 2, 8, 0, 0, 7, 2]
    assert tables.flips.int().tolist() == [1, 1, 0, 0, 0, 1, 1, 0]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 2, 5, 6, 32])
def test_shares_are_all_rows_once_and_almost_equal(count, size):
    taken = [list(range(count))[share(count, rank, size)] for rank in range(size)]
    assert [row for rows in taken for row in rows] == list(range(count))
    assert max(map(len, taken)) - min(map(len, taken)) <= 1
    assert len(taken[0]) > 0 or count == 0
