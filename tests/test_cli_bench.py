"""``lit-fast bench``: what it measures, prints, writes and draws, and what it says to bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_cli import lit_fast_command, refused

SMALL = ["--batch-size", "4", "--image-size", "8", "--seconds", "0.1", "--no-compile"]
BUILT_IN = ["--teacher", "resnet32", "--student", "resnet20", *SMALL]
OWN = """
import lit_fast as lf
from torch import nn

def net(blocks):
    def block(i):
        return nn.Sequential(nn.Conv2d(3 if i == 0 else 4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
    body = nn.Sequential(nn.Sequential(*(block(i) for i in range(blocks))), nn.Sequential(block(1)))
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))

def teacher():
    return lf.split(net(3), at=["0.0", "0.1"])

def student():
    return lf.split(net(1), at=["0.0", "0.1"])

def whole():
    return net(1)

number = 5
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_nets.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_pair_is_measured_in_every_way_and_written(tmp_path: Path) -> None:
    result = lit_fast_command("bench", *BUILT_IN, "--out", tmp_path / "step.json")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert "plain: building and checking it" in result.stderr
    assert "rounds (at least 5, at most 200)" in result.stderr
    assert lines[0].startswith("resnet32 to resnet20, batch 4 of 3 x 8 x 8, fp32, ")
    assert lines[2].split() == ["ms", "images/s", "memory", "x", "plain", "x", "eager", "x", "compile"]
    found = json.loads((tmp_path / "step.json").read_text())
    rows = {row["variant"]: row for row in found["rows"]}
    assert set(rows) == {"plain", "eager", "runner"}
    for line in lines[3:6]:
        way, milliseconds, *_ = line.split()
        assert float(milliseconds) == pytest.approx(rows[way]["median_us"] / 1e3, abs=0.006)
    assert "the median of the ratios of each round" in result.stdout
    assert "A step takes at least" in result.output


def test_networks_of_ones_own_are_measured(own: Path) -> None:
    result = lit_fast_command("bench", "--teacher", "own_nets:teacher", "--student", "own_nets:student", *SMALL)
    assert result.exit_code == 0, result.output
    assert "own_nets:teacher to own_nets:student" in result.output
    assert "runner  " in result.output


@pytest.mark.usefixtures("drawn")
def test_the_profile_is_a_picture_and_traces(tmp_path: Path) -> None:
    result = lit_fast_command("bench", *BUILT_IN, "--profile", tmp_path / "step.png")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "step.png").read_bytes().startswith(b"\x89PNG")
    for name in ("plain", "runner"):
        assert json.loads((tmp_path / f"step-{name}.json").read_text())["traceEvents"]
        assert f"{name}: " in result.output
    assert "teacher " in result.output
    assert "x eager" not in result.output  # nothing was timed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "fp8"], "--precision: expected fp32, bf16, fp16, got 'fp8'"),
        (["--teacher", "resnet33"], "resnet33"),
        (["--teacher", "own_nets:nothing"], "--teacher own_nets:nothing: module 'own_nets' has no function 'nothing'"),
        (["--teacher", "own_nets:number"], "has no function 'number'"),
        (["--teacher", "no_such_module:net"], "there is no module 'no_such_module'"),
        (["--teacher", "own_nets:whole"], "expected a split network, got Sequential: return lf.split(net, at=[...])"),
        (["--teacher", "own_nets:teacher"], "--student: expected 2 sections as --teacher, got 3"),
        (["--profile", "step.txt"], "--profile: expected a file ending in .png, .svg or .pdf, got step.txt"),
        (["--out", "nowhere/step.json"], "--out nowhere/step.json: there is no folder nowhere"),
    ],
)
def test_bad_input_is_named(own: Path, arguments: list[str], message: str) -> None:
    assert message in refused("bench", *BUILT_IN, *arguments)
