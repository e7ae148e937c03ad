"""The studies of the paper, each one YAML file in this folder: which runs, and what the paper found."""

from __future__ import annotations

from lit_fast.named_yaml import NamedYaml

__all__ = ["load", "names", "text"]

_FILES = NamedYaml(__name__, "study")
names, text, load = _FILES.names, _FILES.text, _FILES.load
