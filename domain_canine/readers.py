"""Raw lines of a file or URL, in blocks: Arrow arrays of bytes, with the number of each line. Nothing is cleaned here.

What the bytes mean is the cleaner's to find out; so is white space around a name, the end of its line included.
"""

import csv
import io
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa

from .connection import PIECE, HttpFile, is_url
from .errors import BadInput
from .normalization_domain_canine import is_domain

COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
# Column names that are taken without asking, in this order.
KNOWN_COLUMNS = ("domain", "name", "text", "domain_name", "hostname")
TEXT_BLOCK = 1 << 23  # bytes of text read at once, about 500,000 names
ROW_BLOCK = 1 << 17  # rows of parquet and of data sets


class Block(NamedTuple):
    """Some lines of a source, in order."""

    source: str  # the file's path, its URL, or the Hub's id
    numbers: np.ndarray  # (B,) of the lines, from 1; a header counts
    lines: pa.BinaryArray  # (B,) without nulls
    done: float  # share of the source that is read
    malformed: list[tuple[int, bytes]] = []  # (line number, its bytes) of rows that do not have the header's columns
    continued: int = 0  # further lines of rows whose quoted cells have line ends
    labels: pa.BinaryArray | None = None  # (B,) the cells of the label column, if one was asked for

    def pieces(self, rows: int) -> Iterator["Block"]:
        """The block in blocks of ``rows`` lines at most."""
        malformed = self.malformed
        for first in range(0, max(1, len(self.lines)), rows):
            mine, behind = slice(first, first + rows), self.numbers[first + rows :]
            here = [row for row in malformed if not len(behind) or row[0] < behind[0]]
            malformed = malformed[len(here) :]
            labels = None if self.labels is None else self.labels[mine]
            piece = self._replace(numbers=self.numbers[mine], lines=self.lines[mine], malformed=here, labels=labels)
            yield piece if first == 0 else piece._replace(continued=0)


def kind_of(path: Path) -> str | None:
    """``.txt``, ``.csv``, ``.tsv`` or ``.parquet``, whether compressed or not; None for another suffix."""
    suffix = path.suffix.lower()
    if suffix in COMPRESSED:
        inner = Path(path.stem).suffix.lower()
        return inner if inner in _READERS and inner != ".parquet" else ".txt"
    return suffix if suffix in _READERS else None


def read(name: str | Path, column: str | None = None, label_column: str | None = None) -> Iterator[Block]:
    """The blocks of a file or URL, by its suffix; any other suffix is text.

    Args:
        name: of text (one name a line), csv or tsv with a header, parquet; all but the last gz, zst or bz2 as well.
        column: which one of csv, tsv and parquet.
        label_column: another one of these, read beside it.

    Raises:
        BadInput: it cannot be read, with the reason.
    """
    name = str(name)
    try:
        yield from _READERS[kind_of(path_of(name)) or ".txt"](name, column, label_column)
    except (OSError, pa.ArrowException, csv.Error, ValueError) as error:
        raise BadInput(f"cannot read {name!r}: {error}") from error


def path_of(name: str) -> Path:
    """The path of a file, or within a URL."""
    return Path(urlsplit(name).path if is_url(name) else name)


def choose_column(columns: list[str], wanted: str | None, where: str) -> str:
    """The column with the names; ``where`` they are, for the message.

    Raises:
        BadInput: there is no such column, or none that is known.
    """
    if wanted is None:
        known = [name for name in KNOWN_COLUMNS if name in columns]
        known += [name for usual in KNOWN_COLUMNS for name in columns if name.lower() == usual]
        if not known and len(columns) != 1:
            raise BadInput(f"{where} has the columns {', '.join(columns)}; name one with --dataset_column")
        wanted = known[0] if known else columns[0]
    if columns.count(wanted) > 1:
        raise BadInput(f"{where} has {columns.count(wanted)} columns {wanted!r}: rename all but one")
    if wanted not in columns:
        raise _no_column(columns, wanted, where, "--dataset_column")
    return wanted


def _no_column(columns, wanted, where, flag):
    return BadInput(f"{where} has no column {wanted!r}; it has {', '.join(columns)}: set {flag}")


def _choose_columns(columns: list[str], wanted: str | None, label: str | None, where: str) -> list[str]:
    """The column with the names, and the one with the labels if there is to be one."""
    if label is None:
        return [choose_column(columns, wanted, where)]
    if label not in columns:
        raise _no_column(columns, label, where, "--label_column")
    return [choose_column([column for column in columns if column != label], wanted, where), label]


def as_bytes(cells: pa.Array) -> pa.BinaryArray:
    """Any column's cells; a missing one is empty."""
    if isinstance(cells, pa.ChunkedArray):
        cells = cells.combine_chunks()
    if not pa.types.is_binary(cells.type) and not pa.types.is_large_binary(cells.type):
        cells = cells.cast(pa.string())
    return cells.cast(pa.binary()).fill_null(b"")


def _raw(name):
    return io.BufferedReader(HttpFile(name), PIECE) if is_url(name) else pa.OSFile(name)


@contextmanager
def _open(name: str) -> Iterator[tuple[pa.NativeFile, Callable[[], float]]]:
    """The decompressed stream, and a function that tells the share of the file that is read."""
    with _raw(name) as raw:
        size = raw.raw.size if is_url(name) else raw.size()
        file = pa.PythonFile(raw, "r") if is_url(name) else raw
        codec = COMPRESSED.get(path_of(name).suffix.lower())
        stream = pa.CompressedInputStream(file, codec) if codec else file
        yield stream, lambda: min(1.0, raw.tell() / size) if size else 1.0


def _refuse_other_formats(where: str, head: bytes) -> None:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise BadInput(f"{where} is UTF-16 text; save it as UTF-8")
    if head.startswith(b"\x1f\x8b"):
        raise BadInput(f"{where} is compressed: unpack it, or give a file whose name ends in .gz")
    if b"\0" in head:
        line = head[: head.index(b"\0")].count(b"\n") + 1
        raise BadInput(
            f"{where} is binary, not text (line {line:,} holds a NUL); names come one a line (txt, csv, parquet)"
        )
    if head.lstrip().startswith((b"{", b"[{", b'["')):
        raise BadInput(f"{where} is JSON; names come one a line, or in a column of csv, tsv or parquet")


def _read_text(name: str, column: str | None, label_column: str | None) -> Iterator[Block]:
    if label_column is not None:
        raise BadInput(f"{name!r} has no columns: names with labels are read from csv, tsv and parquet")
    with _open(name) as (stream, done):
        yield from text_blocks(name, checked(repr(name), iter(lambda: stream.read(TEXT_BLOCK), b"")), done)


def checked(where: str, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Pieces of text, as long as it is text and has lines; ``where`` it is, for the message.

    Raises:
        BadInput: it is binary, or a line is longer than a block.
    """
    pieces = iter(pieces)
    first = next(pieces, b"").removeprefix(b"\xef\xbb\xbf")
    _refuse_other_formats(where, first[:4096])
    line = 0  # bytes of the line that lasts
    for piece in chain([first], pieces):
        line = len(piece) - piece.rfind(b"\n") - 1 + (line if b"\n" not in piece else 0)
        if line > TEXT_BLOCK:
            raise BadInput(f"{where} has a line of more than {TEXT_BLOCK:,} bytes; names come one a line")
        yield piece


def text_blocks(name: str, pieces: Iterable[bytes], done: Callable[[], float]) -> Iterator[Block]:
    """Pieces of text, cut anywhere -> blocks of whole lines; the last one may lack its end."""
    number, rest = 1, b""
    for piece in chain(pieces, [b""]):
        text = rest + piece
        end = text.rfind(b"\n") + 1 if piece else len(text)
        text, rest = text[:end], text[end:]
        if text:
            lines = lines_of(text)
            yield Block(name, np.arange(number, number + len(lines)), lines, done())
            number += len(lines)


def lines_of(text: bytes) -> pa.BinaryArray:
    """Text in lines that keep their ends; the last one may lack it."""
    ends = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n")) + 1
    if not len(ends) or ends[-1] < len(text):
        ends = np.append(ends, len(text))
    offsets = np.concatenate([[0], ends]).astype(np.int32)
    return pa.BinaryArray.from_buffers(pa.binary(), len(ends), [None, pa.py_buffer(offsets), pa.py_buffer(text)])


def _header(name: str, wanted: str | None, label: str | None) -> tuple[str, int, list[int]] | None:
    """Delimiter, number of columns and places of the wanted ones in a csv or tsv file; None for an empty one."""
    with _open(name) as (stream, _):
        head = stream.read(1 << 16)
    _refuse_other_formats(repr(name), head[:4096])
    first = head.removeprefix(b"\xef\xbb\xbf").partition(b"\n")[0].decode("utf-8", "replace").rstrip("\r")
    if not head:
        return None
    delimiter = "\t" if kind_of(path_of(name)) == ".tsv" else max(",;\t|", key=first.count)
    columns = next(csv.reader([first], delimiter=delimiter), [])
    names = [column for column in columns if is_domain(column)]
    if names and (wanted is None or is_domain(wanted)):
        then = "add one, or call the file .txt" if len(columns) == 1 else "add one"
        raise BadInput(f"{name!r} has no header, its first row has {names[0]!r}; {then}")
    return delimiter, len(columns), [*map(columns.index, _choose_columns(columns, wanted, label, repr(name)))]


def _read_csv(name: str, column: str | None, label_column: str | None) -> Iterator[Block]:
    """By the standard library's reader: pyarrow's lets a quote without an end take the rest of the file unnoticed."""
    if (header := _header(name, column, label_column)) is None:
        return
    with _open(name) as (stream, done):
        # A byte is a character: cells are encoded again as they were.
        lines = _Lines(io.TextIOWrapper(stream, "latin-1", newline=""))
        reader = csv.reader(lines, delimiter=header[0], strict=True)
        next(reader)
        while (block := _rows(reader, lines, name, *header[1:])) is not None:
            yield block._replace(done=done())


class _Lines:
    """The lines of a stream; ``last`` is the one that has just been read."""

    def __init__(self, stream):
        self._stream, self.last = stream, ""

    def __iter__(self):
        return self

    def __next__(self):
        self.last = next(self._stream)
        return self.last


def _rows(reader, lines: _Lines, name: str, columns: int, wanted: list[int]) -> Block | None:
    """The next rows as a block; None at the end."""
    cells, numbers, malformed, continued = [[] for _ in wanted], [], [], 0
    while len(numbers) + len(malformed) < ROW_BLOCK:
        number = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            if reader.line_num > number:
                raise BadInput(
                    f"{name!r}: a quote in line {number:,} is not closed ({error} in line {reader.line_num:,}); mend it"
                ) from error
            malformed.append((number, lines.last.encode("latin-1")))
            continue
        continued += reader.line_num - number
        if len(row) == columns or not row:
            for column, place in zip(cells, wanted):
                column.append(row[place] if row else "")
            numbers.append(number)
        else:
            malformed.append((number, reader.dialect.delimiter.join(row).encode("latin-1")))
    if not numbers and not malformed:
        return None
    lines, *labels = map(_encoded, cells)
    return Block(name, np.array(numbers, np.int64), lines, 0.0, malformed, continued, *labels)


def _encoded(cells: list[str]) -> pa.BinaryArray:
    data = "".join(cells).encode("latin-1")
    offsets = np.concatenate([[0], np.cumsum(list(map(len, cells)))]).astype(np.int32)
    return pa.BinaryArray.from_buffers(pa.binary(), len(cells), [None, *map(pa.py_buffer, (offsets, data))])


def _read_parquet(name: str, column: str | None, label_column: str | None) -> Iterator[Block]:
    import pyarrow.parquet as pq

    with _raw(name) as file, tempfile.TemporaryFile() as whole:
        if is_url(name) and not file.raw.ranges:
            # Its index is at the end: without ranges the whole file comes first.
            shutil.copyfileobj(file, whole, PIECE)
            file = whole
        # Without a buffer of its own it reads a whole column of a row group at once, however large.
        parquet = pq.ParquetFile(file, buffer_size=PIECE, pre_buffer=False)
        columns = _choose_columns(parquet.schema_arrow.names, column, label_column, repr(name))
        number, rows = 1, parquet.metadata.num_rows
        for batch in parquet.iter_batches(ROW_BLOCK, columns=columns):
            numbers = np.arange(number, number + len(batch))
            number += len(batch)
            lines, *labels = (as_bytes(batch[column]) for column in columns)
            yield Block(name, numbers, lines, (number - 1) / rows, [], 0, *labels)


def count_rows(name: str) -> int | None:
    """How many lines a file has, where it tells itself."""
    if kind_of(path_of(name)) != ".parquet":
        return None
    import pyarrow.parquet as pq

    with _raw(name) as file:
        return pq.read_metadata(file).num_rows if not is_url(name) or file.raw.ranges else None


_READERS = {".txt": _read_text, ".csv": _read_csv, ".tsv": _read_csv, ".parquet": _read_parquet}
