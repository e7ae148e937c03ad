"""A file of a run folder that is damaged or another's is named, and neither trained on nor reported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from everyday import exhaustive
from test_report import BASIC
from training_helpers import before_step, differing, interrupt, quiet, tiny, weights

import lit_fast as lf
from lit_fast.errors import CheckpointError, Interrupted, LitFastError, ManifestError, RunFolderError, StoreError
from lit_fast.runs.checkpoint import Checkpoint, CheckpointStore
from lit_fast.runs.folder import RunFolder
from lit_fast.runs.manifest import MANIFEST, check_beside, check_manifest, write_manifest
from lit_fast.training.experiment import run_experiment

TEACHER, STUDENT = "teacher-resnet20", "resnet20-lit-seed0"


def flip(path: Path, other: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def empty(path: Path, other: Path) -> None:
    path.write_bytes(b"")


def exchange(path: Path, other: Path) -> None:
    shutil.copyfile(other, path)


def remove(path: Path, other: Path) -> None:
    path.unlink()


DAMAGES: tuple[Callable[[Path, Path], None], ...] = (flip, cut, empty, exchange, remove)


# -- a folder of files -----------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Two folders that differ in what they hold: one, and the other's."""
    for name in ("one", "other"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "a.bin").write_bytes(name.encode() * 20)
        (folder / "b.bin").write_bytes(name.encode() * 30)
        write_manifest(folder, name, ["a.bin", "b.bin"])
    check_manifest(tmp_path / "one", "one")
    return tmp_path


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["a.bin", "b.bin", MANIFEST])
def test_a_file_that_is_not_as_it_was_written_is_named(files: Path, name: str, damage: Callable) -> None:
    damage(files / "one" / name, files / "other" / name)
    with pytest.raises(ManifestError, match=name.replace(MANIFEST, "(manifest.json|[ab].bin)")):
        check_manifest(files / "one", "one")


def test_a_folder_as_a_whole_is_of_one_run_alone(files: Path) -> None:
    with pytest.raises(ManifestError, match=r"manifest\.json is of another run or step: expected one, got 'other'"):
        check_manifest(files / "other", "one")


def test_every_single_bit_of_a_manifest_counts(files: Path) -> None:
    path = files / "one" / MANIFEST
    whole = path.read_bytes()
    for at in range(0, len(whole), 3):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 2]) + whole[at + 1 :])
        try:
            check_manifest(files / "one", "one")
        except ManifestError:
            continue
        assert json.loads(path.read_text())["files"] == json.loads(whole)["files"]  # a space of the layout


def test_one_file_alone_is_held_to_the_manifest_beside_it(files: Path) -> None:
    check_beside(files / "one" / "a.bin")
    (files / "one" / "c.bin").write_bytes(b"not of the run")
    check_beside(files / "one" / "c.bin")
    flip(files / "one" / "a.bin", files)
    with pytest.raises(CheckpointError, match=r"a\.bin is not the file that was written.*move it out of the run's"):
        check_beside(files / "one" / "a.bin")


# -- checkpoints and runs --------------------------------------------------------------------------------------------


def saved(folder: Path, of: str, value: float) -> CheckpointStore:
    store = CheckpointStore(folder, of)
    for step in (1, 2):
        store.save(
            Checkpoint(step, {"w": torch.full((40,), value + step)}, {"w": torch.full((3,), value)}, {"n": value})
        )
    return store


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["model.safetensors", "best.safetensors", "state.pt", MANIFEST])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: Callable
) -> None:
    store = saved(tmp_path / "one", "one", 0.5)
    saved(tmp_path / "other", "other", 7.0)
    last, other = (tmp_path / run / "step-000000002" / name for run in ("one", "other"))
    damage(last, other)
    loaded = store.load()
    assert loaded is not None
    assert loaded.step == 1
    assert loaded.model["w"][0] == 1.5
    assert str(last.parent) in caplog.text
    assert "trying the one before it" in caplog.text
    damage(tmp_path / "one" / "step-000000001" / name, other)
    with pytest.raises(StoreError, match="no checkpoint of this run can be read") as caught:
        store.load()
    assert str(last.parent) in str(caught.value)
    store.save(Checkpoint(2, {"w": torch.ones(3)}, None, {}))  # makes room for what is trained again
    assert store.load().step == 2


def test_a_whole_checkpoint_of_another_run_or_step_is_not_taken(tmp_path: Path) -> None:
    store = saved(tmp_path / "one", "one", 0.5)
    saved(tmp_path / "other", "other", 7.0)
    shutil.rmtree(tmp_path / "one" / "step-000000002")
    shutil.copytree(tmp_path / "other" / "step-000000002", tmp_path / "one" / "step-000000002")
    assert store.load().step == 1
    (tmp_path / "one" / "step-000000001").rename(tmp_path / "one" / "step-000000003")
    with pytest.raises(StoreError, match="of another run or step"):
        store.load()


def test_a_users_folder_beside_checkpoints_is_left_alone(tmp_path: Path) -> None:
    for name in ("step-notes", "step-1"):
        (tmp_path / "c" / name).mkdir(parents=True)
    saved(tmp_path / "c", "one", 0.5).save(Checkpoint(3, {"w": torch.ones(1)}, None, {}))
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == [
        "step-000000002",
        "step-000000003",
        "step-1",
        "step-notes",
    ]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["last.safetensors", "result.json", MANIFEST])
def test_a_run_that_has_ended_is_held_to_its_manifest(tmp_path: Path, name: str, damage: Callable) -> None:
    pair = torch.zeros(40, 1, 8, 8, dtype=torch.uint8), torch.arange(40) % 4
    data = lf.data.from_arrays(pair, test=pair, val_size=8)
    runs = []
    for number, place in enumerate(("one", "other")):
        runs.append(RunFolder(tmp_path / place, tiny(), data, resume=False))
        assert runs[number].finished("a") is None
        (runs[number].run("a") / "last.safetensors").write_bytes(place.encode())
        result = dict(BASIC[0], seconds=number, files={"last": "runs/a/last.safetensors"})
        runs[number].finish("a", result)
        assert runs[number].finished("a") == result
    file, other = (tmp_path / place / "runs" / "a" / name for place in ("one", "other"))
    damage(file, other)
    if (name, damage) == ("result.json", remove):
        assert runs[0].finished("a") is None  # it ends again, from its last checkpoint
        return
    named = r"last\.safetensors|manifest\.json|result\.json" if name == MANIFEST else rf"{name}|manifest\.json"
    with pytest.raises(RunFolderError, match=rf"run a has ended, but .*({named}).*--resume ends this run"):
        runs[0].finished("a")


# -- a whole experiment ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``whole`` has ended, ``one`` was stopped in the student's last epochs, ``other`` has another seed."""
    root = tmp_path_factory.mktemp("manifest")
    run_experiment(tiny(), root / "whole", console=quiet())
    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, 6, interrupt)
        with pytest.raises(Interrupted):
            run_experiment(tiny(), root / "one", console=quiet())
    run_experiment(tiny("teacher.seed=1", "loss.beta=0.5"), root / "other", console=quiet())
    return root


def resumed(folders: Path, run_dir: Path) -> str:
    """What becomes of a folder: "as never damaged", or the words of the refusal."""
    try:
        run_experiment(tiny(), run_dir, resume=True, console=quiet())
    except LitFastError as error:
        return str(error)
    for name in (TEACHER, STUDENT):
        for which in ("last", "best"):
            assert not differing(weights(run_dir, name, which), weights(folders / "whole", name, which))
    return "as never damaged"


@exhaustive
@pytest.mark.parametrize(
    ("file", "damage"),
    [
        (f"runs/{TEACHER}/last.safetensors", flip),
        (f"runs/{TEACHER}/best.safetensors", remove),
        (f"runs/{TEACHER}/result.json", exchange),
        (f"runs/{TEACHER}/{MANIFEST}", remove),
    ],
)
def test_a_teacher_that_is_not_as_it_was_trained_teaches_nobody(
    folders: Path, tmp_path: Path, file: str, damage: Callable
) -> None:
    shutil.copytree(folders / "one", tmp_path / "run")
    damage(tmp_path / "run" / file, folders / "other" / file)
    says = resumed(folders, tmp_path / "run")
    assert says.startswith(f"run {TEACHER} has ended, but {tmp_path / 'run' / file} ")
    (tmp_path / "run" / "runs" / TEACHER / "result.json").unlink()  # as the message advises
    assert resumed(folders, tmp_path / "run") == "as never damaged"


@exhaustive
def test_no_damage_of_any_file_ends_with_other_weights(folders: Path, tmp_path: Path) -> None:
    """Refused by name, or an older checkpoint is taken, or it makes no difference; each file in one of the ways."""
    files = [path.relative_to(folders / "one") for path in sorted((folders / "one").rglob("*")) if path.is_file()]
    assert len(files) > 15
    others = sorted((folders / "other").rglob("*"))
    refused = 0
    for number, file in enumerate(files):
        run_dir = tmp_path / str(number)
        shutil.copytree(folders / "one", run_dir)
        other = next(path for path in reversed(others) if path.name == file.name)
        DAMAGES[number % len(DAMAGES)](run_dir / file, other)
        says = resumed(folders, run_dir)
        named = file.name in says or "experiment" in says
        assert says == "as never damaged" or named, (file, says)
        refused += says != "as never damaged"
    assert 4 <= refused < len(files)


@exhaustive
def test_a_folder_of_an_earlier_version_is_refused(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "one", tmp_path / "run")
    identity = tmp_path / "run" / "identity.json"
    content = json.loads(identity.read_text())
    del content["folder"]
    identity.write_text(json.dumps(content))
    with pytest.raises(RunFolderError, match=r"identity\.json lacks 'folder': it is damaged, or of an earlier version"):
        run_experiment(tiny(), tmp_path / "run", resume=True, console=quiet())


@exhaustive
def test_runs_of_a_copied_folder_are_still_its_own(folders: Path, tmp_path: Path) -> None:
    """But not of a folder that was begun apart, though the experiment is the same."""
    shutil.copytree(folders / "whole", tmp_path / "copy")
    assert resumed(folders, tmp_path / "copy") == "as never damaged"
    shutil.copyfile(folders / "one" / "identity.json", tmp_path / "copy" / "identity.json")
    assert "manifest.json is of another run" in resumed(folders, tmp_path / "copy")
