"""PEP 517 build backend: setuptools, plus the torch of the environment that the package is installed into.

An extension works only with the torch it was compiled against, while an isolated build environment would fetch a torch
of its own: gigabytes, and often another version. So this backend looks for torch where the package is going to live,
makes it importable for setup.py, and asks the installer for one only where there is none.

pip isolates a build by hiding the site-packages of the interpreter that it runs, so they are those of the target.
``python -m build`` runs the interpreter of a temporary environment instead: there the activated environment
(``VIRTUAL_ENV``) is the one whose torch is meant.
"""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from setuptools.build_meta import *  # noqa: F403  (the hooks that stay as they are)

TORCH = "torch>=2.6"


def _site_packages() -> Iterator[Path]:
    """The folders in which to look for torch, best first."""
    own = Path(sysconfig.get_path("purelib"))
    yield own
    yield Path(sysconfig.get_path("platlib"))
    yield from map(Path, site.getsitepackages())
    if sys.prefix == sys.base_prefix:  # virtual environments do not see the user's packages
        yield Path(site.getusersitepackages())
    active = os.environ.get("VIRTUAL_ENV")
    if active and own in map(Path, sys.path):  # nothing is hidden, so the environment is a temporary one
        plain = "nt" if os.name == "nt" else "posix_prefix"
        scheme = "venv" if "venv" in sysconfig.get_scheme_names() else plain  # Python 3.10 has no "venv"
        # On POSIX the path holds the Python version, so another Python's environment is not found here.
        yield Path(sysconfig.get_path("purelib", scheme, {"base": active, "platbase": active}))


def _find_torch() -> Path | None:
    return next((folder for folder in _site_packages() if (folder / "torch" / "version.py").is_file()), None)


_torch_folder = _find_torch()
if _torch_folder is not None and str(_torch_folder) not in sys.path:
    sys.path.append(str(_torch_folder))  # last: the build environment's own setuptools and ninja come first


def get_requires_for_build_wheel(config_settings: dict[str, str] | None = None) -> list[str]:
    """What to put into the build environment besides pyproject.toml's requirements."""
    return [] if _torch_folder is not None or os.environ.get("LIT_FAST_NO_EXT") == "1" else [TORCH]


get_requires_for_build_editable = get_requires_for_build_wheel
