"""Names and their vectors on disk, a block at a time."""

import numpy as np
import pyarrow as pa

from .rows import Rows, Table


class VectorTable(Table):
    """A ``Table`` of names and their vectors; as ``.npy`` the vectors alone, float32 (N, D).

    An ``.npy`` file begins with the array's shape, and numpy leaves room there for more rows: their number is written
    anew after each block, behind it, so that at any moment the file is an array.
    """

    suffixes = (".parquet", ".npy", ".jsonl", ".csv")

    def __init__(self, path: str | None, overwrite: bool = False):
        super().__init__(path, pa.schema([]), overwrite)
        self.is_array = self._suffix == ".npy"
        if self.is_array:
            self.in_place_of_names = "NaN"

    def of_width(self, width: int) -> "VectorTable":
        """The same, ready to be entered: its vectors have so many numbers."""
        self.width = width
        # No list of a fixed size: Parquet itself has none, and pyarrow (25) writes but cannot read one that is null.
        fields = {"input": pa.string(), "name": pa.string(), "embedding": pa.list_(pa.float32()), "reason": pa.string()}
        self.schema = pa.schema(list(fields.items()))
        return self

    def write_vectors(self, rows: Rows, vectors: np.ndarray) -> None:
        """All rows, and the vectors (names, D) of those that are names; the others have NaN in an array, else none."""
        is_name = np.array([name is not None for name in rows.names], bool)
        if self.is_array:
            embedding = np.full((len(is_name), self.width), np.nan, np.float32)
            embedding[is_name] = vectors
        else:
            ends = np.cumsum([0, *is_name * self.width], dtype=np.int32)
            embedding = pa.ListArray.from_arrays(ends, vectors.ravel(), mask=pa.array(~is_name))
        self.write({"input": rows.texts, "name": rows.names, "embedding": embedding, "reason": rows.reasons})

    def write(self, columns: dict) -> None:
        super().write(columns)
        if self.is_array:
            self._write_shape()

    def _open(self):
        super()._open()
        if self.is_array:
            self._write_shape()

    def _write(self, columns):
        if self.is_array:
            self._file.write(columns["embedding"].data)
        else:
            super()._write(columns)

    def _write_shape(self):
        shape = {"descr": "<f4", "fortran_order": False, "shape": (self.rows, self.width)}
        self._file.seek(0)
        np.lib.format.write_array_header_1_0(self._file, shape)
        self._file.seek(0, 2)  # which flushes, too
