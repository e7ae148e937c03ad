"""What a LITModel gives: unpacked, by name, by key; copied, taken apart, and evaluated by Hugging Face's Trainer."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from test_lit_model import batch, criterion, pair
from text_networks import CLASSES, Text
from torch import Tensor
from torch.utils import _pytree as pytree

import lit_fast as lf


def output(training: bool = True) -> lf.LITOutput:
    return lf.LITModel(*pair(), criterion()).train(training)(*batch())


def test_it_unpacks_and_has_names_numbers_and_keys() -> None:
    found = output()
    loss, parts, logits = found
    assert len(found) == 3
    for value, name, number in ((loss, "loss", 0), (parts, "parts", 1), (logits, "logits", 2)):
        assert value is getattr(found, name)
        assert value is found[name]
        assert value is found[number]
    assert found[1:] == (parts, logits)
    assert list({**found}) == ["loss", "parts", "logits"]


def test_in_eval_mode_the_parts_are_no_key_but_there() -> None:
    found = output(training=False)
    _, parts, logits = found
    assert list(found.items()) == [("loss", found.loss), ("logits", logits)]
    assert parts is found.parts
    assert parts.ir.shape == (3,)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "remake",
    [
        lambda found: pickle.loads(pickle.dumps(found)),
        copy.copy,
        lambda found: pytree.tree_map(lambda value: value, found),
    ],
    ids=["pickle", "copy", "pytree"],
)
def test_copies_have_all_of_it(remake: Any, training: bool) -> None:
    found = output(training)
    found = lf.LITOutput(found.loss.detach(), found.parts, found.logits.detach(), training=training)
    remade = remake(found)
    assert type(remade) is lf.LITOutput
    assert list(remade.keys()) == list(found.keys())
    pytree.tree_map(torch.testing.assert_close, tuple(remade), tuple(found))


def test_frameworks_make_it_anew_of_a_dict() -> None:
    found = output()
    remade = type(found)(dict(found.items()))
    assert all(one is other for one, other in zip(remade, found))


def accuracy(prediction: Any) -> dict[str, Any]:
    assert prediction.predictions.shape == (6, CLASSES)  # the student's logits, and nothing beside them
    return {"accuracy": (prediction.predictions.argmax(-1) == prediction.label_ids).mean()}


@pytest.fixture
def trainer(tmp_path: Path) -> Any:
    """A plain one, for a tiny classifier of texts."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    teacher, student = (lf.split(Text(layers), blocks="layers", sections=2) for layers in (4, 2))
    rows = [{"input_ids": [n, 7, 9], "attention_mask": [1, 1, 1], "labels": n % CLASSES} for n in range(6)]
    settings = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, report_to="none", save_strategy="no", use_cpu=True, disable_tqdm=True,
        remove_unused_columns=False, eval_strategy="steps", eval_steps=1,
    )  # fmt: skip
    model = lf.LITModel(teacher, student.train(), criterion())
    return transformers.Trainer(model, settings, train_dataset=rows, eval_dataset=rows, compute_metrics=accuracy)


@pytest.mark.filterwarnings("ignore")
def test_a_plain_trainer_trains_evaluates_and_predicts(trainer: Any) -> None:
    before = [weight.clone() for weight in trainer.model.parameters()]
    trainer.train()
    assert not all(map(torch.equal, before, trainer.model.parameters()))
    scores = trainer.evaluate()
    rows: dict[str, Tensor] = trainer.data_collator(trainer.eval_dataset)
    labels = rows["labels"]
    with torch.no_grad():
        loss, _, logits = trainer.model.eval()(**rows)
    assert scores["eval_loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert scores["eval_accuracy"] == (logits.argmax(-1) == labels).float().mean().item()
    torch.testing.assert_close(torch.from_numpy(trainer.predict(trainer.eval_dataset).predictions), logits)


@pytest.mark.filterwarnings("ignore")
def test_what_the_trainer_has_taken_out_of_a_batch_is_named(trainer: Any) -> None:
    trainer.args.remove_unused_columns = True
    with pytest.raises(TypeError, match=r"no inputs of the networks; .*remove_unused_columns=False"):
        trainer.evaluate()
