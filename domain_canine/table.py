"""Names on disk in Arrow, read by memory map: any rows at once, into arrays, without a Python object for each."""

from bisect import bisect_right
from pathlib import Path

import numpy as np
import pyarrow as pa

COLUMN = "name"
SCHEMA = pa.schema([(COLUMN, pa.string())])
ROWS_PER_BATCH = 1 << 16


class NameTable:
    """The names of Arrow stream files with one string column, ``name``, one file after the other.

    Memory beyond the maps is an object a record batch (4,000 for 255 million names).

    Args:
        sources: paths of files, or string arrays in memory.
    """

    def __init__(self, sources: list[Path | pa.StringArray]):
        self.sources = sources
        self._batches = [batch for source in sources for batch in _batches(source)]
        self._ends = np.cumsum([len(batch) for batch in self._batches]).tolist()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    # A worker process maps the files anew instead of receiving their contents.
    def __reduce__(self):
        return NameTable, (self.sources,)

    def take(self, rows: np.ndarray) -> pa.StringArray:
        """The names of these rows, (B,) int64. What it costs goes by the runs of consecutive rows among them."""
        cuts = np.flatnonzero(np.diff(rows) != 1) + 1
        pieces = []
        for start, stop in zip([0, *cuts.tolist()], [*cuts.tolist(), len(rows)]) if len(rows) else ():
            row, last = int(rows[start]), int(rows[stop - 1])
            while row <= last:
                at = bisect_right(self._ends, row)
                batch = self._batches[at]
                piece = batch.slice(row - self._ends[at] + len(batch), last - row + 1)
                pieces.append(piece)
                row += len(piece)
        return pa.concat_arrays(pieces) if pieces else pa.array([], pa.string())

    def names(self, rows: np.ndarray) -> list[str]:
        return self.take(rows).to_pylist()


def _batches(source):
    if isinstance(source, pa.Array):
        return [source]
    return [batch.column(0) for batch in pa.ipc.open_stream(pa.memory_map(str(source)))]


def spans(names: pa.StringArray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The bytes of all names (N,) uint8, and where each begins in them and its length, (B,) int64."""
    offsets = np.frombuffer(names.buffers()[1], np.int32, len(names) + 1, names.offset * 4).astype(np.int64)
    data = names.buffers()[2]
    return np.frombuffer(data if data is not None else b"", np.uint8), offsets[:-1], np.diff(offsets)


def characters(data: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The characters (B, L) uint8 of names, padded with 0; arguments as ``spans`` returns them."""
    columns = np.arange(lengths.max(initial=0))
    # Beyond the end of a name, any byte will do.
    at = np.minimum(starts[:, None] + columns, len(data) - 1)
    return np.where(columns < lengths[:, None], data[at], 0)


def write_names(names: pa.StringArray, path: Path) -> None:
    """An Arrow stream file that ``NameTable`` and ``datasets`` read."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, SCHEMA) as writer:
        writer.write_table(pa.table([names], schema=SCHEMA), max_chunksize=ROWS_PER_BATCH)


def table_of(names: list[str]) -> NameTable:
    """A table in memory, for names that are not worth a file."""
    return NameTable([pa.array(names, pa.string())])
