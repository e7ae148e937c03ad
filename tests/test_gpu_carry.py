"""What benchmarks/gpu/prepare.sh makes for a machine with a GPU: used where it fits, refused by name where not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from everyday import exhaustive

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # benchmarks is no part of the installed package

from benchmarks.gpu import carry  # noqa: E402

LIBRARY = f"_C.{carry.python_tag()}.so"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A project of a few files."""
    files = (
        "csrc/ops.cpp",
        "kernels/cuda/loss.cuh",
        "build_backend/cuda_build.py",
        "setup.py",
        "lit_fast/step/lit_step.py",
    )
    for name in files:
        write(tmp_path / "tree" / name, name)
    return tmp_path / "tree"


@pytest.fixture
def folder(tmp_path: Path, tree: Path) -> Path:
    """A folder as prepare.sh makes it, for this machine: an extension, one kernel, one wheel."""
    found = tmp_path / "carried"
    write(found / "lit_fast" / LIBRARY, "the extension")
    files = {"k.cubin": "machine code", "k.json": "{}", "__grp__k.json": json.dumps({
        "child_paths": {"k.cubin": "/elsewhere/KEY/k.cubin", "k.json": "/elsewhere/KEY/k.json"}
    })}  # fmt: skip
    for name, text in files.items():
        write(found / "triton" / "KEY" / name, text)
    wheel(found / "wheels", "carried_example")
    note = {
        "python": carry.python_tag(),
        "torch": torch.__version__,
        "archs": ["sm_90"],
        "needs": {"GLIBC": "2.1"},
        "sources": carry.digest(tree),
    }
    write(found / "carry.json", json.dumps(note))
    return found


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def wheel(folder: Path, name: str) -> None:
    folder.mkdir(exist_ok=True)
    about = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}.py", "carried = True\n")
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")


# --- whether it fits


def test_what_was_made_for_this_machine_fits(folder: Path, tree: Path) -> None:
    assert carry.fits(folder, tree, "9.0") is None
    assert carry.fits(folder, tree) is None  # no GPU to ask for


@pytest.mark.parametrize(
    ("key", "value", "name"),
    [
        ("python", "cpython-38-x86_64-linux-gnu", "Python: made for cpython-38-x86_64-linux-gnu, here it is "),
        ("torch", "1.0.0+cu42", f"torch: made for 1.0.0+cu42, here it is {torch.__version__}"),
        ("archs", ["sm_80", "sm_86"], "GPU: made for sm_80, sm_86, here it is sm_90"),
        ("sources", "0" * 64, "sources: made for 000000000000, here it is "),
        ("needs", {"GLIBC": "99.1"}, "glibc: made for 99.1 or newer, here it is "),
    ],
)
def test_each_mismatch_is_refused_by_name(folder: Path, tree: Path, key: str, value: object, name: str) -> None:
    note = json.loads((folder / "carry.json").read_text())
    write(folder / "carry.json", json.dumps({**note, key: value}))
    reason = carry.fits(folder, tree, "9.0")
    assert reason is not None
    assert name in reason
    assert "benchmarks/gpu/prepare.sh" in reason  # the mend


@pytest.mark.parametrize("gone", ["carry.json", f"lit_fast/{LIBRARY}"])
def test_a_folder_that_is_not_complete_is_refused(folder: Path, tree: Path, gone: str) -> None:
    (folder / gone).unlink()
    reason = carry.fits(folder, tree, "9.0")
    assert reason is not None
    assert Path(gone).name in reason


@pytest.mark.parametrize(
    "name", ["csrc/ops.cpp", "kernels/cuda/loss.cuh", "kernels/cuda/new.cuh", "build_backend/cuda_build.py", "setup.py"]
)
def test_a_changed_source_is_another_digest(tree: Path, name: str) -> None:
    before = carry.digest(tree)
    write(tree / name, "changed")
    assert carry.digest(tree) != before


def test_what_the_extension_is_not_built_from_leaves_the_digest(tree: Path) -> None:
    before = carry.digest(tree)
    write(tree / "lit_fast/step/lit_step.py", "changed")
    write(tree / "build_backend/__pycache__/cuda_build.pyc", "changed")
    assert carry.digest(tree) == before


def test_the_torch_that_would_be_imported_is_told_without_importing_it() -> None:
    code = "import sys; from benchmarks.gpu import carry; print(carry.torch_version(), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [torch.__version__, "False"]


# --- putting it to use


def test_everything_goes_where_it_belongs(
    folder: Path, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/before")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    environment = carry.use(folder, tree, scratch)
    assert (tree / "lit_fast" / LIBRARY).read_text() == "the extension"

    cache = Path(environment["TRITON_CACHE_DIR"])
    assert scratch in cache.parents
    group = json.loads((cache / "KEY" / "__grp__k.json").read_text())
    assert {name: Path(path).read_text() for name, path in group["child_paths"].items()} == {
        "k.cubin": "machine code",
        "k.json": "{}",
    }

    packages, before = environment["PYTHONPATH"].split(os.pathsep)
    assert before == "/before"
    assert (Path(packages) / "carried_example.py").is_file()
    assert scratch in Path(packages).parents


def test_without_kernels_and_wheels_the_extension_is_used(folder: Path, tree: Path, tmp_path: Path) -> None:
    shutil.rmtree(folder / "triton")
    shutil.rmtree(folder / "wheels")
    assert carry.use(folder, tree, tmp_path) == {}
    assert (tree / "lit_fast" / LIBRARY).is_file()


def test_kernels_and_wheels_are_of_use_where_the_extension_does_not_fit(
    folder: Path, tree: Path, tmp_path: Path
) -> None:
    assert set(carry.use(folder, tree, tmp_path, extension=False)) == {"TRITON_CACHE_DIR", "PYTHONPATH"}
    assert not (tree / "lit_fast" / LIBRARY).exists()


def test_an_extension_that_is_there_is_replaced_and_not_written_over(folder: Path, tree: Path, tmp_path: Path) -> None:
    """A process may have loaded it."""
    target = tree / "lit_fast" / LIBRARY
    write(target, "an older one")
    shutil.rmtree(folder / "wheels")  # pip takes seconds
    with target.open() as loaded:
        carry.use(folder, tree, tmp_path)
        assert loaded.read() == "an older one"
    assert target.read_text() == "the extension"


def test_a_wheel_that_pip_refuses_is_told(folder: Path, tree: Path, tmp_path: Path) -> None:
    write(folder / "wheels" / "broken-1.0-py3-none-any.whl", "no archive")
    with pytest.raises(RuntimeError, match=r"wheels .* cannot be installed: .*broken"):
        carry.use(folder, tree, tmp_path)


# --- prepare.sh, with an interpreter that only seems to build, download and compile

INTERPRETER = """#!/bin/sh
case "$*" in
  *setup.py*)
    [ -z "$NO_COMPILER" ] || {{ echo "ops.cpp:1: error: planted"; exit 1; }}
    echo built >lit_fast/_C.{tag}.so ;;
  *"pip download"*)
    while [ "$1" != --dest ]; do shift; done
    mkdir "$2" && truncate --size "$WHEEL_BYTES" "$2/pydantic-1.0-py3-none-any.whl" ;;
  *precompile*) [ -z "$NO_TRITON" ] || exit 1; mkdir -p "$3/KEY" && echo kernel >"$3/KEY/k.cubin" ;;
  *"benchmarks.gpu.carry"*) echo '{{}}' >"$3/carry.json" ;;
  *version_info*) echo 3.12 ;;
esac
"""


def prepare(tmp_path: Path, wheel_bytes: int = 1000, **environment: str) -> tuple[subprocess.CompletedProcess, Path]:
    tools = tmp_path / "tools"
    for name, text in {"python": INTERPRETER.format(tag=carry.python_tag()), "strip": "#!/bin/sh\n"}.items():
        write(tools / name, text)
        (tools / name).chmod(0o755)
    settings = {
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "PYTHON": str(tools / "python"),
        "BUILD": str(tmp_path / "build"),
        "WHEEL_BYTES": str(wheel_bytes),
    }
    command = [str(ROOT / "benchmarks/gpu/prepare.sh"), str(tmp_path / "out")]
    environment = {**os.environ, **settings, **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False), tmp_path / "out"


def test_prepare_makes_one_folder_and_leaves_the_checkout_alone(tmp_path: Path) -> None:
    before = sorted(ROOT.glob("lit_fast/_C*"))
    done, out = prepare(tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()) == [
        "carry.json",
        f"lit_fast/{LIBRARY}",
        "triton/KEY/k.cubin",
        "wheels/pydantic-1.0-py3-none-any.whl",
    ]
    assert "of at most 40000000" in done.stdout
    assert sorted(ROOT.glob("lit_fast/_C*")) == before
    again, _ = prepare(tmp_path)
    assert again.returncode == 0, again.stderr


def test_prepare_refuses_a_folder_of_more_than_40_megabytes(tmp_path: Path) -> None:
    done, _ = prepare(tmp_path, 41_000_000)
    assert done.returncode == 1
    assert "more than 40000000" in done.stderr


def test_prepare_does_without_kernels_that_do_not_compile(tmp_path: Path) -> None:
    done, out = prepare(tmp_path, NO_TRITON="1")
    assert done.returncode == 0
    assert "without Triton's kernels" in done.stderr
    assert not (out / "triton").exists()


def test_prepare_leaves_nothing_of_an_earlier_call_where_the_build_fails(tmp_path: Path) -> None:
    assert prepare(tmp_path)[0].returncode == 0
    done, out = prepare(tmp_path, NO_COMPILER="1")
    assert done.returncode == 1
    assert "ops.cpp:1: error: planted" in done.stderr
    assert not list(out.iterdir())


# --- Triton's cache

ONE_KERNEL = """
import os
from pathlib import Path
import torch, triton
from triton import knobs
from benchmarks.gpu import precompile
from named_gpu import Driver
from lit_fast.triton.rescale import rescale_launches

found = []
knobs.compilation.listener = lambda *, cache_hit, **_: found.append(cache_hit)
triton.runtime.driver.set_active(Driver(90))
make_launcher = precompile.launcher_maker(Path(os.environ["TRITON_CACHE_DIR"]))
for one in rescale_launches([torch.zeros(64)], torch.tensor(2.0)):
    kernel = one.kernel.warmup(**one.arguments, grid=(one.programs,), num_warps=one.warps)
    make_launcher(kernel.src, kernel.metadata)
print("hit" if found == [True] else "compiled" if found == [False] else found)
"""


@exhaustive
def test_a_kernel_that_was_compiled_elsewhere_is_found_in_the_copied_cache(
    folder: Path, tree: Path, tmp_path: Path
) -> None:
    pytest.importorskip("triton")

    def one_kernel(cache: Path) -> str:
        paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        environment = {**os.environ, "PYTHONPATH": paths, "TRITON_CACHE_DIR": str(cache)}
        environment.pop("TRITON_INTERPRET", None)
        done = subprocess.run([sys.executable, "-c", ONE_KERNEL], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    cache = tmp_path / "made" / "triton"
    assert one_kernel(cache) == "compiled"
    libraries = {path.name.partition(".")[0] for path in cache.glob("*/*.so")}
    assert "cuda_utils" in libraries  # newer versions of Triton have no launchers beside it

    shutil.rmtree(folder / "triton")
    cache.rename(folder / "triton")
    shutil.rmtree(folder / "wheels")
    used = carry.use(folder, tree, tmp_path)["TRITON_CACHE_DIR"]
    assert one_kernel(Path(used)) == "hit"
