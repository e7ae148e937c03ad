"""Every file of examples/ runs at its tiny size, and trains: losses fall, weights are written and load again."""

from __future__ import annotations

import re
import runpy
import socket
import sys
from pathlib import Path

import pytest
import torch
from everyday import exhaustive
from processes import torchrun

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
# Of these timm is not in the test extra: it brings torchvision.
NEEDED = {
    "accelerate_loop": "accelerate",
    "bert": "transformers",
    "lightning_module": "lightning",
    "llama": "transformers",
    "timm_vit": "timm",
}
LOOPS = ("plain_loop", "accelerate_loop")


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(name: str, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """What the example prints."""
    if name in NEEDED:
        pytest.importorskip(NEEDED[name], reason=f"{NEEDED[name]} is not installed")
    runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](["--tiny", *options])
    return capsys.readouterr().out


def numbers(what: str, printed: str) -> list[float]:
    return [float(number) for number in re.findall(rf"{what}:? ([\d.]+)", printed)]


def check_falls(losses: list[float]) -> None:
    assert len(losses) >= 3
    assert losses[-1] < 0.95 * losses[0], losses


def test_all_examples_are_run_here() -> None:
    tested = Path(__file__).read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        assert f'run("{path.stem}"' in tested or path.stem in LOOPS, path.name


def test_cifar_prints_the_table_of_both_networks(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = run("cifar", capsys)
    lit = printed.partition("LIT phase")[2]
    check_falls(numbers("loss", lit.partition("fine-tune")[0]))
    rows = [line.split() for line in printed.splitlines()[-2:]]
    assert [row[:2] for row in rows] == [["resnet20", "checkpoint"], ["resnet8", "lit"]]
    assert [row[4] for row in rows] == ["1.00x", "3.59x"]
    assert float(rows[1][5]) > 30.0  # of ten classes
    assert "conv1.weight" in torch.load("student.pt")


@pytest.mark.parametrize("name", LOOPS)
def test_loops_train_and_write_a_network(name: str, in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = run(name, capsys)
    check_falls(numbers("loss", printed))
    (saved,) = in_folder.glob("*.pt")
    assert "conv1.weight" in torch.load(saved)
    if name == "plain_loop":
        assert re.findall(r"^(\w+): test", printed, re.MULTILINE) == ["student", "EMA", "SWA"]


@pytest.mark.parametrize("options", [(), pytest.param(("--manual",), marks=exhaustive)], ids=["automatic", "manual"])
@pytest.mark.filterwarnings("ignore")
def test_lightning_trains_and_keeps_the_student_alone(
    options: tuple[str, ...], in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = run("lightning_module", capsys, *options)
    check_falls(numbers("loss", printed))
    assert numbers("val", printed)[-1] > 30.0
    keys = torch.load("lightning.ckpt", weights_only=False)["state_dict"]
    assert "model.student.model.conv1.weight" in keys
    assert all(key.startswith("model.student.model.") for key in keys)


@pytest.mark.filterwarnings("ignore")
def test_the_trainer_evaluates_the_student_and_saves_it(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = run("bert", capsys)
    check_falls([float(number) for number in re.findall(r"'ir': '?([\d.e-]+)", printed)])
    (accuracy,) = numbers("accuracy", printed)
    assert accuracy >= 50.0
    transformers = pytest.importorskip("transformers")
    student = transformers.AutoModelForSequenceClassification.from_pretrained("bert-student")
    assert len(student.bert.encoder.layer) == 2


@pytest.mark.filterwarnings("ignore")
def test_a_language_model_trains_and_is_saved(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = run("llama", capsys)
    assert "start as the teacher's [0, 4]" in printed
    check_falls(numbers("loss", printed))
    assert printed.rstrip().endswith("lr 0.0e+00")  # as many updates as the schedule was made for
    transformers = pytest.importorskip("transformers")
    assert transformers.AutoModelForCausalLM.from_pretrained("llama-student").config.num_hidden_layers == 2


def test_segmentation_finds_shapes(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = run("segmentation", capsys)
    check_falls(numbers("loss", printed))
    assert min(numbers("mean IoU", printed)) > 0.4  # background alone is 0.3
    assert "stem.0.weight" in torch.load("fcn-student.pt")


def test_a_vit_of_timms_trains(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = run("timm_vit", capsys)
    assert "start as the teacher's [0, 2, 4]" in printed
    check_falls(numbers("loss", printed))


def test_without_timm_the_example_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(SystemExit, match="needs timm: pip install timm"):
        runpy.run_path(str(EXAMPLES / "timm_vit.py"))


def test_a_process_alone_trains_by_ddp(
    in_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in alone.items():
        monkeypatch.setenv(name, value)
    check_falls(numbers("loss", run("ddp", capsys)))
    assert "embed.weight" in torch.load("student.pt")


def in_two_processes(name: str, folder: Path, *options: str) -> list[float]:
    """The losses that the example prints, run by torchrun."""
    done = torchrun(2, str(EXAMPLES / f"{name}.py"), "--tiny", *options, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return numbers("loss", done.stdout)


@exhaustive
def test_two_processes_train_alike_by_ddp_and_by_fsdp(tmp_path: Path) -> None:
    results = []
    for options in ([], ["--fsdp"]):
        losses = in_two_processes("ddp", tmp_path, *options)
        # The biases of attention's keys have no gradient but rounding, which AdamW makes a whole step of.
        weights = torch.load(tmp_path / "student.pt")
        results.append((losses, {key: value for key, value in weights.items() if not key.endswith("in_proj_bias")}))
    check_falls(results[0][0])
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-4)


@exhaustive
@pytest.mark.parametrize("name", ["accelerate_loop", "bert"])
def test_frameworks_train_in_two_processes(name: str, tmp_path: Path) -> None:
    pytest.importorskip(NEEDED[name], reason=f"{NEEDED[name]} is not installed")
    losses = in_two_processes(name, tmp_path)
    if name == "accelerate_loop":
        check_falls(losses)
    assert [path for path in tmp_path.rglob("*") if path.suffix in (".pt", ".safetensors")]
