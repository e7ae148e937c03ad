r"""Reviews as Zhang et al. 2015 publish them, one per line, ``"class","title","text"``, to rows of tokens.

A quote within a field is doubled, a line break is written ``\n`` (a backslash and an n). Title, a space and text make
one string, as in LIT's released code; letters are taken as lower case (ASCII only), a character outside the alphabet is
one unknown token, so is a line break; the string is cut or padded to a fixed length.
"""

from __future__ import annotations

import codecs
import re

import torch
from torch import Tensor

from lit_fast.data.formats.alphabet import PADDING, byte_tokens
from lit_fast.errors import ClassError, DataError, MalformedReview

__all__ = ["tokenise"]

_TABLE = byte_tokens()
_FIELD = r'"([^"]*(?:""[^"]*)*)"'
_ROW = re.compile(rf'"([0-9]{{1,9}})",{_FIELD},{_FIELD}', re.DOTALL)
_BEYOND_ASCII = re.compile("[^\0-\x7f]")


def tokenise(content: bytes, path: str, *, length: int, classes: int, first_line: int = 1) -> tuple[Tensor, Tensor]:
    """Tokens and labels of whole lines.

    Args:
        content: a file or a part of it that begins with a line and ends with one.
        path: the file as messages name it.
        length: tokens per review.
        classes: how many there are; the file counts them from 1.
        first_line: the number in the file of the content's first line.

    Returns:
        (tokens uint8 [N, length], labels uint8 [N] from 0).

    Raises:
        DataError: naming the file, the line and what is wrong with it; `ClassError` if that is a class too high.
    """
    if first_line == 1:
        content = content.removeprefix(codecs.BOM_UTF8)
    lines = content.split(b"\n")
    if not lines[-1]:
        lines.pop()  # what follows the last line's end
    rows = bytearray()
    labels = bytearray()
    for number, line in enumerate(lines, first_line):
        try:
            label, row = _review(line.removesuffix(b"\r"), length, classes)
        except MalformedReview as wrong:
            raise wrong.error(f"{path}: line {number}: {wrong}") from None
        rows += row
        labels.append(label)
    if not labels:
        return torch.empty((0, length), dtype=torch.uint8), torch.empty(0, dtype=torch.uint8)
    tokens = torch.frombuffer(rows, dtype=torch.uint8).view(-1, length)
    return tokens, torch.frombuffer(labels, dtype=torch.uint8)


def _review(line: bytes, length: int, classes: int) -> tuple[int, bytes]:
    """Label and tokens of one line."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedReview(f"byte {error.start + 1} is not UTF-8 ({error.reason}); save the file as UTF-8") from None
    row = _ROW.fullmatch(text)
    if row is None:
        raise MalformedReview(_explain(text))
    label = int(row[1])
    if not 1 <= label <= classes:
        raise MalformedReview(f"class {label} is outside 1..{classes}", ClassError if label else DataError)
    review = " ".join(field.replace('""', '"').replace("\\n", "\n") for field in row.group(2, 3))
    ascii_only = _BEYOND_ASCII.sub("\0", review[:length])  # \0 is as unknown as they are
    return label - 1, ascii_only.encode("ascii").translate(_TABLE).ljust(length, bytes([PADDING]))


def _explain(text: str) -> str:
    """Why a line is not three quoted fields, the first of them a number."""
    form = 'expected "class","title","text"'
    if not text:
        return f"it is empty; {form}"
    fields: list[str] = []
    rest = text
    while True:
        found = re.match(_FIELD, rest, re.DOTALL)
        if found is None:
            kind = "has no closing quote" if rest.startswith('"') else "is not quoted"
            return f"field {len(fields) + 1} {kind}; {form}, quotes within doubled and line breaks written \\n"
        fields.append(found[1])
        rest = rest[found.end() :]
        if not rest:
            break
        if not rest.startswith(","):
            return f'field {len(fields)} goes on behind its closing quote; {form}, quotes within doubled ("")'
        rest = rest[1:]
    if len(fields) != 3:
        return f"{len(fields)} fields; {form}"
    return f'class "{fields[0][:20]}" is not a number of up to 9 digits; {form}'
