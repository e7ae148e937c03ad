"""build_backend/cuda_build.py: whether CUDA is built, by which compiler, for which devices."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


def load():
    spec = importlib.util.spec_from_file_location("cuda_build", ROOT / "build_backend/cuda_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


cuda_build = load()


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LIT_FAST_CPU_ONLY", "FORCE_CUDA", "CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def toolkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes a folder that looks like a CUDA toolkit; its nvcc on the PATH is a script elsewhere that calls it."""

    def make(release: str = "13.0", codes: str = "sm_75 sm_80 sm_90 sm_120") -> Path:
        home = tmp_path / "toolkit"
        for file in ("include/cuda_runtime.h", "lib64/libcudart.so"):
            (home / file).parent.mkdir(parents=True)
            (home / file).touch()
        (home / "bin").mkdir()
        answers = {
            "--version": f"Cuda compilation tools, release {release}, V{release}.1",
            "--list-gpu-code": codes.replace(" ", "\n"),
            "--dryrun": f"#$ _HERE_={home}/bin\n#$ TOP={home}/bin/..",
        }
        cases = "".join(f"  {option}) printf '%s\\n' '{answer}' ;;\n" for option, answer in answers.items())
        script(home / "bin/nvcc", f'case "$1" in\n{cases}esac')
        script(tmp_path / "path/nvcc", f'exec {home}/bin/nvcc "$@"')
        monkeypatch.setenv("PATH", f"{tmp_path / 'path'}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        return home

    return make


def script(file: Path, text: str) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)


posix = pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for nvcc is a shell script")


@posix
def test_toolkit_is_found_through_an_nvcc_that_is_a_script(toolkit):
    home = toolkit()
    cuda = cuda_build.find()
    assert (cuda.home, cuda.version) == (home, "13.0")
    assert cuda.include_dirs[0] == str(home / "include")
    assert cuda.library_dirs == [str(home / "lib64")]


@posix
def test_all_known_architectures_are_built_and_ptx_of_the_newest(toolkit):
    toolkit(codes="sm_75 sm_80 sm_87 sm_90 sm_90a sm_120 sm_121")
    cuda = cuda_build.find()
    assert cuda.archs == ("sm_75", "sm_80", "sm_90", "sm_120")
    assert cuda.ptx == ("compute_120",)
    assert cuda.gencode[0] == "-gencode=arch=compute_75,code=sm_75"
    assert cuda.gencode[-1] == "-gencode=arch=compute_120,code=compute_120"


@posix
@pytest.mark.parametrize("text", ["9.0 8.0+PTX", "8.0+PTX;9.0", "8.0+PTX, 9.0"])
def test_torch_cuda_arch_list_chooses(toolkit, monkeypatch, text):
    toolkit()
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", text)
    assert cuda_build.find()[3:] == (("sm_80", "sm_90"), ("compute_80",))


@posix
@pytest.mark.parametrize("word", ["7.0", "Hopper", "90"])
def test_architecture_that_nvcc_does_not_know_stops_the_build(toolkit, monkeypatch, word):
    toolkit()
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", f"8.0 {word}")
    with pytest.raises(SystemExit, match=rf"knows \(sm_75 sm_80 sm_90 sm_120\), as '8.0 9.0\+PTX', got '{word}'"):
        cuda_build.find()


@posix
def test_nvcc_of_another_major_version_is_not_used(toolkit, monkeypatch, capfd):
    toolkit(release="12.9")
    assert cuda_build.find() is None
    printed = capfd.readouterr().err
    assert "building for the CPU alone: torch is built for CUDA 13.0" in printed
    assert "is of 12.9; install the CUDA toolkit 13.x" in printed
    monkeypatch.setenv("FORCE_CUDA", "1")
    with pytest.raises(SystemExit, match=r"FORCE_CUDA=1, but torch is built for CUDA 13\.0, .* is of 12\.9; install"):
        cuda_build.find()


@posix
def test_minor_versions_may_differ(toolkit):
    toolkit(release="13.2")
    assert cuda_build.find().version == "13.2"


def test_without_nvcc_the_extension_is_for_the_cpu_and_says_so(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert cuda_build.find() is None
    assert "there is no nvcc on the PATH, in CUDA_HOME or in /usr/local/cuda; install" in capfd.readouterr().err
    monkeypatch.setenv("FORCE_CUDA", "1")
    with pytest.raises(SystemExit, match=r"FORCE_CUDA=1, but torch is built for CUDA 13\.0, and there is no nvcc"):
        cuda_build.find()


def test_torch_without_cuda_is_no_reason_for_words_unless_forced(monkeypatch, capfd):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert cuda_build.find() is None
    assert capfd.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_CUDA", "1")
    with pytest.raises(SystemExit, match="is built without CUDA; install a build of torch with CUDA"):
        cuda_build.find()


@posix
def test_cpu_only_wins(toolkit, monkeypatch):
    toolkit()
    monkeypatch.setenv("LIT_FAST_CPU_ONLY", "1")
    monkeypatch.setenv("FORCE_CUDA", "1")
    assert cuda_build.find() is None


def test_sources_that_need_cuda_are_left_out_without_it():
    listed = (ROOT / "csrc/sources.txt").read_text().split()
    host, device = cuda_build.split_sources(listed, cuda=True)
    assert sorted([*host, *device]) == sorted(listed)
    assert device == ["csrc/cuda/launch.cu"]
    host, device = cuda_build.split_sources(listed, cuda=False)
    assert "csrc/ops.cpp" in host
    assert not any("cuda" in source for source in [*host, *device])
