"""The recipes of the paper (appendix A) and the demo's, each one YAML file in this folder."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

__all__ = ["load", "names", "text"]


def names() -> list[str]:
    """Names of the recipes that come with the package."""
    found = (entry.name for entry in files(__name__).iterdir())
    return sorted(name.removesuffix(".yaml") for name in found if name.endswith(".yaml"))


def text(name: str) -> str:
    """The YAML text of recipe ``name``.

    Raises:
        KeyError: no such recipe; the message lists those there are.
    """
    if name not in names():
        raise KeyError(f"unknown recipe {name!r}; known: {', '.join(names())}")
    return (files(__name__) / f"{name}.yaml").read_text(encoding="utf-8")


def load(name: str) -> dict[str, Any]:
    """Recipe ``name`` as nested plain dictionaries; see `text` for what is raised."""
    import yaml

    return dict(yaml.safe_load(text(name)))
