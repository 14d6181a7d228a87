"""A column of names on disk, read by memory map: any rows at once, into arrays, without Python objects."""

from pathlib import Path

import numpy as np
import pyarrow as pa

COLUMN = "name"


class NameTable:
    """The names of an Arrow stream file with one string column, ``name``; ``datasets.Dataset.from_file`` reads it too.

    The file is seen as one array of bytes; a row is found by its batch's addresses in it. Memory beyond the map is
    a few numbers a record batch. All record batches but the last have the same number of rows.

    Args:
        source: path of the file, or an Arrow buffer that holds one.
    """

    def __init__(self, source: Path | str | pa.Buffer):
        self.source = source
        buffer = source if isinstance(source, pa.Buffer) else pa.memory_map(str(source)).read_buffer()
        base = buffer.address
        self._bytes = np.frombuffer(buffer, dtype=np.uint8)
        self._words = self._bytes[: len(self._bytes) // 4 * 4].view(np.int32)
        batches = [batch.column(0) for batch in pa.ipc.open_stream(buffer)]
        self._per_batch = len(batches[0]) if batches else 1
        self._length = sum(map(len, batches))
        # Addresses in the file: of each batch's offsets (in int32) and of its characters (in bytes).
        self._offsets = np.array([(batch.buffers()[1].address - base) // 4 for batch in batches], dtype=np.int64)
        self._data = np.array([batch.buffers()[2].address - base for batch in batches], dtype=np.int64)

    def __len__(self) -> int:
        return self._length

    # A worker process maps the file anew instead of receiving its contents.
    def __reduce__(self):
        return NameTable, (self.source,)

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """Characters of each row, (B,) int64."""
        return self._spans(rows)[1]

    def take(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The characters (B, L) uint8 of these rows, padded with 0, and their lengths (B,) int64."""
        start, length = self._spans(rows)
        columns = np.arange(length.max(initial=0))
        # Beyond the end of a name, any byte of the file will do.
        at = np.minimum(start[:, None] + columns, len(self._bytes) - 1)
        return np.where(columns < length[:, None], self._bytes[at], 0), length

    def names(self, rows: np.ndarray) -> list[str]:
        characters, lengths = self.take(rows)
        return [row[:length].tobytes().decode("ascii") for row, length in zip(characters, lengths)]

    def _spans(self, rows):
        batch = rows // self._per_batch
        word = self._offsets[batch] + rows % self._per_batch
        begin = self._words[word].astype(np.int64)
        return self._data[batch] + begin, self._words[word + 1] - begin


class TableWriter:
    """Writes names to an Arrow stream that NameTable reads.

    Args:
        sink: path or Arrow output stream.
        rows_per_batch: of every record batch but the last.
    """

    def __init__(self, sink, rows_per_batch: int = 65_536):
        self.rows = 0
        self.rows_per_batch = rows_per_batch
        self._pending: list[str] = []
        self._sink = pa.OSFile(str(sink), "wb") if isinstance(sink, Path) else sink
        self._writer = pa.ipc.new_stream(self._sink, pa.schema([(COLUMN, pa.string())]))

    def add(self, names: list[str]) -> None:
        self._pending += names
        while len(self._pending) >= self.rows_per_batch:
            self._write(self.rows_per_batch)

    def close(self) -> int:
        """Finish the stream; returns the rows written."""
        if self._pending:
            self._write(len(self._pending))
        self._writer.close()
        if isinstance(self._sink, pa.OSFile):
            self._sink.close()
        return self.rows

    def _write(self, rows):
        batch = pa.array(self._pending[:rows], pa.string())
        self._writer.write_batch(pa.record_batch([batch], names=[COLUMN]))
        self._pending = self._pending[rows:]
        self.rows += rows


def table_of(names: list[str]) -> NameTable:
    """A table in memory, for names that are not worth a file."""
    sink = pa.BufferOutputStream()
    writer = TableWriter(sink)
    writer.add(names)
    writer.close()
    return NameTable(sink.getvalue())
