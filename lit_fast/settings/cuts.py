"""Where networks of one's own are cut: the keywords of `lit_fast.split` as settings."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from lit_fast.settings.base import Strict

__all__ = ["CutConfig", "merged"]

_WAYS = (("blocks", "sections", "cuts"), ("at", "stem"))


class CutConfig(Strict):
    """Keys that are for networks of one's own; none of them is written where it is not used."""

    FOR_OWN: ClassVar[tuple[str, ...]] = tuple(key for way in _WAYS for key in way)

    blocks: str | tuple[str, ...] | None = None
    sections: Annotated[int, Field(ge=1)] | None = None
    cuts: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    at: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    stem: str | None = None

    @property
    def given(self) -> dict[str, Any]:
        """The keywords that are set."""
        return {key: value for way in _WAYS for key in way if (value := getattr(self, key)) is not None}

    @model_validator(mode="after")
    def _one_way(self) -> CutConfig:
        ways = [[key for key in way if key in self.given] for way in _WAYS]
        if all(ways):
            raise ValueError(
                f"{ways[0][0]}, {ways[1][0]}: expected one of two ways to cut, a stack of blocks into sections, or at "
                "named modules, got both; leave one out"
            )
        if self.sections is not None and self.cuts is not None:
            raise ValueError("sections, cuts: expected one of the two, got both; leave one out")
        return self

    @model_serializer(mode="wrap")
    def _used(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        tree: dict[str, Any] = handler(self)
        return {key: value for key, value in tree.items() if key not in self.FOR_OWN or value != fields[key].default}


def merged(own: CutConfig, both: CutConfig) -> dict[str, Any]:
    """The keywords of `lit_fast.split` for a network: its own settings before those for both.

    Raises:
        ValueError: sections or cuts of no blocks.
    """
    kept = both.given
    if "at" in own.given:
        kept = {}
    elif "blocks" in own.given:
        kept = {key: value for key, value in kept.items() if key in ("sections", "cuts")}
    if "sections" in own.given or "cuts" in own.given:
        kept = {key: value for key, value in kept.items() if key == "blocks"}
    keywords = {**kept, **own.given}
    if "blocks" not in keywords and ("sections" in keywords or "cuts" in keywords):
        raise ValueError("sections, cuts: they divide a stack of blocks, and there is none; name it: blocks=NAME")
    return keywords
