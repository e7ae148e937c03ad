"""Results that are JSON but not ours: one line that names file and key, and never a traceback."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from everyday import exhaustive
from safetensors.torch import save_file
from test_report import BASIC, content, run_folder, with_looks
from training_helpers import tiny

from lit_fast import data as lf_data
from lit_fast import models
from lit_fast.errors import CheckpointError, LitFastError, ReportError, RunFolderError
from lit_fast.gan import report as gan_report
from lit_fast.paper.report import plain_tables, read_results, view_of
from lit_fast.report import run as report
from lit_fast.runs.folder import RunFolder
from lit_fast.runs.results import trains_generators
from lit_fast.runs.schema import RunResult
from lit_fast.runs.stored import read_json
from lit_fast.runs.weights import read_info
from lit_fast.training.callbacks import RunInfo
from lit_fast.training.callbacks.logs import JsonLog

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**70, 10**400, 1e308, -1e308, float("nan"), float("inf"), 1e-320, 3.5),
    *("", "x" * 2000, "\x1b[31m", "<script>", "\udcff", "teacher", "causal_lm", [], {}, [[]], {"a": 1}, [None], ["x"]),
)
RESULTS = content([*BASIC, with_looks("lit", 1), with_looks("lit", 2)])
DOCS = Path(__file__).parent.parent / "docs" / "results"


def places(tree: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in entries:
        yield (*above, key)
        yield from places(value, (*above, key))


def mutated(tree: Any, seed: int) -> Any:
    """With one to three values replaced by others or removed, most of them near the top."""
    draw = random.Random(seed)
    tree = copy.deepcopy(tree)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        every = list(places(tree))
        chosen = draw.choice(every if draw.random() < 0.6 else [place for place in every if len(place) <= 4] or every)
        node = tree
        for key in chosen[:-1]:
            node = node[key]
        if draw.random() < 0.25:
            del node[chosen[-1]]
        else:
            node[chosen[-1]] = copy.deepcopy(draw.choice(ODD))
        if not list(places(tree)):
            break
    return tree


def refused(folder: Path, call: Any) -> bool:
    """Whether it was, in a line that names the file."""
    says = ""
    try:
        call()
    except LitFastError as error:
        says = str(error)
    assert "\n" not in says
    assert len(says) < 600
    assert str(folder) in says or not says
    return bool(says)


def test_a_mutated_results_file_is_reported_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report.plots, "draw", lambda *_: None)
    monkeypatch.setattr(report, "draw_sections", lambda *_: None)
    outcomes = []
    for seed in range(200):
        (tmp_path / "results.json").write_text(json.dumps(mutated(RESULTS, seed)))
        outcomes.append(refused(tmp_path, lambda: report.write_report(tmp_path)))
    assert 20 < sum(outcomes) < 180  # some make no difference


@exhaustive
def test_whatever_is_not_refused_can_be_drawn(tmp_path: Path) -> None:
    drawn = 0
    for seed in range(1000, 1040):
        (tmp_path / "results.json").write_text(json.dumps(mutated(RESULTS, seed)))
        drawn += not refused(tmp_path, lambda: report.write_report(tmp_path))
    assert drawn > 4


def test_a_mutated_results_file_of_generators_is_reported_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gan_report, "draw", lambda *_: None)
    whole = json.loads((DOCS / "stargan-short" / "results.json").read_text())
    outcomes = []
    for seed in range(60):
        (tmp_path / "results.json").write_text(json.dumps(mutated(whole, seed)))
        trains_generators(tmp_path)
        outcomes.append(refused(tmp_path, lambda: gan_report.conclude(tmp_path)))
    assert 5 < sum(outcomes) < 55


@pytest.mark.parametrize("name", ["pruning-cpu", "stargan-cpu"])
def test_a_mutated_results_file_of_a_study_is_reported_or_refused(tmp_path: Path, name: str) -> None:
    whole = json.loads((DOCS / "studies" / f"{name}.json").read_text())
    path = tmp_path / "study.json"
    outcomes = []
    for seed in range(60):
        path.write_text(json.dumps(mutated(whole, seed)))
        outcomes.append(refused(tmp_path, lambda: plain_tables(view_of(read_results(path)))))
    assert 5 < sum(outcomes) < 60


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "expected a mapping, got []"),
        ("null", "expected a mapping, got None"),
        ("[" * 100_000, "expected lists and mappings at most 40 deep"),
        ("[" * 500 + "]" * 500, "expected lists and mappings at most 40 deep"),
        ("1" * 10_000, "is not JSON"),
        ("\xff", "is not JSON"),
        ('{"results": 3}', "results: expected a valid list, got 3"),
        ('{"results": [[]]}', r"results.1: expected a mapping, got []"),
    ],
)
def test_the_file_and_the_key_are_named(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "results.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ReportError) as caught:
        report.load_results(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'results.json'}")
    assert says in str(caught.value)


def test_a_value_is_named_with_what_was_expected(tmp_path: Path) -> None:
    whole = content([dict(BASIC[0], accuracy=dict(BASIC[0]["accuracy"], val_last="95"))])
    with pytest.raises(ReportError, match=r"results\.1\.accuracy\.val_last: expected a valid number, got '95'"):
        report.load_results(run_folder(tmp_path, whole["results"]))


# -- files that a resumed run reads ----------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["[]", "null", '"x"', "[[[", "{}", '{"folder": 3}', "\x00", "[" * 100_000])
@pytest.mark.parametrize("name", ["identity.json", "data.json", "bad_files.json"])
def test_what_says_whose_a_folder_is_is_refused_by_name_or_not_needed(tmp_path: Path, name: str, content: str) -> None:
    pair = torch.zeros(40, 1, 8, 8, dtype=torch.uint8), torch.arange(40) % 4
    images = lf_data.from_arrays(pair, test=pair, val_size=8)
    RunFolder(tmp_path / "run", tiny(), images, resume=False).claim()
    (tmp_path / "run" / name).write_text(content)
    if name == "identity.json":
        with pytest.raises(RunFolderError, match=r"identity\.json|holds another experiment") as caught:
            RunFolder(tmp_path / "run", tiny(), images, resume=True)
        assert "\n" not in str(caught.value)
    else:
        RunFolder(tmp_path / "run", tiny(), images, resume=True)


@pytest.mark.parametrize("content", ["[]", "null", "3", '{"name": "x"}', "{", "[" * 100_000])
def test_a_result_is_held_to_its_type(tmp_path: Path, content: str) -> None:
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(RunFolderError, match=r"result\.json") as caught:
        read_json(tmp_path / "result.json", RunResult, RunFolderError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("line", ["[]", "null", "{}", '{"step": "x"}', '{"step": null}', "[" * 100_000, "\xff"])
def test_a_damaged_line_of_a_log_ends_what_is_kept_of_it(
    tmp_path: Path, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    lines = ['{"event": "step", "step": 1}', line, '{"event": "step", "step": 2}']
    (tmp_path / "log.jsonl").write_bytes("\n".join(lines).encode("latin-1"))
    log = JsonLog()
    log.on_train_begin(RunInfo("one", tmp_path, {}, {}, steps=4, step=2))
    log.on_train_end(None)
    assert (tmp_path / "log.jsonl").read_text() == lines[0] + "\n"
    assert "log.jsonl: line 2 is damaged" in caplog.text


# -- weight files ----------------------------------------------------------------------------------------------------

INFO = {
    "model": "resnet20",
    "num_classes": 10,
    "in_channels": 3,
    "image_size": 32,
    "dataset": "cifar10",
    "mean": [0.5] * 3,
    "std": [0.25] * 3,
}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, None),
        ({"in_channels": None}, "in_channels: expected a number for resnet20, got null"),
        ({"in_channels": "3"}, "in_channels: expected a valid integer, got '3'"),
        ({"image_size": 10**12}, "image_size: expected less than or equal to 10000"),
        ({"model": ["resnet20"]}, "model: expected a valid string"),
        ({"mean": None}, "mean: expected a valid list"),
        ({"std": [0.0, 1.0, 1.0]}, "std.1: expected greater than 0"),
        ({"std": [1.0]}, "expected as many values in mean as in std"),
        ({"model": "vdcnn9"}, "length: expected a number for vdcnn9, got null"),
    ],
)
def test_what_a_weight_file_says_of_itself_is_held_to_its_types(
    tmp_path: Path, changes: dict[str, Any], says: str | None
) -> None:
    path = tmp_path / "x.safetensors"
    metadata = {key: json.dumps(value) for key, value in (INFO | changes).items()}
    save_file({"w": torch.zeros(1)}, path, metadata=metadata)
    if says is None:
        assert read_info(path).shape == (3, 32, 32)
        return
    with pytest.raises(CheckpointError) as caught:
        read_info(path)
    assert str(caught.value).startswith(f"{path}: metadata")
    assert says in str(caught.value)


def test_metadata_of_others_are_not_ours(tmp_path: Path) -> None:
    for number, metadata in enumerate(({"format": "pt"}, {"model": "x"}, {"model": '"x"', "mean": "[1]"}, None)):
        save_file({"w": torch.zeros(1)}, tmp_path / f"{number}.safetensors", metadata=metadata)
        assert read_info(tmp_path / f"{number}.safetensors") is None


@pytest.mark.parametrize(
    ("odd", "says"),
    [
        ("complex", r"not floating-point \(1\): weight \(torch.complex64\)"),
        ("nan", r"NaN.* \(1\): bias"),
        ("count", r"not floating-point \(1\): n \(torch.complex64\)"),
        ("key", "a tensor whose key is no text"),
    ],
)
def test_weights_that_are_no_weights_are_refused(tmp_path: Path, odd: str, says: str) -> None:
    model = torch.nn.Linear(2, 2)
    model.register_buffer("n", torch.tensor(3))
    weights: dict[Any, Any] = dict(model.state_dict())
    if odd == "complex":
        weights["weight"] = weights["weight"].to(torch.complex64)
    elif odd == "nan":
        weights["bias"] = weights["bias"] * float("nan")
    elif odd == "count":
        weights["n"] = weights["n"].to(torch.complex64)
    else:
        weights[7] = torch.zeros(1)
    torch.save(weights, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=says):
        models.load_checkpoint(model, tmp_path / "x.pt")
