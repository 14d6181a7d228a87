"""Where raw lines come from: a file, a folder, a glob, the Hub, or the bundled sample. Nothing is cleaned here."""

import csv
import glob
import gzip
import hashlib
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from . import hub
from .errors import UserError, first_line
from .normalization_domain_canine import is_domain
from .sample import sample_names

SAMPLE = "sample"
SUFFIXES = (".txt", ".csv", ".tsv", ".parquet")
# Column names that are taken without asking, in this order.
KNOWN_COLUMNS = ("domain", "name", "text", "domain_name", "hostname")
BLOCK = 10_000  # rows read at once from parquet and the Hub


def open_source(dataset: str, column: str | None = None, streaming: bool = False):
    """The source that ``--dataset`` means.

    Args:
        dataset: ``sample``; an existing path, a glob, or what looks like a file; otherwise a Hub id.
        column: which column of csv, tsv, parquet or Hub data holds the names; found by itself if there is one
            column, or one called ``domain``, ``name``, ``text``, ``domain_name`` or ``hostname``.
        streaming: read the Hub's data as it is used, without downloading it first.

    Raises:
        UserError: nothing is there, or it cannot be read.
    """
    if dataset == SAMPLE:
        return Sample()
    path = Path(dataset).expanduser()
    if any(character in dataset for character in "*?[") and not path.exists():
        paths = [Path(match) for match in sorted(glob.glob(str(path), recursive=True)) if Path(match).is_file()]
        if not paths:
            raise UserError(f"no file matches {dataset!r}; check the pattern, and quote it in a shell")
    elif path.is_dir():
        paths = sorted(entry for entry in path.iterdir() if entry.is_file() and _kind(entry) is not None)
        if not paths:
            raise UserError(f"the folder {dataset!r} holds no {', '.join(SUFFIXES)} file (.gz of them included)")
    elif path.exists():
        paths = [path]
    elif _kind(path) or dataset.startswith((".", "/", "~", "data/")) or dataset.count("/") > 1:
        raise UserError(f"there is no file or folder {dataset!r}; check the path")
    else:
        return Hub(dataset, column, streaming)
    return Files(dataset, paths, column)


def _kind(path: Path) -> str | None:
    """``.txt``, ``.csv``, ``.tsv`` or ``.parquet``, whether compressed or not; None for another suffix."""
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if path.suffix == ".gz" and suffix not in SUFFIXES:
        return ".txt"
    return suffix if suffix in SUFFIXES else None


def _choose(columns: list[str], wanted: str | None, where: str) -> str:
    if wanted is None:
        known = [name for name in KNOWN_COLUMNS if name in columns]
        if known or len(columns) == 1:
            return known[0] if known else columns[0]
        raise UserError(f"{where} has the columns {', '.join(columns)}; name one with --dataset_column")
    if wanted not in columns:
        raise UserError(f"{where} has no column {wanted!r}; it has {', '.join(columns)}: set --dataset_column")
    return wanted


class Sample:
    """The bundled synthetic names."""

    description = "the bundled sample (synthetic names)"

    def lines(self) -> Iterator[str]:
        yield from sample_names()

    def digest(self) -> str:
        return hashlib.blake2b("\n".join(sample_names()).encode()).hexdigest()

    def count(self) -> int:
        return len(sample_names())


@dataclass
class Files:
    """Local files: text (one name a line), csv and tsv with a header, parquet; any of the first three gzipped."""

    description: str
    paths: list[Path]
    column: str | None = None

    def lines(self) -> Iterator[str]:
        """Every line or cell; bytes that are no UTF-8 arrive as lone surrogates (PEP 383)."""
        for path in self.paths:
            try:
                yield from self._read(path)
            except (OSError, EOFError, zlib.error, csv.Error, ValueError) as error:
                raise UserError(f"cannot read {str(path)!r}: {error}") from error

    def digest(self) -> str:
        """Of the contents, so that a changed file is never taken for the old one."""
        state = hashlib.blake2b()
        for path in self.paths:
            state.update(f"{_kind(path)} {path.stat().st_size}\n".encode())
            try:
                with path.open("rb") as file:
                    while block := file.read(1 << 20):
                        state.update(block)
            except OSError as error:
                raise UserError(f"cannot read {str(path)!r}: {error.strerror}") from error
        return state.hexdigest()

    def count(self) -> None:
        """How many lines there are is not known before they are read."""

    def _read(self, path: Path) -> Iterator[str]:
        kind = _kind(path)
        if kind == ".parquet":
            yield from self._read_parquet(path)
            return
        opened = gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")
        with opened as binary:
            if b"\0" in binary.peek(4096)[:4096]:
                raise UserError(f"{str(path)!r} is a binary file, not text; names come one a line (txt, csv, parquet)")
            text = io.TextIOWrapper(binary, encoding="utf-8-sig", errors="surrogateescape", newline="")
            if kind in (".csv", ".tsv"):
                yield from self._read_csv(path, text, "," if kind == ".csv" else "\t")
            else:
                # Lines end in \n or \r\n; str.splitlines would also split at other characters.
                yield from (line.rstrip("\r\n") for line in text)

    def _read_csv(self, path, text, delimiter) -> Iterator[str]:
        rows = csv.reader(text, delimiter=delimiter)
        header = next(rows, None)
        if header is None:
            return
        column = _choose(header, self.column, repr(str(path)))
        if is_domain(column):
            raise UserError(f"{str(path)!r} has no header, its first row is {column!r}; add one, or call the file .txt")
        index = header.index(column)
        yield from (row[index] if len(row) > index else "" for row in rows)

    def _read_parquet(self, path) -> Iterator[str]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            file = pq.ParquetFile(path)
            column = _choose(file.schema_arrow.names, self.column, repr(str(path)))
            for batch in file.iter_batches(BLOCK, columns=[column]):
                yield from _cells(batch.column(0).to_pylist())
        except pa.ArrowException as error:
            raise UserError(f"cannot read {str(path)!r}: {error}") from error


def _cells(values: list) -> Iterator[str]:
    return ("" if value is None else str(value) for value in values)


@dataclass
class Hub:
    """A data set of the Hugging Face Hub, its ``train`` split."""

    description: str
    column: str | None = None
    streaming: bool = False
    _loaded: object = field(default=None, repr=False)

    def load(self):
        """The ``datasets`` object, loaded once."""
        if self._loaded is None:
            import datasets

            hub.use_cache_if_unreachable()
            try:
                self._loaded = datasets.load_dataset(self.description, split="train", streaming=self.streaming)
            except Exception as error:  # every release raises other classes: connection, HTTP, not found, offline
                raise UserError(
                    f"cannot load the data set {self.description!r} from the Hugging Face Hub: {first_line(error)}\n"
                    "  Check the id and the network (and HF_HUB_OFFLINE), or use local names: --dataset FILE, "
                    "or --dataset sample to try things out."
                ) from error
        return self._loaded

    def lines(self) -> Iterator[str]:
        data = self.load()
        columns = data.column_names or list(next(iter(data)))
        column = _choose(columns, self.column, f"the data set {self.description!r}")
        for batch in data.select_columns([column]).iter(BLOCK):
            yield from _cells(batch[column])

    def digest(self) -> str:
        return f"{self.description} {self.load()._fingerprint}"

    def count(self) -> int | None:
        """Rows as the metadata of the data set tell."""
        data = self.load()
        if not self.streaming:
            return len(data)
        splits = data.info.splits
        return splits["train"].num_examples if splits and "train" in splits else None
