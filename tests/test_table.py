"""Names are read from disk by rows, in any order, across files."""

import pickle

import numpy as np
import pyarrow as pa
import pytest

from domain_canine import table as module
from domain_canine.sample import sample_names
from domain_canine.table import NameTable, characters, spans, table_of, write_names


@pytest.fixture
def names() -> list[str]:
    return sample_names(1_000)


def test_any_rows_across_files_and_batches(tmp_path, monkeypatch, names):
    monkeypatch.setattr(module, "ROWS_PER_BATCH", 64)
    cuts = [0, 1, 300, 300, 850, 1_000]
    paths = [tmp_path / f"{i}.arrow" for i in range(len(cuts) - 1)]
    for path, start, stop in zip(paths, cuts, cuts[1:]):
        write_names(pa.array(names[start:stop], pa.string()), path)
    table = pickle.loads(pickle.dumps(NameTable(paths)))
    assert len(table) == 1_000
    for rows in (np.random.default_rng(0).permutation(1_000), np.arange(1_000), np.arange(290, 310), np.array([5, 5, 4]),
                 np.array([999]), np.array([], np.int64)):  # fmt: skip
        assert table.names(rows) == [names[row] for row in rows] == table_of(names).names(rows)
    import datasets

    assert datasets.Dataset.from_file(str(paths[4]))["name"][:] == names[850:]


def test_names_become_arrays(names):
    taken = pa.array(names)[3:8]
    data, starts, lengths = spans(taken)
    assert lengths.tolist() == [len(name) for name in names[3:8]]
    padded = characters(data, starts, lengths)
    assert padded.dtype == np.uint8 and padded.shape == (5, lengths.max())
    assert [bytes(row).rstrip(b"\0").decode() for row in padded] == names[3:8]
    assert not padded[lengths.argmin(), lengths.min() :].any()
    assert characters(*spans(pa.array([], pa.string()))).shape == (0, 0)
    assert characters(*spans(pa.array(["", ""]))).shape == (2, 0)
