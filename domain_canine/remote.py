"""Names read as they are used: from URLs, local files and the Hub, block by block.

A position is a pair: which file, and which block in it. Reading goes on there by jumping to the file and reading over
the blocks before, which are not cleaned again.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow as pa

from . import hub
from .connection import is_url, patiently
from .readers import ROW_BLOCK, Block, as_bytes, choose_column, count_rows, read
from .sources import local_paths


def open_stream(dataset: str, column: str | None = None) -> "Stream":
    """The stream that ``--dataset`` means: a URL, local files (path, folder, glob), or a Hub id.

    Raises:
        UserError: nothing is there.
    """
    if is_url(dataset):
        return FileStream(dataset, [dataset], column)
    if paths := local_paths(dataset, tells=True):
        return FileStream(dataset, [str(path) for path in paths], column)
    return HubStream(dataset, hub.load(dataset, streaming=True), column)


class Stream:
    """A list of files, each of which gives the same blocks at every reading."""

    description: str
    files: list[str]  # their names

    def arrays(self, file: int, rows: int) -> Iterator[tuple[pa.BinaryArray, float]]:
        """The lines of a file, ``rows`` at a time, with the share of it that is read; the last may be fewer."""
        raise NotImplementedError

    def count(self) -> int | None:
        """Lines, as metadata tell; None where they do not."""
        return None

    def blocks(self, rows: int = ROW_BLOCK) -> Iterator[Block]:
        return (block for _, block in self.positioned(rows))

    def positioned(
        self, rows: int, start: tuple[int, int] = (0, 0), files: slice = slice(None)
    ) -> Iterator[tuple[tuple[int, int], Block]]:
        """Blocks of ``rows`` lines with their positions, from the position ``start`` on; of ``files`` alone."""
        mine = range(len(self.files))[files]
        for i in range(start[0], len(mine)):
            first = start[1] if i == start[0] else 0
            for at, (lines, share) in enumerate(islice(self.arrays(mine[i], rows), first, None), first):
                numbers = np.arange(at * rows + 1, at * rows + 1 + len(lines))
                yield (i, at), Block(self.files[mine[i]], numbers, lines, (i + share) / len(mine))


@dataclass
class FileStream(Stream):
    """URLs and local files; rows of csv that fit no column are left out uncounted."""

    description: str
    files: list[str]
    column: str | None = None

    def arrays(self, file: int, rows: int) -> Iterator[tuple[pa.BinaryArray, float]]:
        """As of ``Stream``: what ``readers`` reads, brought to ``rows`` lines at a time."""
        rest = pa.array([], pa.binary())
        for block in read(self.files[file], self.column):
            rest = pa.concat_arrays([rest, block.lines])
            whole = len(rest) // rows * rows
            yield from ((rest.slice(start, rows), block.done) for start in range(0, whole, rows))
            rest = rest.slice(whole)
        if len(rest):
            yield rest, 1.0

    def count(self) -> int | None:
        rows = [count_rows(name) for name in self.files]
        return None if None in rows else sum(rows)


@dataclass
class HubStream(Stream):
    """A data set of the Hub, by the streaming of ``datasets``; its shards are files."""

    description: str
    data: object
    column: str | None = None

    def __post_init__(self):
        self.files = [self.description] * self.data.num_shards

    def arrays(self, file: int, rows: int) -> Iterator[tuple[pa.BinaryArray, float]]:
        return patiently(self.description, lambda: self._read(file, rows))

    def _read(self, file, rows):
        shard = self.data.shard(len(self.files), file)
        for table in shard.with_format("arrow").iter(rows):
            column = choose_column(table.column_names, self.column, f"the data set {self.description!r}")
            yield as_bytes(table[column]), 1.0

    def count(self) -> int | None:
        splits = self.data.info.splits
        return splits["train"].num_examples if splits and "train" in splits else None
