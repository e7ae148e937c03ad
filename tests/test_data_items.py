"""Datasets whose items go to the networks as they are: batches, their order, what is random, fingerprints."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import default_collate

import lit_fast as lf
from lit_fast.data.loaders import choose_loader


class Items:
    """Item i is a dict; ``noise`` is random in three ways."""

    def __init__(self, count: int, first: int = 0) -> None:
        self.count, self.first = count, first

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        noise = [float(torch.rand(())), random.random(), float(np.random.rand())]  # noqa: NPY002
        number = self.first + index
        return {"number": torch.tensor([number]), "noise": torch.tensor(noise), "labels": number % 3}


def data(**changes: Any) -> lf.data.Data:
    options = {"train": Items(10), "val": Items(4, 10), "test": Items(5, 20), "collate": default_collate, **changes}
    return lf.data.from_datasets(**options)


def train(source: lf.data.Data, **options: Any) -> list[tuple[Any, Any]]:
    return list(source.train_batches(1, **{"batch_size": 4, "seed": 3, **options}))


def test_batches_are_the_collated_items_in_the_order_of_every_dataset() -> None:
    batches = train(data())
    order = torch.cat([inputs["number"].flatten() for inputs, _ in batches])
    images = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1)
    pair = images, torch.arange(10) % 3
    arrays = lf.data.from_arrays(pair, pair, test=pair, mean=[0.0], std=[1.0])
    expected = torch.cat([x.flatten() for x, _ in arrays.train_batches(1, batch_size=4, seed=3)])
    assert order.tolist() == (255 * expected).round().int().tolist()
    assert [sorted(inputs) for inputs, _ in batches] == [["noise", "number"]] * 3
    assert torch.cat([labels for _, labels in batches]).equal(order % 3)


def test_what_is_random_follows_from_seed_epoch_and_place_alone() -> None:
    whole = train(data())
    torch.manual_seed(99)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    rest = train(data(), start_step=2)
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    assert whole[2][0]["noise"].equal(rest[0][0]["noise"])
    assert before[0].equal(after[0])
    assert before[1:] == after[1:]
    assert not whole[0][0]["noise"].equal(train(data(), seed=4)[0][0]["noise"])
    shares = [train(data(), shard=(rank, 2))[0][0]["noise"] for rank in (0, 1)]
    assert torch.cat(shares).equal(whole[0][0]["noise"])


def test_a_process_without_rows_of_the_last_batch_gets_none() -> None:
    last, labels = train(data(), batch_size=9, shard=(1, 2))[-1]
    assert (len(last), labels) == (0, None)


def test_evaluation_goes_through_a_split_in_order() -> None:
    batches = list(data().eval_batches("test", batch_size=2))
    assert [inputs["number"].flatten().tolist() for inputs, _ in batches] == [[20, 21], [22, 23], [24]]


def test_pairs_have_inputs_of_any_kind() -> None:
    pairs = [((torch.full((2,), float(i)), torch.tensor(i)), i % 2) for i in range(6)]
    inputs, labels = next(data(train=pairs, val=pairs, test=pairs).train_batches(0, batch_size=3, seed=0))
    assert [tuple(part.shape) for part in inputs] == [(3, 2), (3,)]
    assert tuple(labels.shape) == (3,)


def test_the_shape_of_tensors_is_known_for_built_in_networks() -> None:
    pairs = [(torch.zeros(3, 8, 8), 0)] * 4
    found = data(train=pairs, val=pairs, test=pairs, num_classes=5)
    assert (found.shape, found.num_classes, data().shape) == ((3, 8, 8), 5, ())


def test_a_collate_function_of_ones_own_pads() -> None:
    def padded(items: list[Tensor]) -> dict[str, Tensor]:
        return {"x": torch.nn.utils.rnn.pad_sequence(items, batch_first=True), "labels": torch.zeros(len(items))}

    texts = [torch.arange(1 + i) for i in range(4)]
    ((inputs, _),) = data(train=texts, val=texts, test=texts, collate=padded).eval_batches("val", batch_size=4)
    assert tuple(inputs["x"].shape) == (4, 4)


def test_another_item_is_another_fingerprint() -> None:
    assert data().fingerprint == data().fingerprint
    assert data(val=Items(4, 11)).fingerprint != data().fingerprint
    assert data(test=Items(6, 20)).contents()["test.count"] == 6


def test_the_loader_is_the_one_that_streams() -> None:
    assert choose_loader(data()).name == "torch"
    with pytest.raises(lf.DataError, match="loader 'dali': datasets: its items go to the networks as they are"):
        choose_loader(data(), "dali")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val": None}, "datasets: expected the datasets train, val and test, got no val; hold items out"),
        ({"test": None}, "got no test"),
        ({"train": []}, "datasets: train: the dataset is empty"),
        ({"train": iter([1])}, "expected a map-style dataset"),
        ({"val_size": 3}, "val_size: with collate, items go to the networks as they are; leave it out"),
        ({"mean": [0.5]}, "mean: with collate"),
        ({"augmentation": lf.data.Augmentation(pad=1)}, "augmentation: with collate"),
        ({"num_classes": "two"}, "num_classes: expected an integer, got 'two'"),
        ({"collate": list}, "expected items \\(inputs, label\\), or dicts with 'labels', got a batch of 1 values"),
        (
            {"collate": lambda items: {"x": torch.zeros(2), "labels": [1, 2]}},
            "labels of a batch to be a tensor, got list",
        ),
    ],
)
def test_what_is_no_dataset_is_told(changes: dict[str, Any], message: str) -> None:
    one = {"val": [{"number": 1}]} if changes.get("collate") is list else {}
    with pytest.raises(lf.DataError, match=message):
        data(**changes, **one)


def test_a_function_gives_the_dataset_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    found = lf.data.open_data("toy_tasks:squares")
    assert (found.name, found.num_classes, len(found.val)) == ("toy_tasks:squares", 2, 16)
    with pytest.raises(lf.DataError, match="toy_tasks:squares: image_size is for datasets by name"):
        lf.data.open_data("toy_tasks:squares", image_size=8)
