import json

import numpy as np
import pyarrow as pa

from benchmarks import data_path, prepare, sampler, synthetic
from domain_canine.cleaning import Cleaner
from domain_canine.readers import Block
from domain_canine.sample import sample_names


def one_object(capsys) -> dict:
    """Exactly one line on stdout, a JSON object; the table is on stderr."""
    told = capsys.readouterr()
    assert told.out.count("\n") == 1 and told.err
    return json.loads(told.out)


def test_sampler(capsys):
    assert sampler.main(["--rows", "100000", "--json"]) == 0
    found = one_object(capsys)
    assert found["rows"] == 100_000
    assert 0 < found["memory_mb"] < 100 and 0 < found["jump_s"] < 1 and found["names_per_s"] > 0
    assert found["random_sampler_mb"] > 1


def test_synthetic_lengths_are_realistic(tmp_path):
    sampler.write_lengths(tmp_path / "lengths", 100_001)
    lengths = np.fromfile(tmp_path / "lengths", np.uint8)
    assert len(lengths) == 100_001 and lengths.min() >= 4 and lengths.max() <= 77 and 15 < lengths.mean() < 17


def test_data_path(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(data_path, "ROUNDS", 1)
    monkeypatch.setattr(data_path, "STOCK_NAMES", 300)
    path = tmp_path / "names.txt"
    path.write_text("\n".join(sample_names(3_000) * 2 + ["not a name"]))
    assert data_path.main(["--names", str(path), "--json"]) == 0
    found = one_object(capsys)
    assert found["names"] == 3_000
    assert found["ratio"] > 10 and abs(found["ratio"] - found["names_per_s"] / found["stock_names_per_s"]) < 0.1
    stock, fixed, ours = (found[f"padding_efficiency{way}"] for way in ("_stock", "_fixed", ""))
    assert 0.1 < stock < 0.2 < 0.5 < fixed <= ours < 0.8


def test_padding_efficiency_by_hand():
    from domain_canine.batches import NameBatches
    from domain_canine.masking import DataCollatorForCodePointMasking
    from domain_canine.table import table_of

    # 4 and 9 characters: 6 and 11 code points in two rows of 4 ceil((11 + 2) / 4) = 16 slots.
    table, lengths = table_of(["a.de", "abcdef.de"]), np.array([4, 9], np.uint8)
    batches = NameBatches(table, lengths, DataCollatorForCodePointMasking(), 2)
    assert data_path.padding_efficiency(batches) == (6 + 11) / (2 * 16)


def test_cold(capsys, monkeypatch):
    monkeypatch.setattr(data_path, "ROUNDS", 1)
    assert data_path.main(["--cold", "--rows", "100000", "--json"]) == 0
    assert len(one_object(capsys)) == len(data_path.COLD_BLOCKS)


def test_synthetic_names_are_names_and_nearly_all_different():
    names = pa.chunked_array(synthetic.names(70_000)).combine_chunks()
    assert len(names) == 70_000 and len(names.unique()) > 69_500
    assert Cleaner(128)(Block("x", np.arange(70_000), names.cast(pa.binary()), 1.0)) == names


def test_prepare(capsys, tmp_path):
    assert prepare.main(["--rows", "20000", "--folder", str(tmp_path), "--json"]) == 0
    found = one_object(capsys)
    assert found["lines"] == 20_000 and 0.92 < found["kept"] / 20_000 < 0.94
    assert 0 < found["peak_memory_mb"] < found["memory_limit_mb"] == 4_000 and found["names_per_s"] > 0
    assert not list(tmp_path.iterdir())
