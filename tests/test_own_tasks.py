"""Networks and datasets of a user's own, by ``module:function``: texts with masks, language models, pixels."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import toy_tasks
from everyday import exhaustive
from test_cli import lit_fast_command, refused
from torch import Tensor, nn
from torch.utils.data import default_collate
from training_helpers import before_step, differing, interrupt, quiet, weights, without_times

import lit_fast as lf
from lit_fast.errors import ConfigError, Interrupted, SplitError
from lit_fast.loss.targets import resolve
from lit_fast.runs.results import plain_table, table
from lit_fast.settings.classifier import load_experiment
from lit_fast.training.evaluation import evaluate
from lit_fast.training.experiment import run_experiment, train_model

SHORT = ("epochs=2", "batch_size=16", "logging.tensorboard=false", "logging.every=2", "step.device=cpu")
KINDS = {
    "texts": ("bert", "classification", {"blocks": "encoder.layer", "sections": 2}),
    "tagged_texts": ("tagger", "tokens", {"blocks": "encoder.layer", "sections": 2}),
    "sequences": ("lm", "causal_lm", {"blocks": "encoder.layer", "sections": 2}),
    "squares": ("segmenter", "dense", {"at": ["low", "high"]}),
}


@pytest.fixture(scope="module", autouse=True)
def trained_once() -> Any:
    """The teachers of `toy_tasks`, each trained when it is first asked for."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("bert_teacher", "tagger_teacher", "lm_teacher", "segmenter_teacher"):
            patch.setattr(toy_tasks, name, _kept(getattr(toy_tasks, name)))
        yield


def _kept(make: Any) -> Any:
    made: list[Any] = []

    def again() -> Any:
        made[:] = made or [make()]
        return made[0]

    return again


def experiment(kind: str, *overrides: Any) -> Any:
    name, targets, cuts = KINDS[kind]
    own = {
        "data": {"name": f"toy_tasks:{kind}"},
        "teacher": {"model": f"toy_tasks:{name}_teacher"},
        "student": {"models": f"toy_tasks:{name}_student"},
        "variants": ["lit"],
        "targets": targets,
        **cuts,
    }
    return load_experiment("digits", None, [own, *SHORT, *overrides])


def own_module(patch: pytest.MonkeyPatch, **functions: Any) -> None:
    """A module ``mine`` that has these."""
    module = ModuleType("mine")
    vars(module).update(functions)
    patch.setitem(sys.modules, "mine", module)


# -- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_is_trained_in_both_phases_by_any_targets(kind: str, tmp_path: Path) -> None:
    teacher, student = run_experiment(experiment(kind), tmp_path / "run", console=quiet())
    assert [entry["phase"] for entry in student["history"]] == ["lit", "finetune"]
    assert all(math.isfinite(entry["loss"]) for entry in student["history"])
    assert len(student["history"][0]["ir"]) == 2
    assert teacher["accuracy"]["test_last"] > 60
    assert student.get("targets", "classification") == KINDS[kind][1]
    assert student["compression"] > 1.5
    assert student["history"][0]["sections"]["teacher_fed"]


@pytest.mark.parametrize("variant", ["scratch", "kd", "hint", "multi_ir", "one_ir_teacher_input"])
def test_texts_are_trained_by_every_variant(variant: str, tmp_path: Path) -> None:
    student = run_experiment(experiment("texts", f"variants=[{variant}]"), tmp_path / "run", console=quiet())[1]
    assert student["variant"] == variant
    assert math.isfinite(student["history"][-1]["val_loss"])


@pytest.mark.parametrize("kind", ["tagged_texts", "sequences"])
def test_padding_is_left_out_by_a_switch(kind: str, tmp_path: Path) -> None:
    results = run_experiment(experiment(kind, "skip_padding=true"), tmp_path / "run", console=quiet())
    assert math.isfinite(results[1]["history"][0]["loss"])


def test_stem_and_head_start_as_the_teachers_where_they_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class OtherHead(toy_tasks.Bert):
        def __init__(self) -> None:
            super().__init__(2)
            self.head = nn.Sequential(nn.Linear(16, 4), nn.Linear(4, 2))

    own_module(monkeypatch, student=OtherHead)
    one = experiment("texts", {"student": {"models": "mine:student"}}, "epochs=1")
    run_experiment(one, tmp_path / "run", console=quiet())
    trained = weights(tmp_path / "run", "mine.student-lit-seed0")
    teacher = toy_tasks.bert_teacher().state_dict()
    assert trained["embed.weight"].equal(teacher["embed.weight"])  # frozen in the LIT phase, the only one here
    assert "head.1.weight" in trained


def test_interrupted_and_resumed_is_bit_identical(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout in the student, random items, tied weights in the checkpoint."""

    class Noisy(toy_tasks.Sequences):
        def __getitem__(self, index: int) -> dict[str, Tensor]:
            tokens = super().__getitem__(index)["input_ids"]
            return {"input_ids": torch.where(torch.rand(len(tokens)) < 0.1, 0, tokens)}

    own_module(monkeypatch, data=lambda: {**toy_tasks.sequences(), "train": Noisy(48, 0)})
    one = experiment("sequences", {"data": {"name": "mine:data"}}, "epochs=3")
    name = "toy_tasks.lm_student-lit-seed0"
    straight = run_experiment(one, tmp_path / "straight", console=quiet())
    before_step(monkeypatch, 5, interrupt)  # the second of an epoch
    with pytest.raises(Interrupted):
        run_experiment(one, tmp_path / "stopped", console=quiet())
    monkeypatch.undo()
    own_module(monkeypatch, data=lambda: {**toy_tasks.sequences(), "train": Noisy(48, 0)})
    monkeypatch.setattr(toy_tasks, "lm_teacher", _kept(toy_tasks.lm_teacher))
    resumed = run_experiment(one, tmp_path / "stopped", resume=True, console=quiet())
    assert not differing(weights(tmp_path / "straight", name), weights(tmp_path / "stopped", name))
    assert without_times(straight[1]["history"]) == without_times(resumed[1]["history"])


def test_a_teacher_that_has_changed_is_another_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_module(monkeypatch, teacher=toy_tasks.bert_teacher)
    one = experiment("texts", {"teacher": {"model": "mine:teacher"}}, "epochs=1")
    run_experiment(one, tmp_path / "run", console=quiet())
    own_module(monkeypatch, teacher=lambda: toy_tasks.Bert(4))
    with pytest.raises(lf.RunFolderError, match=r"teacher\.weights"):
        run_experiment(one, tmp_path / "run", resume=True, console=quiet())


def test_a_teacher_that_was_never_trained_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_module(monkeypatch, teacher=lambda: toy_tasks.Bert(4))
    one = experiment("texts", {"teacher": {"model": "mine:teacher"}})
    with pytest.raises(ValueError, match="no better than chance"):
        run_experiment(one, tmp_path / "run", console=quiet())


def test_weights_come_from_a_checkpoint_or_are_trained_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(toy_tasks.bert_teacher().state_dict(), tmp_path / "teacher.pt")
    own_module(monkeypatch, teacher=lambda: toy_tasks.Bert(4))
    given = {"teacher": {"model": "mine:teacher", "checkpoint": str(tmp_path / "teacher.pt")}}
    results = run_experiment(experiment("texts", given, "epochs=1"), tmp_path / "run", console=quiet())
    assert results[0]["accuracy"]["val_last"] > 80
    alone = train_model(
        experiment("texts", {"teacher": {"model": "mine:teacher"}}), tmp_path / "alone", console=quiet()
    )
    assert (alone["role"], len(alone["history"])) == ("teacher", 2)


def test_a_network_of_ones_own_is_trained_alone(tmp_path: Path) -> None:
    own = ["--model", "toy_tasks:tagger_student", "--dataset", "toy_tasks:tagged_texts", "--targets", "tokens"]
    cut = ["--blocks", "encoder.layer", "--sections", "2"]
    sets = [part for key in (*SHORT, "epochs=1") for part in ("--set", key)]
    result = lit_fast_command("train", *own, *cut, *sets, "--run-dir", tmp_path / "run")
    assert result.exit_code == 0, result.output
    file = tmp_path / "run" / "runs" / "teacher-toy_tasks.tagger_student" / "last.safetensors"
    (result,) = json.loads((tmp_path / "run" / "results.json").read_text())["results"]
    told = lit_fast_command("evaluate", "--checkpoint", file, *own)
    assert f"{result['accuracy']['test_last']:.2f} % (" in told.stdout, told.output
    message = refused("evaluate", "--checkpoint", file, *own[2:])
    assert "a network of your own: give the function that makes it, --model toy_tasks:tagger_student" in message


def test_targets_of_ones_own_train_and_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def first_token(output: Any, inputs: Any, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return output.logits[:, 0], None if labels is None else labels[:, 0]

    own_module(monkeypatch, first_token=first_token)
    one = experiment("tagged_texts", "targets=mine:first_token")
    results = run_experiment(one, tmp_path / "run", console=quiet())
    assert results[1]["targets"] == "own"
    assert "row %" in plain_table(table(results))


@exhaustive
@pytest.mark.parametrize("kind", KINDS)
def test_the_command_distils_and_shows_what_was_measured(kind: str, tmp_path: Path) -> None:
    _command(kind, tmp_path)


def test_the_command_shows_perplexity(tmp_path: Path) -> None:
    _command("sequences", tmp_path)


def _command(kind: str, folder: Path) -> None:
    name, targets, cuts = KINDS[kind]
    pair = ["--teacher", f"toy_tasks:{name}_teacher", "--student", f"toy_tasks:{name}_student"]
    cut = ["--blocks", cuts["blocks"], "--sections", "2"] if "blocks" in cuts else ["--set", "at=[low, high]"]
    sets = [part for key in SHORT for part in ("--set", key)]
    options = ["--dataset", f"toy_tasks:{kind}", "--targets", targets, "--variant", "lit", "--run-dir", folder / "run"]
    result = lit_fast_command("distill", *pair, *cut, *sets, *options)
    assert result.exit_code == 0, result.output
    head = {"texts": "test %", "tagged_texts": "token %", "sequences": "next %", "squares": "pixel %"}[kind]
    assert head in result.output
    assert f"{head}, last" in (folder / "run" / "report.md").read_text()
    assert ("perplex" in result.stdout) == (kind == "sequences")
    saved = load_experiment(None, folder / "run" / "experiment.yaml")
    assert (saved.targets, saved.cuts_of(saved.student.models[0])) == (
        targets,
        {key: tuple(value) if isinstance(value, list) else value for key, value in cuts.items()},
    )


# -- looking at a pair -------------------------------------------------------------------------------------------------

BENCH = ("--seconds", "0.02", "--no-compile", "--device", "cpu", "--batch-size", "4")


def pair_of(kind: str) -> list[str]:
    name, targets, cuts = KINDS[kind]
    cut = ["--blocks", cuts["blocks"], "--sections", "2"] if "blocks" in cuts else ["--set", "student.at=[low, high]"]
    pair = ["--teacher", f"toy_tasks:{name}_teacher", "--student", f"toy_tasks:{name}_student"]
    return [*pair, *cut, "--targets", targets]


def test_inspect_takes_its_batch_from_the_dataset_and_holds_the_teacher_against_chance() -> None:
    result = lit_fast_command("inspect", *pair_of("texts"), "--dataset", "toy_tasks:texts")
    assert result.exit_code == 0, result.output
    first, *lines = result.stdout.splitlines()
    assert first.endswith("student toy_tasks:bert_student, input_ids 2 x 8, attention_mask 2 x 8")
    assert [line.split()[0] for line in lines[3:7]] == ["stem", "section1", "section2", "head"]
    assert lines[3].endswith("copied, frozen")
    assert "the teacher is recorded, its own forward runs" in result.stdout


def test_inspect_takes_a_batch_of_a_function(monkeypatch: pytest.MonkeyPatch) -> None:
    own_module(monkeypatch, batch=lambda: torch.rand(2, 1, 8, 8), nothing=lambda: None)
    result = lit_fast_command("inspect", *pair_of("squares"), "--example", "mine:batch")
    assert result.exit_code == 0, result.output
    assert "segmenter_student, 2 x 1 x 8 x 8" in result.stdout
    expected = (
        "--example mine:nothing: expected a batch, a tensor, or a tuple or dict of tensors [B, ...], got NoneType"
    )
    assert expected in refused("inspect", *pair_of("squares"), "--example", "mine:nothing")
    assert "leave it out" in refused("inspect", "--teacher", "resnet32", "--student", "resnet20", "--blocks", "layer1")


@pytest.mark.parametrize("kind", KINDS)
def test_bench_measures_a_pair_of_ones_own(kind: str, tmp_path: Path) -> None:
    """Every way is held to the eager one, the plain one included."""
    out = tmp_path / "step.json"
    result = lit_fast_command("bench", *pair_of(kind), "--dataset", f"toy_tasks:{kind}", *BENCH, "--out", out)
    assert result.exit_code == 0, result.output
    rows = {row["variant"]: row["status"] for row in json.loads(out.read_text())["rows"]}
    own = {"runner": rows.pop("runner")} if kind != "squares" else {}
    assert set(rows.values()) == {"measured"}
    assert set(rows) == {"plain", "eager", "runner"} if kind == "squares" else {"plain", "eager", "fused"}
    assert all("the teacher is recorded, so its own forward runs" in why for why in own.values())


def test_bench_makes_labels_for_an_example_without(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {"input_ids": torch.ones(4, 8, dtype=torch.int64), "attention_mask": torch.ones(4, 8)}
    own_module(monkeypatch, texts=lambda: texts, images=lambda: torch.rand(4, 1, 8, 8), mine=lambda *_: None)
    for kind, name in (("texts", "texts"), ("tagged_texts", "texts"), ("squares", "images")):
        result = lit_fast_command("bench", *pair_of(kind), "--example", f"mine:{name}", *BENCH)
        assert result.exit_code == 0, result.output
        assert "plain     " in result.stdout
    assert "expected a batch with labels" in refused(
        "bench", *pair_of("texts"), "--targets", "mine:mine", "--example", "mine:texts", *BENCH
    )


def test_bench_takes_no_dataset_by_name() -> None:
    message = "--dataset: expected module:function of a dataset of yours, got 'digits'"
    assert message in refused("bench", *pair_of("texts"), "--dataset", "digits")


# -- from Python -----------------------------------------------------------------------------------------------------


def test_distill_cuts_networks_and_takes_datasets(tmp_path: Path) -> None:
    torch.manual_seed(0)
    student = toy_tasks.LanguageModel(2)
    done = lf.distill(
        toy_tasks.lm_teacher(),
        student,
        toy_tasks.sequences(),
        recipe="digits",
        run_dir=tmp_path / "run",
        blocks="encoder.layer",
        sections=2,
        targets="causal_lm",
        overrides=SHORT,
        console=quiet(),
    )
    assert done.student is student
    assert done.results[1]["scores"]["perplexity"] > 1


def test_distill_takes_one_network_that_is_split_and_targets_as_a_function(tmp_path: Path) -> None:
    done = lf.distill(
        lf.split(toy_tasks.bert_teacher(), blocks="encoder.layer", cuts=[3]),
        toy_tasks.Bert(2),
        SimpleNamespace(**toy_tasks.texts(), num_classes=2, collate=default_collate),
        recipe="digits",
        run_dir=tmp_path / "run",
        blocks="encoder.layer",
        targets=lambda output, inputs, labels: (output.logits, labels),
        overrides=SHORT,
        console=quiet(),
    )
    assert done.results[1]["targets"] == "own"


# -- evaluation ------------------------------------------------------------------------------------------------------


class Logits(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": x}


def test_accuracy_and_loss_are_over_the_labels_that_count() -> None:
    logits = torch.randn(2, 3, 4, 5)  # [B, C, H, W]
    labels = torch.randint(0, 3, (2, 4, 5))
    labels[:, 0] = -100
    scores = evaluate(Logits(), [(logits, labels)], resolve("dense", -100, False))
    kept = labels != -100
    rows = logits.movedim(1, -1)[kept]
    assert scores.images == 2 * 3 * 5
    assert scores.classes == 3
    assert scores.accuracy == pytest.approx(100 * (rows.argmax(1) == labels[kept]).double().mean().item())
    assert scores.loss == pytest.approx(nn.functional.cross_entropy(rows, labels[kept]).item())


def test_next_tokens_are_told_by_the_tokens_before() -> None:
    tokens = torch.tensor([[0, 1, 2, 0]])
    logits = 9.0 * nn.functional.one_hot(tokens.roll(-1, 1), 3).float()
    scores = evaluate(_Told(logits), [({"input_ids": tokens}, None)], resolve("causal_lm", -100, False))
    assert (scores.accuracy, scores.images) == (100.0, 3)


class _Told(nn.Module):
    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.logits


def test_rows_that_do_not_count_are_left_out() -> None:
    logits, labels = torch.eye(2)[None], torch.tensor([[0, 0]])
    inputs = {"x": logits, "attention_mask": torch.tensor([[1, 0]])}
    scores = evaluate(_Masked(), [(inputs, labels)], resolve("tokens", -100, True))
    assert (scores.accuracy, scores.images) == (100.0, 1)


class _Masked(nn.Module):
    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(
    ("labels", "message"), [(None, "expected labels, got batches without"), (torch.tensor([-100]), "labels that count")]
)
def test_nothing_to_measure_is_an_error(labels: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(Logits(), [(torch.zeros(1, 3), labels)])


# -- what cannot work ------------------------------------------------------------------------------------------------

TEXTS = [
    *("--teacher", "toy_tasks:bert_teacher", "--student", "toy_tasks:bert_student", "--dataset", "toy_tasks:texts"),
    *("--blocks", "encoder.layer", "--sections", "2", "--set", "step.device=cpu"),
]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--teacher", "no_such:net"], "teacher.model: no_such:net: there is no module 'no_such' here or in the"),
        (["--student", "toy_tasks:nothing"], "toy_tasks:nothing: module 'toy_tasks' has no function 'nothing'"),
        (["--student", "toy_tasks:"], "expected module:function, got 'toy_tasks:'"),
        (["--teacher", "mine:number"], "mine:number: expected the function to return an nn.Module, or one that lf.spl"),
        (["--blocks", "encoder.blocks"], "toy_tasks:bert_teacher: Bert has no submodule 'encoder.blocks'"),
        (["--sections", "3"], "toy_tasks:bert_student: sections: expected a number from 1 to 2, the number of blocks"),
        (
            ["--set", "student.cuts=[1]", "--set", "student.sections=2"],
            "student: sections, cuts: expected one of the two",
        ),
        (["--set", "at=[head]"], "blocks, at: expected one of two ways to cut"),
        (["--set", "blocks=null"], "sections, cuts: they divide a stack of blocks, and there is none; name it: blocks"),
        (["--set", "teacher.model=resnet20", "--set", "teacher.at=[layer1]"], "resnet20 is cut at its own sections"),
        (["--targets", "pixels"], "targets: unknown targets 'pixels'; known: classification, dense, tokens, causal_lm"),
        (
            ["--dataset", "mine:no_val"],
            "mine:no_val: expected the datasets train, val and test, got no val; hold items",
        ),
        (["--dataset", "mine:number"], "mine:number: expected a mapping or an object with the datasets train, val and"),
        (
            ["--dataset", "mine:triples"],
            "expected items (inputs, label), or dicts with 'labels', got a batch of 3 value",
        ),
        (["--set", "data.val_size=3"], "val_size: it is for datasets by name; leave it out, toy_tasks:texts decides"),
        (["--loader", "resident"], "loader 'resident': toy_tasks:texts: its items go to the networks as they are; use"),
        (["--teacher", "mine:split_already", "--set", "teacher.blocks=x"], "it is split already; leave out blocks"),
        (
            [
                "--dataset",
                "toy_tasks:sequences",
                "--teacher",
                "toy_tasks:lm_teacher",
                "--set",
                "student.models=toy_tasks:lm_student",
            ],
            "expected labels, got batches without",
        ),
    ],
)
def test_what_cannot_work_is_told_by_name(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_module(
        monkeypatch,
        number=lambda: 5,
        no_val=lambda: {"train": toy_tasks.Texts(4, 0), "test": toy_tasks.Texts(4, 0)},
        triples=lambda: dict.fromkeys(("train", "val", "test"), [(torch.zeros(2),) * 3] * 4),
        split_already=lambda: lf.split(toy_tasks.Bert(4), blocks="encoder.layer", sections=2),
    )
    result = lit_fast_command("distill", *TEXTS, *arguments, "--run-dir", tmp_path / "run")
    assert result.exit_code == 2
    assert message in result.stderr.partition("error: ")[2]  # after the loader, where that is open already
    assert "Traceback" not in result.output


def test_a_module_that_fails_to_import_something_says_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_written.py").write_text("import no_such_dependency\n")
    monkeypatch.chdir(tmp_path)
    assert "no_such_dependency" in refused("distill", *TEXTS, "--teacher", "half_written:net")


def test_settings_for_both_networks_give_way_to_a_networks_own() -> None:
    one = experiment("texts", "student.cuts=[1]", "teacher.at=[encoder.layer.1, encoder.layer.3]")
    assert one.cuts_of(one.teacher) == {"at": ("encoder.layer.1", "encoder.layer.3")}
    assert one.cuts_of(one.student.models[0]) == {"blocks": "encoder.layer", "cuts": (1,)}


def test_an_experiment_without_own_networks_is_written_as_before() -> None:
    keys = {"blocks", "sections", "cuts", "at", "stem", "targets", "skip_padding"}
    tree = load_experiment("digits").model_dump(mode="json")
    assert not keys & (tree.keys() | tree["teacher"].keys() | tree["student"].keys())
    assert json.dumps(tree)


def test_what_a_network_cannot_be_cut_by_names_the_network(tmp_path: Path) -> None:
    with pytest.raises(SplitError, match=r"student: Bert has no submodule"):
        lf.distill(
            lf.split(toy_tasks.bert_teacher(), blocks="encoder.layer", sections=2),
            toy_tasks.Bert(2),
            toy_tasks.texts(),
            recipe="digits",
            run_dir=tmp_path / "run",
            overrides=[*SHORT, "student.blocks=layers"],
        )


@pytest.mark.parametrize("variant", ["lit", "kd", "scratch"])
@pytest.mark.parametrize("copied_to", ["ir", "all"])
def test_blocks_start_as_the_teachers(variant: str, copied_to: str, tmp_path: Path) -> None:
    rates = [f"phases.{phase}.lr=1e-12" for phase in ("lit", "kd", "scratch", "finetune")]
    still = ("student.copy_blocks=spread", f"student.copied_to={copied_to}", *rates, "optimizer.weight_decay=0.0")
    run_experiment(experiment("texts", *still, f"variants=[{variant}]", "epochs=1"), tmp_path / "run", console=quiet())
    trained = weights(tmp_path / "run", f"toy_tasks.bert_student-{variant}-seed0")
    teacher = toy_tasks.bert_teacher().state_dict()
    equal = [
        torch.allclose(trained[ours], teacher[theirs], rtol=1e-5, atol=1e-8)
        for ours, theirs in (
            ("encoder.layer.0.query.weight", "encoder.layer.0.query.weight"),
            ("encoder.layer.1.query.weight", "encoder.layer.2.query.weight"),
            ("head.weight", "head.weight"),
        )
    ]
    assert equal == [variant == "lit" or copied_to == "all"] * 3


def test_copying_blocks_is_one_of_three_ways_or_a_list() -> None:
    assert experiment("texts", "student.copy_blocks=spread").student.copy_blocks == "spread"
    assert experiment("texts", "student.copy_blocks=[0, 3]").student.copy_blocks == (0, 3)
    with pytest.raises(ConfigError, match=r"student\.copy_blocks"):
        experiment("texts", "student.copy_blocks=middle")
