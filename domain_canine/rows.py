"""Names in, rows out: files of any size, in order; what is no name stays a row, with the reason."""

import csv
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from tqdm import tqdm

from .cleaning import normalize_lines
from .errors import UserError, first_line
from .manifest import listed
from .normalization_domain_canine import MAX_NAME
from .paths import user_path
from .readers import Block, checked, kind_of, text_blocks
from .sources import Files, local_paths

WINDOW = 2048  # rows at once: enough to bring like lengths together, and few enough to see some progress
PIPE = 1 << 16  # bytes of standard input at once: what a pipe holds


class Rows(NamedTuple):
    """Some lines of the input, in order.

    Args:
        texts: (N,) as they came, without white space at their ends.
        names: (N,) normalised, None for what is no name.
        reasons: (N,) why it is none, or None.
        done: share of the input that is read.
    """

    texts: list[str]
    names: list[str | None]
    reasons: list[str | None]
    done: float

    @property
    def valid(self) -> list[str]:
        """The names alone."""
        return [name for name in self.names if name]


def read_rows(inputs: list[str] | str, column: str | None = None, output: str | None = None) -> Iterator[Rows]:
    """All lines of files, folders and globs, of standard input (``-``), or names that are given themselves.

    The first block is read at once: a mistake shows before ``output`` is opened.

    Args:
        inputs: what was given: ``-``, one source, or names; or a text: ``-``, or the path of a source.
        output: a file that will be written meanwhile.

    Raises:
        UserError: there is no such file, or it cannot be read, or it is the output.
    """
    blocks = _blocks(inputs, column, output)
    first = next(blocks, None)
    return (
        _clean(piece) for block in chain([] if first is None else [first], blocks) for piece in block.pieces(WINDOW)
    )


def _blocks(inputs, column, output):
    source = inputs if isinstance(inputs, str) else inputs[0] if len(inputs) == 1 else None
    if source == "-":
        if sys.stdin is None:
            raise UserError("standard input is closed: give it names, or name a file")
        _refuse_own(output, lambda file: os.path.samestat(file.stat(), os.fstat(sys.stdin.fileno())))
        _refuse_column(column, "standard input")
        pieces = iter(lambda: sys.stdin.buffer.read1(PIPE), b"")
        return text_blocks("-", checked("standard input", pieces), lambda: 0.0)
    if source is not None and (source is inputs or _is_source(source)):
        return _files(source, output, column).blocks()
    if files := [each for each in inputs if os.path.isfile(each) or kind_of(Path(each))]:
        raise UserError(f"{files[0]!r} reads as a file: give one file, folder or quoted glob, or names")
    _refuse_column(column, "a name")
    lines = pa.array([*map(os.fsencode, inputs)], pa.binary())
    return iter([Block("names", np.arange(1, len(inputs) + 1), lines, 1.0)])


def _is_source(text):
    """Whether it can be no name, and is a path or a glob then."""
    return bool(kind_of(Path(text))) or os.path.exists(text) or any(character in text for character in "/*?[")


def _refuse_column(column, what):
    if column is not None:
        raise UserError(f"--dataset_column {column!r}: {what} has no columns; leave it out, or give a csv file")


def _files(source, output, column):
    files = local_paths(source, tells=True)
    if files is None:
        raise UserError(f"there is no file or folder {source!r}; check the path")
    _refuse_own(output, lambda file: any(map(file.samefile, files)))
    if all(kind_of(file) in (None, ".txt") for file in files):
        _refuse_column(column, f"{source!r} is text and")
    return Files(source, [*map(str, files)], column)


def _refuse_own(output, is_read):
    if output and (path := user_path(output)).exists() and is_read(path):
        raise UserError(f"--output {output!r} is among the names to be read: give another file")


def _clean(block):
    reasons: list[str | None] = ["empty"] * len(block.lines)

    def reject(index, line, reason):
        reasons[index] = reason

    names, valid = normalize_lines(block.lines, MAX_NAME, reject)
    texts = [*map(_as_text, block.lines.to_pylist())]
    names = [name if kept else None for name, kept in zip(names.to_pylist(), valid)]
    reasons = [None if kept else reason for reason, kept in zip(reasons, valid)]
    if block.malformed:
        rows = [*zip(block.numbers.tolist(), texts, names, reasons)]
        rows += [(number, _as_text(line), None, "malformed_row") for number, line in block.malformed]
        _, texts, names, reasons = map(list, zip(*sorted(rows, key=lambda row: row[0])))
    return Rows(texts, names, reasons, block.done)


def _as_text(line):
    return line.decode("utf-8", "backslashreplace").strip()


@contextmanager
def with_progress(rows: Iterable[Rows]) -> Iterator[Iterator[Rows]]:
    """The same rows, with a bar on a terminal: the share of the input, rows a second."""
    bar = tqdm(total=100, unit="%", bar_format="{l_bar}{bar}| {elapsed}<{remaining}{postfix}", disable=None)

    def each():
        count = 0
        for block in rows:
            yield block
            count += len(block.texts)
            bar.n = round(100 * block.done, 1)
            bar.set_postfix_str(f"{count:,} rows, {count / max(bar.format_dict['elapsed'], 1e-9):,.0f} a second")

    with bar:
        yield each()


class Table:
    """Rows on disk or standard output, as csv, jsonl or parquet by the path's suffix; what is written so far is valid.

    Raises:
        UserError: the suffix is none of these, or the file exists.
    """

    suffixes = (".csv", ".jsonl", ".parquet")
    in_place_of_names = "the reason stands beside"

    def __init__(self, path: str | None, schema: pa.Schema, overwrite: bool = False):
        self.path, self.schema = None if path is None else user_path(path), schema
        self.rows, self.reasons = 0, Counter()  # why rows are no names
        self._suffix = self.path.suffix if self.path else ".csv"
        if self._suffix not in self.suffixes:
            *all_but_last, last = self.suffixes
            raise UserError(f"--output {path!r}: give it the suffix {', '.join(all_but_last)} or {last}")
        if self.path and self.path.exists() and not overwrite:
            raise UserError(f"--output {path!r} exists; add --overwrite to replace it, or give another name")

    def __enter__(self) -> "Table":
        with self._telling():
            self._open()
        return self

    @contextmanager
    def _telling(self):
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            where = f"--output {str(self.path)!r}" if self.path else "standard output"
            raise UserError(f"{where} cannot be written: {error.strerror or first_line(error)}") from error

    def _open(self):
        self._file = self.path.open("wb") if self.path else sys.stdout.buffer
        if self._suffix == ".parquet":
            # By the path: a file of Python's lets a signal into the middle of a row group, and nothing can be read.
            # No dictionaries: numbers that all differ would stand there twice, and embeddings take 1.6 times the room.
            self._parquet = pyarrow.parquet.ParquetWriter(str(self.path), self.schema, use_dictionary=False)
        elif self._suffix == ".csv":
            self._write_csv([self.schema.names])

    def write(self, columns: dict[str, list | pa.Array]) -> None:
        """Columns (N,) by name."""
        with self._telling():
            self._write(columns)
            self._file.flush()
        self.rows += len(next(iter(columns.values())))
        self.reasons.update(reason for reason in columns.get("reason", ()) if reason)

    def _write(self, columns):
        if self._suffix == ".parquet":
            self._parquet.write_table(pa.table(columns, schema=self.schema))
            return
        columns = [columns[name] for name in self.schema.names]
        rows = zip(*(each.to_pylist() if isinstance(each, pa.Array) else each for each in columns))
        if self._suffix == ".csv":
            self._write_csv([_cell(value) for value in row] for row in rows)
        else:
            self._file.write("".join(json.dumps(dict(zip(self.schema.names, row))) + "\n" for row in rows).encode())

    def _write_csv(self, rows):
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        self._file.write(text.getvalue().encode())

    def tell(self) -> None:
        """Say where the rows are, unless they have just been seen; and how many are no names."""
        if self.reasons:
            bad = f"{self.reasons.total():,} of {self.rows:,} rows are no names ({listed(self.reasons)})"
            print(f"{bad}: {self.in_place_of_names}", file=sys.stderr)
        if self.path:
            print(f"{self.rows:,} rows in {self.path}", file=sys.stderr)

    def __exit__(self, kind, *exception) -> None:
        with self._telling():
            if self._suffix == ".parquet":
                self._parquet.close()
            if self.path:
                self._file.close()
        if kind is not None:
            self.tell()


def _cell(value):
    """A cell of csv holds no list, whose numbers stand side by side, nor line ends, which break it for most readers."""
    if isinstance(value, list):
        return " ".join(f"{number:.6g}" for number in value)
    return value.replace("\r", "\\r").replace("\n", "\\n") if isinstance(value, str) else value
