"""The vector form of the normaliser is the normaliser; every line is counted once."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from domain_canine.cleaning import Cleaner, first_names, hash_array, normalize_lines, on_validation_side
from domain_canine.hashing import hash_names
from domain_canine.normalization_domain_canine import REASONS, InvalidDomain, normalize_domain
from domain_canine.readers import Block
from domain_canine.sample import sample_names


def block(*lines: bytes, first: int = 1, malformed=()) -> Block:
    return Block("a.txt", np.arange(first, first + len(lines)), pa.array(lines, pa.binary()), 1.0, list(malformed))


LABEL = st.text("aZ09-", min_size=0, max_size=6)
NEARLY_NAMES = st.lists(LABEL, min_size=1, max_size=4).map(".".join)
LINES = st.one_of(
    st.binary(max_size=20),
    NEARLY_NAMES.map(str.encode),
    st.tuples(st.sampled_from(["", " ", "\t", "\ufeff", "#", "\x1c", "\xa0"]), NEARLY_NAMES,
              st.sampled_from(["", ".", "..", "\n", "\r\n", ". \r\n", "\nb.com", " # x"])).map(lambda x: "".join(x).encode()),
    st.text("aü.\u3002-1/:_\ufffd", max_size=12).map(str.encode),
    st.tuples(st.integers(55, 70), NEARLY_NAMES).map(lambda x: b"a" * x[0] + x[1].encode()),
)  # fmt: skip


def one_by_one(line: bytes, longest: int) -> str | None:
    text = line.decode("utf-8", "surrogateescape")
    if text.lstrip("\ufeff \t").startswith("#"):
        return None
    try:
        name = normalize_domain(text)
    except InvalidDomain:
        return None
    return name if len(name) <= longest else None


@example([b"a" * 63 + b".com", b"a" * 64 + b".com"], 126)
@given(st.lists(LINES, max_size=8), st.sampled_from([12, 64, 126]))
def test_the_vector_form_equals_the_normaliser(lines, longest):
    rejected = {}
    names, valid = normalize_lines(pa.array(lines, pa.binary()), longest, lambda i, _, why: rejected.update({i: why}))
    found = [name if is_one else None for name, is_one in zip(names.to_pylist(), valid)]
    assert found == [one_by_one(line, longest) for line in lines]
    blank = [not line.strip(b" \t\n\v\f\r") for line in lines]
    assert sorted(rejected) == [i for i, is_one in enumerate(valid) if not is_one and not blank[i]]
    assert set(rejected.values()) <= {*REASONS, "comment", "over_max_length"}


@given(st.lists(st.binary(max_size=40), max_size=10))
def test_any_bytes_are_counted_and_what_is_kept_stays(lines):
    cleaner = Cleaner(128)
    names = cleaner(block(*lines))
    counts = dict(cleaner.counts)
    assert counts.pop("lines") == len(lines) == sum(counts.values())
    again = Cleaner(128)
    assert again(block(*(name.encode() for name in names.to_pylist()))) == names and not again.rejects


def test_slices_are_read_where_they_lie():
    lines = pa.array([b"bad name", b"a.com\n", b"b.com\n", b"also bad"], pa.binary())[1:3]
    names, valid = normalize_lines(lines, 126, None)
    assert names.to_pylist() == ["a.com", "b.com"] and valid.all()


def test_what_is_rejected_is_told_with_source_line_and_reason():
    cleaner = Cleaner(14)
    kept = cleaner(block(b"A.com\r\n", b"", b"# x", b"a b.com\n", b"b\xff.com", b"muenchen.de", b"m\xc3\xbcnchen.de",
                         b"123456789.com", first=7, malformed=[(99, b"x,y,z")]))  # fmt: skip
    assert kept.to_pylist() == ["a.com", "muenchen.de"]
    assert [tuple(reject) for reject in cleaner.rejects] == [
        ("a.txt", 10, "bad_character", "a b.com"), ("a.txt", 11, "undecodable", "b\\xff.com"),
        ("a.txt", 13, "over_max_length", "münchen.de"), ("a.txt", 14, "over_max_length", "123456789.com"),
        ("a.txt", 99, "malformed_row", "x,y,z"),
    ]  # fmt: skip
    assert cleaner.counts == {"lines": 9, "valid": 2, "empty": 1, "comment": 1, "bad_character": 1, "undecodable": 1,
                              "over_max_length": 2, "malformed_row": 1}  # fmt: skip


@pytest.mark.parametrize("count", [1, 2, 3, 4, 9])
def test_the_first_names_end_with_the_line_that_holds_the_last(count):
    blocks = [block(b"a.com", b"x", b"b.com"), block(b"y", b"c.com", b"z", b"d.com", b"w", first=4)]
    cleaner = Cleaner(128)
    names = [name for part in first_names(blocks, count, 128) for name in cleaner(part).to_pylist()]
    assert names == ["a.com", "b.com", "c.com", "d.com"][:count]
    assert cleaner.counts["lines"] == {1: 1, 2: 3, 3: 5, 4: 7, 9: 8}[count]


def test_the_split_is_pinned():
    """The same names are held out on every machine and in every version, or old figures would not compare."""
    names = sample_names(1_000)
    side = on_validation_side(hash_array(pa.array(names)), 0.1, 0)
    assert side.sum() == 101
    assert [name for name, held in zip(names, side) if held][:3] == [
        "ali-sahin.club", "fashionheating.com", "smarttravel.com",
    ]  # fmt: skip


def test_a_hash_depends_on_the_name_alone():
    names = ["", "a", *sample_names(500), "x" * 200]
    alone = np.concatenate([hash_array(pa.array([name])) for name in names])
    assert np.array_equal(hash_array(pa.array(names)), alone)
    assert np.array_equal(hash_array(pa.array(names))[7:90], hash_array(pa.array(names)[7:90]))
    codes = np.array([[97, 98, 0], [97, 0, 0]])
    expected = [hash_array(pa.array(["ab"]))[0], hash_array(pa.array(["a"]))[0]]
    assert hash_names(codes.ravel(), np.array([0, 3]), np.array([2, 1])).tolist() == expected
