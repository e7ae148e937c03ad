"""Lines of reviews to tokens: the alphabet, the form of Zhang et al., refusals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_reviews import line

from lit_fast.data import DataError
from lit_fast.data.formats.alphabet import CHARACTERS, PADDING, SYMBOLS, UNKNOWN, byte_tokens
from lit_fast.data.formats.reviews import tokenise
from lit_fast.models import vdcnn9


def spelled(row: torch.Tensor) -> str:
    """Tokens as characters, unknown ones as @, which the alphabet lacks; without the padding."""
    return "".join({PADDING: "\0", UNKNOWN: "@"}.get(t) or CHARACTERS[t - 2] for t in row.tolist()).rstrip("\0")


# -- the alphabet ------------------------------------------------------------------------------------------------------


def test_there_are_69_tokens_as_many_as_the_network_embeds():
    assert SYMBOLS == vdcnn9().embedding.num_embeddings == 69
    assert len(set(CHARACTERS)) == 67


def test_tokens_are_numbered_as_the_paper_prints_the_characters():
    table = byte_tokens()
    assert [table[ord(c)] for c in "az09-^{} "] == [2, 27, 28, 37, 38, 53, 66, 67, 68]
    assert [table[ord(c)] for c in "AZ"] == [2, 27]
    assert {table[b] for b in (0, 9, 10, ord("@"), ord("\\"), 0x80, 0xC3, 0xFF)} == {UNKNOWN}


def test_a_byte_order_mark_at_the_beginning_of_a_file_does_not_count():
    row = b'"1","Bad","Very bad!"\n'
    marked, labels = tokenise(b"\xef\xbb\xbf" + row, "f.csv", length=40, classes=2)
    assert torch.equal(marked, tokenise(row, "f.csv", length=40, classes=2)[0])
    assert labels.tolist() == [0]
    with pytest.raises(DataError, match="line 2"):
        tokenise(b"\xef\xbb\xbf" + row, "f.csv", length=40, classes=2, first_line=2)


# -- the form ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "label", "text"),
    [
        ('"1","Bad","Very  BAD!"', 0, "bad very  bad!"),
        ('"2","","no title"', 1, " no title"),
        ('"2","a ""b"" c","""d"""', 1, 'a "b" c "d"'),
        (r'"1","a\nb","c\d \\n"', 0, "a@b c@d @@"),  # \n is one line break; a backslash alone is a character
        ('"2","caf\u00e9 \u6c34\U0001f600","\u02c6^"', 1, "caf@ @@ @^"),  # one token per character, not per byte
        ('"02","",""', 1, " "),
        ('"1","x,y","z"', 0, "x,y z"),
    ],
)
def test_a_review_is_title_space_and_text(row, label, text):
    for end in ("", "\n", "\r\n"):
        tokens, labels = tokenise((row + end).encode(), "f.csv", length=40, classes=2)
        assert (tokens.dtype, tokens.shape, labels.dtype, labels.tolist()) == (
            *(torch.uint8, (1, 40), torch.uint8),
            [label],
        )
        assert spelled(tokens[0]) == text


def test_long_reviews_are_cut_and_short_ones_padded_with_zeros():
    tokens, labels = tokenise(b'"1","ab","cd"\n"2","","e"\n', "f.csv", length=4, classes=2)
    assert [spelled(row) for row in tokens] == ["ab c", " e"]
    assert tokens[1, 2:].tolist() == [0, 0]
    assert labels.tolist() == [0, 1]


def test_no_lines_give_no_rows():
    tokens, labels = tokenise(b"", "f.csv", length=4, classes=2)
    assert tokens.shape == (0, 4)
    assert labels.shape == (0,)


# -- refusals ----------------------------------------------------------------------------------------------------------

GOOD = b'"1","a","b"\n'
MALFORMED = {
    b"1,a,b": "field 1 is not quoted",
    b'"1",a,"b"': "field 2 is not quoted",
    b'"1","a","b': "field 3 has no closing quote",
    b'"1","a"b","c"': "field 2 goes on behind its closing quote",
    b'"1","a"': '2 fields; expected "class","title","text"',
    b'"1","a","b","c"': "4 fields",
    b'"one","a","b"': 'class "one" is not a number',
    b'"","a","b"': 'class "" is not a number',
    b'"1234567890","a","b"': 'class "1234567890" is not a number of up to 9 digits',
    b'"0","a","b"': "class 0 is outside 1..2",
    b'"3","a","b"': "class 3 is outside 1..2",
    b'"1","caf\xe9","b"': "byte 9 is not UTF-8",
    b'"1","a","\xed\xa0\x80"': "byte 10 is not UTF-8",
    b'\xef\xbb\xbf"1","a","b"': "field 1 is not quoted",  # a byte-order mark
    b"": "it is empty",
}


@pytest.mark.parametrize("bad", MALFORMED, ids=lambda b: repr(b)[2:-1])
def test_a_malformed_line_is_named_by_its_number(bad):
    with pytest.raises(DataError) as error:
        tokenise(GOOD * 70 + bad + b"\n" + GOOD + bad + b"\n", "d/f.csv", length=8, classes=2, first_line=30)
    assert str(error.value).startswith("d/f.csv: line 100: ")
    assert MALFORMED[bad] in str(error.value)


# -- any text ----------------------------------------------------------------------------------------------------------

texts = st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\n\\"), max_size=30)
rows = st.tuples(st.integers(1, 5), texts, texts)
noise = st.binary(max_size=30).map(lambda b: b.replace(b"\n", b"n"))
damaged = st.tuples(
    rows.map(lambda fields: line(*fields).encode()),
    st.integers(0, 80),
    st.sampled_from([b"", b'"', b"\\", b",", b"\x80", b"\xf4\x90", b"\r"]),
).map(lambda t: t[0][: t[1]] + t[2] + t[0][t[1] + 1 :])


@settings(max_examples=100, deadline=None)
@given(st.lists(rows, max_size=6), st.integers(1, 70), st.sampled_from(["\n", "\r\n"]))
def test_every_review_becomes_its_characters(reviews, length, end):
    table = byte_tokens()
    raw = "".join(line(*review) + end for review in reviews).encode()
    tokens, labels = tokenise(raw, "f.csv", length=length, classes=5)
    assert labels.tolist() == [label - 1 for label, _, _ in reviews]
    for row, (_, title, text) in zip(tokens.tolist(), reviews, strict=True):
        expected = [table[ord(c)] if ord(c) < 128 else UNKNOWN for c in f"{title} {text}"][:length]
        assert row == expected + [PADDING] * (length - len(expected))


def outcome(raw: bytes):
    try:
        tokens, labels = tokenise(raw, "f.csv", length=9, classes=5)
    except DataError as error:
        return str(error)
    return tokens.shape, labels.shape


@settings(max_examples=200, deadline=None)
@given(st.one_of(damaged, noise))
def test_a_damaged_line_is_read_or_refused_by_its_number(bad):
    good = line(1, "a", "b").encode() + b"\n"
    found = outcome(good + bad + b"\n" + good)
    assert found == ((3, 9), (3,)) or found.startswith("f.csv: line 2: ")
