"""Files to blocks of lines: every format gives the same lines, with their numbers."""

import bz2
import gzip
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from domain_canine import readers
from domain_canine.cleaning import Cleaner
from domain_canine.errors import UserError
from domain_canine.readers import Block, kind_of, lines_of, read
from domain_canine.sample import sample_names
from domain_canine.sources import Files, Several, local_paths, open_source


def lines(path, column=None) -> list[bytes]:
    return [line.strip() for block in read(path, column) for line in block.lines.to_pylist()]


def zstd(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)


@pytest.mark.parametrize("small", [False, True])
def test_formats_give_the_same_lines(tmp_path, monkeypatch, small):
    if small:  # blocks and files then end anywhere
        monkeypatch.setattr(readers, "TEXT_BLOCK", 100)
        monkeypatch.setattr(readers, "ROW_BLOCK", 7)
    names = sample_names(150)
    text = "\n".join(names).encode()
    rows = "\n".join(f'{i},"{name}"' for i, name in enumerate(names)).encode()
    files = {
        "a.txt": text, "b.txt": text + b"\n", "c.txt.gz": gzip.compress(text[:999]) + gzip.compress(text[999:]),
        "d.zst": zstd(text), "e.bz2": bz2.compress(text), "f.csv": b"rank,domain\n" + rows, "g.csv.gz": gzip.compress(b"rank,domain\r\n" + rows),
        "h.tsv.zst": zstd(b"\xef\xbb\xbfrank\tdomain\n" + rows.replace(b",", b"\t")), "i.csv": b"rank;domain\n" + rows.replace(b",", b";"),
        "j.csv": b"domain\n" + text,
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    pq.write_table(pa.table({"n": range(150), "text": names}), tmp_path / "k.parquet")
    for path in sorted(tmp_path.iterdir()):
        assert lines(path) == [name.encode() for name in names], path
        blocks = list(read(path))
        first = 2 if path.name[2:5] in ("csv", "tsv") else 1
        assert np.concatenate([block.numbers for block in blocks]).tolist() == list(range(first, first + 150)), path
        assert (len(blocks) > 2) == small
        assert all(0 <= block.done <= 1 and block.source == str(path) for block in blocks) and blocks[-1].done == 1


def test_rows_that_fit_no_column_keep_their_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "TEXT_BLOCK", 64)
    rows = [f"{i},name{i}.com" for i in range(2, 60)]  # each says its line number
    for at in (4, 5, 40, 59):
        rows[at - 2] = "odd"
    rows[10 - 2] = "10,x,y,z"
    path = tmp_path / "a.csv"
    path.write_text("\n".join(["rank,domain", *rows]))
    blocks = list(read(path))
    told = [row for block in blocks for row in block.malformed]
    assert told == [(4, b"odd"), (5, b"odd"), (10, b"10,x,y,z"), (40, b"odd"), (59, b"odd")]
    found = {n: line.decode() for block in blocks for n, line in zip(block.numbers, block.lines.to_pylist())}
    assert found == {n: f"name{n}.com" for n in range(2, 60) if n not in (4, 5, 10, 40, 59)}


def test_cells_that_are_missing_quoted_or_no_text(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'domain,x\n"a,b.com",1\n,2\n"two\nlines.com",3\nb\xff.com,4\n')
    assert lines(path) == [b"a,b.com", b"", b"two\nlines.com", b"b\xff.com"]
    pq.write_table(pa.table({"name": ["a.com", None]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"name": pa.array(["a.com"]).dictionary_encode()}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"name": pa.array(["a.com"], pa.large_string())}), tmp_path / "c.parquet")
    pq.write_table(pa.table({"name": [12]}), tmp_path / "d.parquet")
    assert [lines(tmp_path / f"{name}.parquet") for name in "abcd"] == [
        [b"a.com", b""],
        [b"a.com"],
        [b"a.com"],
        [b"12"],
    ]


def test_line_ends_within_quotes_may_lie_at_the_end_of_a_block(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "TEXT_BLOCK", 64)
    cells = [f"{'a' * (i % 7)}\n{i}.com" for i in range(60)]
    (tmp_path / "a.csv").write_text("x,domain\n" + "".join(f'{i},"{cell}"\n' for i, cell in enumerate(cells)))
    assert [line.decode() for line in lines(tmp_path / "a.csv")] == [cell.strip() for cell in cells]


def test_lines_keep_their_ends():
    assert lines_of(b"a\r\n\nb").to_pylist() == [b"a\r\n", b"\n", b"b"]
    assert lines_of(b"a\n").to_pylist() == [b"a\n"]


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("binary.txt", b"\x00\x01\x02" * 100, "is binary"),
        ("binary.csv", b"\x00\x01\x02" * 100, "is binary"),
        ("zero.txt", b"a.com\nb.com\nc\0.com\n", "line 3 holds a NUL"),
        ("packed.txt", gzip.compress(b"a.com", mtime=0), "is compressed"),
        ("twins.csv", b"domain,domain\na.com,b.com\n", "has 2 columns 'domain'"),
        ("two.csv", b"a,b\nx.com,y.com\n", "columns a, b; name one with --dataset_column"),
        ("headless.csv", b"a.com\nb.com\n", "has no header, its first row has 'a.com'"),
        ("headless2.csv", b"1,a.com\n2,b.com\n", "has no header, its first row has 'a.com'"),
        ("wide.txt", "a.com\n".encode("utf-16"), "UTF-16 text; save it as UTF-8"),
        ("torn.txt.gz", gzip.compress(b"example.com\n" * 9999, mtime=0)[:-40], "cannot read.*torn.txt.gz.*runcated"),
        ("torn.zst", zstd(b"example.com\n" * 9999)[:-10], "cannot read.*torn.zst"),
        ("torn.csv.gz", gzip.compress(b"a\nexample.com\n" * 9999, mtime=0)[:-40], "cannot read.*torn.csv.gz"),
        ("no.txt.gz", b"example.com\n", "cannot read.*no.txt.gz"),
        ("no.parquet", b"example.com\n", "cannot read.*no.parquet"),
    ],
)
def test_files_that_cannot_be_read_are_told_clearly(tmp_path, name, content, match):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=match):
        lines(tmp_path / name)


def test_a_line_without_an_end_is_not_gathered_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "TEXT_BLOCK", 100)
    (tmp_path / "a.txt").write_bytes(b"x" * 1000)
    with pytest.raises(UserError, match="a line of more than 100 bytes"):
        lines(tmp_path / "a.txt")


def test_columns_are_named_or_known(tmp_path):
    path = tmp_path / "two.csv"
    path.write_bytes(b"a,b\nx.com,y.com\n")
    assert lines(path, "b") == [b"y.com"]
    with pytest.raises(UserError, match="no column 'c'; it has a, b"):
        lines(path, "c")
    for header in (b"a,Domain", b"DOMAIN_NAME,domain", b"Name,Domain"):  # as it is written, or at least so
        path.write_bytes(header + b"\nx.com,y.com\n")
        assert lines(path) == [b"y.com"]
    for empty in (b"", b"domain\n", b"domain,x\n"):
        path.write_bytes(empty)
        assert lines(path) == []


def test_a_dataset_is_a_file_a_folder_a_glob_or_an_id(tmp_path, capsys):
    for name in ("b.txt", "a.csv.gz", "c.zst", "readme.md", ".hidden.md"):
        (tmp_path / name).write_text("")
    assert [path.name for path in local_paths(str(tmp_path))] == ["a.csv.gz", "b.txt", "c.zst"]
    assert (kind_of(Path("A.CSV.GZ")), kind_of(Path("b.TXT")), kind_of(Path("c.md"))) == (".csv", ".txt", None)
    assert [path.name for path in local_paths(str(tmp_path / "*.[tz]*"))] == ["b.txt", "c.zst"]
    assert capsys.readouterr().err == ""
    (tmp_path / "inner").mkdir()
    local_paths(str(tmp_path), tells=True)
    glob = f"a quoted glob reaches folders within, as '{tmp_path}/**/*.txt'"
    told = f"not read of {str(tmp_path)!r}: inner/, readme.md; {glob}\n"
    assert capsys.readouterr().err == told
    assert local_paths(str(tmp_path / "readme.md")) == [tmp_path / "readme.md"]
    assert local_paths("some/names") is None and open_source("sample").description
    for missing in (tmp_path / "missing.txt", tmp_path / "missing", "data/domains.txt", "missing.csv.gz", "x.zst"):
        with pytest.raises(UserError, match="no file or folder"):
            open_source(str(missing))
    with pytest.raises(UserError, match="no file matches"):
        open_source(str(tmp_path / "*.nothing"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="holds no .txt"):
        open_source(str(tmp_path / "folder"))


def test_several_files_and_sources_are_one(tmp_path):
    (tmp_path / "a.txt").write_text("a.com\n")
    (tmp_path / "b.txt").write_text("b.com\n" * 3)
    files = Files("both", [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")])
    blocks = list(files.blocks())
    assert [(block.source[-5:], block.done) for block in blocks] == [("a.txt", 0.25), ("b.txt", 1.0)]
    both = Several([files, open_source(str(tmp_path / "a.txt"))])
    assert [len(block.lines) for block in both.blocks()] == [1, 3, 1] and list(both.blocks())[-1].done == 1
    before = both.digest()
    assert before == both.digest()
    (tmp_path / "b.txt").write_text("c.com\n" * 3)
    assert both.digest() != before


def test_the_same_bytes_of_another_kind_are_other_input(tmp_path):
    for name in ("a.txt", "a.csv"):
        (tmp_path / name).write_text("domain\na.com\n")
    assert open_source(str(tmp_path / "a.txt")).digest() != open_source(str(tmp_path / "a.csv")).digest()


def test_without_a_network_a_hub_id_is_told_clearly():
    with pytest.raises(UserError, match="(?s)cannot load the data set 'some/names'.*--dataset sample"):
        list(open_source("some/names").blocks())


def test_a_quote_that_is_not_closed_is_told(tmp_path):
    path = tmp_path / "a.csv"
    rows = [f"{i},name{i}.com" for i in range(2, 500)]
    path.write_text("x,domain\n" + "\n".join([*rows[:98], '100,"stray.com', *rows[99:]]))
    with pytest.raises(UserError, match="a quote in line 100 is not closed"):
        lines(path)
    # Two of them pair, as cells with line ends do: what lies between is counted, and is no name.
    path.write_text("x,domain\n" + "\n".join([*rows[:98], '100,"stray.com', *rows[99:200], '202,other.com"']))
    blocks = list(read(path))
    assert sum(block.continued for block in blocks) == 102 and len(lines(path)) == 99
    # In the middle of a cell it is a character like others.
    path.write_text('x,domain\n5" disk,a.com\nb,b"c.com\n')
    assert lines(path) == [b"a.com", b'b"c.com']


def test_a_row_with_text_behind_a_quote_or_of_other_bytes_is_malformed(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'x,domain\n1,a.com\n"2"3,b.com\n4,caf\xe9.com,x\n5,d.com\n')
    blocks = list(read(tmp_path / "a.csv"))
    assert lines(tmp_path / "a.csv") == [b"a.com", b"d.com"]
    assert blocks[0].malformed == [(3, b'"2"3,b.com\n'), (4, b"4,caf\xe9.com,x")]
    assert [number for block in blocks for number in block.numbers] == [2, 5]
    assert Cleaner(128)(blocks[0]).to_pylist() == ["a.com", "d.com"]


def test_a_zero_byte_is_told_at_the_head_and_a_reject_further_on(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "TEXT_BLOCK", 64)
    (tmp_path / "a.txt").write_bytes(b"example.com\n" * 20 + b"a\0b.com\n")
    assert len(lines(tmp_path / "a.txt")) == 21


def test_a_block_in_pieces_is_the_block(tmp_path):
    block = Block(
        "x", np.arange(1, 8), pa.array([b"%d" % i for i in range(7)]), 1.0, [(0, b"x"), (3, b"z"), (9, b"y")], 2
    )
    block = block._replace(numbers=np.array([1, 2, 4, 5, 6, 7, 8]))
    pieces = list(block.pieces(3))
    assert [len(piece.lines) for piece in pieces] == [3, 3, 1]
    assert np.array_equal(np.concatenate([piece.numbers for piece in pieces]), block.numbers)
    assert pa.concat_arrays([piece.lines for piece in pieces]) == block.lines
    of_each = [([(0, b"x"), (3, b"z")], 2), ([], 0), ([(9, b"y")], 0)]
    assert [(piece.malformed, piece.continued) for piece in pieces] == of_each
    empty = Block("x", np.arange(0), pa.array([], pa.binary()), 1.0, [(9, b"y")])
    assert [piece.malformed for piece in empty.pieces(3)] == [[(9, b"y")]]


@pytest.mark.parametrize("made", ["pipe", "unfinished", "bare"])
def test_what_can_not_be_read_as_names_is_told(tmp_path, made):
    path = tmp_path / "x"
    if made == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
        (path / ("building.json" if made == "unfinished" else "dataset_dict.json")).write_text("{}")
    told = {"pipe": "a pipe can be read but once", "unfinished": "is not finished", "bare": "no whole manifest.json"}
    with pytest.raises(UserError, match=told[made]):
        open_source(str(path))
    with pytest.raises(UserError, match="is empty"):
        open_source("")


def test_a_web_manifest_is_none_of_ours(tmp_path):
    (tmp_path / "manifest.json").write_text('{"name": "app"}')
    (tmp_path / "a.txt").write_text("a.com\n")
    assert local_paths(str(tmp_path)) == [tmp_path / "a.txt"]
