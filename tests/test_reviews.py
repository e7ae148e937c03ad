"""Lines of reviews to tokens: the alphabet, the form of Zhang et al., the extension against the reference, refusals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_reviews import line

from lit_fast.data import DataError, reviews
from lit_fast.data.alphabet import CHARACTERS, PADDING, SYMBOLS, UNKNOWN, byte_tokens
from lit_fast.extension import EXTENSION
from lit_fast.models.vdcnn import SYMBOLS as EMBEDDED

compiled = pytest.mark.skipif(not EXTENSION.loaded, reason=f"no compiled extension: {EXTENSION.reason}")
IMPLEMENTATIONS = [reviews.by_line, pytest.param(reviews.tokenise, marks=compiled)]


def content(text: str | bytes) -> torch.Tensor:
    raw = text.encode() if isinstance(text, str) else text
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8) if raw else torch.empty(0, dtype=torch.uint8)


def spelled(row: torch.Tensor) -> str:
    """Tokens as characters, unknown ones as @, which the alphabet lacks; without the padding."""
    return "".join({PADDING: "\0", UNKNOWN: "@"}.get(t) or CHARACTERS[t - 2] for t in row.tolist()).rstrip("\0")


# -- the alphabet ------------------------------------------------------------------------------------------------------


def test_there_are_69_tokens_as_many_as_the_network_embeds():
    assert SYMBOLS == EMBEDDED == 69
    assert len(set(CHARACTERS)) == 67


def test_tokens_are_numbered_as_the_paper_prints_the_characters():
    table = byte_tokens()
    assert [table[ord(c)] for c in "az09-^{} "] == [2, 27, 28, 37, 38, 53, 66, 67, 68]
    assert [table[ord(c)] for c in "AZ"] == [2, 27]
    assert {table[b] for b in (0, 9, 10, ord("@"), ord("\\"), 0x80, 0xC3, 0xFF)} == {UNKNOWN}


# -- the form ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenise", IMPLEMENTATIONS)
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
def test_a_review_is_title_space_and_text(tokenise, row, label, text):
    for end in ("", "\n", "\r\n"):
        tokens, labels = tokenise(content(row + end), "f.csv", length=40, classes=2)
        assert (tokens.dtype, tokens.shape, labels.dtype, labels.tolist()) == (
            *(torch.uint8, (1, 40), torch.uint8),
            [label],
        )
        assert spelled(tokens[0]) == text


@pytest.mark.parametrize("tokenise", IMPLEMENTATIONS)
def test_long_reviews_are_cut_and_short_ones_padded_with_zeros(tokenise):
    tokens, labels = tokenise(content('"1","ab","cd"\n"2","","e"\n'), "f.csv", length=4, classes=2)
    assert [spelled(row) for row in tokens] == ["ab c", " e"]
    assert tokens[1, 2:].tolist() == [0, 0]
    assert labels.tolist() == [0, 1]


@pytest.mark.parametrize("tokenise", IMPLEMENTATIONS)
def test_no_lines_give_no_rows(tokenise):
    tokens, labels = tokenise(content(""), "f.csv", length=4, classes=2)
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


@pytest.mark.parametrize("tokenise", IMPLEMENTATIONS)
@pytest.mark.parametrize("bad", MALFORMED, ids=lambda b: repr(b)[2:-1])
def test_a_malformed_line_is_named_by_its_number(tokenise, bad):
    with pytest.raises(DataError) as error:
        tokenise(content(GOOD * 70 + bad + b"\n" + GOOD + bad + b"\n"), "d/f.csv", length=8, classes=2, first_line=30)
    assert str(error.value).startswith("d/f.csv: line 100: ")
    assert MALFORMED[bad] in str(error.value)


# -- the extension is the reference ------------------------------------------------------------------------------------

texts = st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\n"), max_size=30)
rows = st.tuples(st.integers(1, 5), texts, texts).map(lambda fields: line(*fields).encode())
noise = st.binary(max_size=30).map(lambda b: b.replace(b"\n", b"n"))
damaged = st.tuples(
    rows, st.integers(0, 80), st.sampled_from([b"", b'"', b"\\", b",", b"\x80", b"\xf4\x90", b"\r"])
).map(lambda t: t[0][: t[1]] + t[2] + t[0][t[1] + 1 :])


def outcome(tokenise, raw: bytes, length: int):
    try:
        tokens, labels = tokenise(content(raw), "f.csv", length=length, classes=5)
    except DataError as error:
        return str(error)
    return tokens.tolist(), labels.tolist()


@compiled
@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.one_of(rows, rows, damaged, noise), max_size=6),
    st.integers(1, 70),
    st.sampled_from([b"", b"\n", b"\n\n"]),
)
@example([b'"1","a\\","n"'], 9, b"\n")
@example([b'"1","\xe0\x80\x80","n"', b'"1","\xf0\x8f\xbf\xbf",""'], 9, b"")
def test_the_extension_gives_what_the_reference_gives(lines, length, end):
    raw = b"\n".join(lines) + end
    assert outcome(reviews.tokenise, raw, length) == outcome(reviews.by_line, raw, length)


@compiled
@settings(max_examples=300, deadline=None)
@given(st.binary(min_size=1, max_size=5).map(lambda b: b.replace(b"\n", b" ").replace(b'"', b" ")))
def test_the_extension_knows_utf8_as_python_does(raw):
    row = b'"1","","' + raw + b'"'
    assert outcome(reviews.tokenise, row, 12) == outcome(reviews.by_line, row, 12)


@compiled
def test_many_lines_over_several_threads_keep_their_order():
    raw = "".join(line(i % 5 + 1, str(i), "text") + "\n" for i in range(3000))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        tokens, labels = reviews.tokenise(content(raw), "f.csv", length=9, classes=5)
    finally:
        torch.set_num_threads(before)
    assert [spelled(row) for row in tokens] == [f"{i} text"[:9] for i in range(3000)]
    assert labels.tolist() == [i % 5 for i in range(3000)]


@compiled
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(4), torch.zeros(256, dtype=torch.uint8), 4, 2), "content: expected uint8"),
        (
            (torch.zeros(4, dtype=torch.uint8), torch.zeros(9, dtype=torch.uint8), 4, 2),
            r"table: expected uint8 \[256\]",
        ),
        ((torch.zeros(4, dtype=torch.uint8), torch.zeros(256, dtype=torch.uint8), 0, 2), "expected length > 0"),
    ],
)
def test_the_op_refuses_other_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        torch.ops.lit_fast.tokenise_reviews(*arguments)


def test_without_the_extension_the_reference_is_used(monkeypatch):
    monkeypatch.setattr(reviews, "EXTENSION", type("None", (), {"loaded": False})())
    tokens, _ = reviews.tokenise(content('"1","a","b"'), "f.csv", length=5, classes=2)
    assert spelled(tokens[0]) == "a b"
