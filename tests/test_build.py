"""What was built, how it is found, and what happens without it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import venv
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
import torch

import lit_fast
from lit_fast import extension
from lit_fast.extension import EXTENSION
from lit_fast.loss.backends import native

ROOT = Path(__file__).resolve().parents[1]
RELEASE = torch.__version__.split("+")[0]


def python(code: str, *, executable: Path | str = sys.executable, **environment: str) -> str:
    """What a fresh interpreter prints when it runs `code`; PYTHONPATH and the like by keyword."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "LIT_FAST_NO_EXT")}
    command = [str(executable), "-W", "always", "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env=kept | environment, cwd=ROOT.anchor, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder with a copy of the Python package and no extension in it."""
    shutil.copytree(
        Path(lit_fast.__file__).parent,
        tmp_path / "lit_fast",
        ignore=shutil.ignore_patterns("*.so", "*.pyd", "__pycache__"),
    )
    return tmp_path


# --- build_info


def test_build_info_tells_versions_backend_and_reason() -> None:
    info = lit_fast.build_info()
    assert info["version"] == lit_fast.__version__
    assert info["torch"] == torch.__version__
    assert info["backend"] == ("native" if native.available()[0] else "eager")
    assert info["reason"] == native.available()[1]
    assert info["cuda_archs"] == ()
    assert info["threads"] == torch.get_num_threads()


@pytest.mark.skipif(not native.available()[0], reason=f"no compiled extension: {native.available()[1]}")
def test_build_info_tells_what_the_extension_was_compiled_with() -> None:
    info = lit_fast.build_info()
    assert info["built_for_torch"] is not None
    assert info["built_for_torch"].split(".")[:2] == RELEASE.split(".")[:2]
    assert info["compiler"] is not None
    assert info["compiler"].split()[0] in ("gcc", "clang", "msvc")
    assert info["openmp"] or sys.platform != "linux"
    assert info["extension"] is not None
    assert Path(info["extension"]).is_file()


# --- finding and loading


def test_without_extension_losses_are_eager_and_say_so_once(package: Path) -> None:
    printed = python(
        """
        import torch, lit_fast
        assert lit_fast.build_info()["backend"] == "eager" and lit_fast.build_info()["extension"] is None
        for _ in range(3):
            student = torch.ones(2, requires_grad=True)
            loss = lit_fast.lit_loss([student], [torch.zeros(2)], beta=0.0)
            loss.backward()
            print("loss", loss.item(), student.grad.tolist())
        lit_fast.IRLoss()([torch.ones(2)], [torch.zeros(2)])
        """,
        PYTHONPATH=str(package),
    )
    assert printed.count("loss 1.0 [1.0, 1.0]") == 3
    assert printed.count("UserWarning: lit_fast: no fused loss (native is not available") == 1
    assert "lit_fast was installed without its compiled extension" in printed


@pytest.mark.skipif(not native.available()[0], reason=f"no compiled extension: {native.available()[1]}")
def test_extension_of_another_torch_is_not_loaded(package: Path) -> None:
    path = EXTENSION.path
    assert path is not None
    content = path.read_bytes()
    version = f"torch={EXTENSION.built['torch']}".encode()
    other = b"torch=0" + version[len(b"torch=0") :]  # of the same length: the file stays what it is
    assert content.count(version) == 1
    (package / "lit_fast" / path.name).write_bytes(content.replace(version, other))
    printed = python(
        """
        import torch, lit_fast
        print(lit_fast.build_info()["backend"], "because", lit_fast.build_info()["reason"])
        print("loss", lit_fast.lit_loss([torch.ones(2)], [torch.zeros(2)], beta=0.0).item())
        """,
        PYTHONPATH=str(package),
    )
    named = other.decode().replace("=", " ")
    assert f"eager because the compiled extension is for {named}, this is torch {torch.__version__}" in printed
    assert "loss 1.0" in printed


def test_extension_that_does_not_load_gives_the_loaders_reason(package: Path) -> None:
    suffix = EXTENSION_SUFFIXES[0]
    abi = int(torch.compiled_with_cxx11_abi())
    text = f"not a library lit_fast-build;torch={RELEASE};compiler=gcc 1;openmp=0;cxx11_abi={abi};\0"
    (package / "lit_fast" / f"_C{suffix}").write_text(text)
    printed = python("import lit_fast; print(lit_fast.build_info()['reason'])", PYTHONPATH=str(package))
    assert f"_C{suffix} does not load: " in printed
    assert "install lit_fast again" in printed


def test_build_text_is_read_from_the_file(tmp_path: Path) -> None:
    file = tmp_path / "library"
    file.write_bytes(b"\x7fELF\0\0lit_fast-build;torch=9.8.7;compiler=gcc 1.2;openmp=1;\0more;x=y;\0")
    assert extension._read_build(file) == {"torch": "9.8.7", "compiler": "gcc 1.2", "openmp": "1"}
    file.write_bytes(b"\x7fELF of someone else")
    assert extension._read_build(file) == {}


@pytest.mark.parametrize(
    ("change", "fits"),
    [
        ({}, True),
        ({"torch": ".".join([*RELEASE.split(".")[:2], "99"])}, True),
        ({"torch": "1.13.1"}, False),
        ({"cxx11_abi": str(1 - int(torch.compiled_with_cxx11_abi()))}, False),
    ],
)
def test_extension_fits_torch_of_the_same_minor_release_and_abi(change: dict[str, str], fits: bool) -> None:
    built = {"torch": RELEASE, "cxx11_abi": str(int(torch.compiled_with_cxx11_abi()))} | change
    assert (extension._misfit(built) is None) == fits
    assert extension._misfit({}) is not None


# --- import


def test_import_is_quick_and_loads_no_extras() -> None:
    heavy = ["triton", "pydantic", "sklearn", "matplotlib", "typer", "rich", "yaml", "PIL", "tensorboard", "onnx"]
    printed = python(
        f"""
        import sys, time, torch
        before = set(sys.modules)
        start = time.process_time()
        import lit_fast
        seconds = time.process_time() - start
        new = {{name.split(".")[0] for name in set(sys.modules) - before}}
        print("new:", sorted(new & set({heavy})), "quick:", seconds < 0.5)
        """,
        PYTHONPATH=str(Path(lit_fast.__file__).parents[1]),
    )
    assert "new: [] quick: True" in printed


# --- building


def test_one_list_names_every_source_file() -> None:
    listed = (ROOT / "csrc/sources.txt").read_text().split()
    files = [*ROOT.glob("csrc/**/*.cpp"), *ROOT.glob("csrc/**/*.cu")]
    assert sorted(listed) == sorted(str(path.relative_to(ROOT)) for path in files)
    assert "csrc/sources.txt" in (ROOT / "CMakeLists.txt").read_text()
    assert "csrc/sources.txt" in (ROOT / "setup.py").read_text()


def make_environment(folder: Path, *, torch: bool) -> tuple[Path, Path]:
    """A virtual environment, with a file that looks like torch or without: (python, site-packages)."""
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    executable = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    packages = Path(python("import sysconfig; print(sysconfig.get_path('purelib'))", executable=executable).strip())
    if torch:
        (packages / "torch").mkdir(parents=True)
        (packages / "torch" / "version.py").write_text("")
    return executable, packages


def requirements(executable: Path, stubs: Path, *, hide: Path | None = None, **environment: str) -> tuple[str, bool]:
    """What the build backend asks for in that environment, and whether torch is last on its path.

    Args:
        stubs: a folder in which to put a stand-in for setuptools.
        hide: site-packages to take from the path, as pip does to isolate a build.
    """
    (stubs / "setuptools").mkdir(exist_ok=True)
    (stubs / "setuptools/__init__.py").write_text("")
    (stubs / "setuptools/build_meta.py").write_text("")
    printed = python(
        f"""
        import sys
        sys.path[:] = [entry for entry in sys.path if entry != {str(hide)!r}]
        sys.path.insert(0, {str(ROOT / "build_backend")!r})
        import pathlib, lit_fast_build
        assert lit_fast_build.get_requires_for_build_editable() == lit_fast_build.get_requires_for_build_wheel()
        print(lit_fast_build.get_requires_for_build_wheel(), (pathlib.Path(sys.path[-1]) / "torch").is_dir())
        """,
        executable=executable,
        PYTHONPATH=str(stubs),
        **environment,
    )
    asked, found = printed.strip().rsplit(" ", 1)
    return asked, found == "True"


def test_build_asks_for_torch_only_where_the_target_environment_has_none(tmp_path: Path) -> None:
    with_torch, packages = make_environment(tmp_path / "with", torch=True)
    without, hidden = make_environment(tmp_path / "without", torch=False)
    # As pip runs it: the target's interpreter, its site-packages hidden.
    assert requirements(with_torch, tmp_path, hide=packages) == ("[]", True)
    assert requirements(without, tmp_path, hide=hidden) == ("['torch>=2.6']", False)
    assert requirements(without, tmp_path, hide=hidden, LIT_FAST_NO_EXT="1") == ("[]", False)
    # An activated environment that is not the target plays no role ...
    assert requirements(without, tmp_path, hide=hidden, VIRTUAL_ENV=str(tmp_path / "with"))[0] == "['torch>=2.6']"
    # ... but is the target where a temporary one builds, as `python -m build` makes it.
    assert requirements(without, tmp_path, VIRTUAL_ENV=str(tmp_path / "with")) == ("[]", True)
    assert requirements(without, tmp_path, VIRTUAL_ENV=str(tmp_path / "no such")) == ("['torch>=2.6']", False)


def test_compilers_can_list_the_ops_of_an_extension_that_no_loss_has_used() -> None:
    code = "import lit_fast.extension; from torch._decomp import core_aten_decompositions; core_aten_decompositions()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_the_environment_can_leave_the_extension_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_FAST_NO_EXT", "1")
    assert extension.load() == (False, "LIT_FAST_NO_EXT=1 is in the environment", {}, None)
