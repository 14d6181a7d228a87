"""From lines to clean, unique, split names: nothing lost without a count, nothing on both sides."""

import gzip
import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from domain_canine import corpus as corpus_module
from domain_canine.corpus import characters, load_corpus, on_validation_side
from domain_canine.errors import UserError
from domain_canine.hashing import hash_names
from domain_canine.sample import sample_names
from domain_canine.sources import Hub, open_source
from domain_canine.table import NameTable, TableWriter, table_of


def load(path, fraction=0.1, split_seed=0, max_length=128, num_samples=None, column=None):
    return load_corpus(open_source(str(path), column), fraction, split_seed, max_length, num_samples, quiet=True)


def all_names(table):
    return table.names(np.arange(len(table)))


def test_every_line_is_counted(tmp_path):
    lines = ["# a comment", "", "  ", "Example.com", "example.com.", "a b.com", "com", "https://x.com", "1.2.3.4",
             "x" * 70 + ".com", "y" * 40 + "." + "y" * 60 + "." + "y" * 50 + ".com", "-a.com", *sample_names(300)]  # fmt: skip
    path = tmp_path / "names.txt"
    path.write_bytes("\r\n".join(lines).encode() + b"\nb\xffd.com\n")
    found = load(path)
    counts = dict(found.counts)
    assert counts.pop("lines") == len(lines) + 1 == sum(counts.values())
    expected = {"kept": 301, "comment": 1, "empty": 2, "duplicate": 1, "bad_character": 1, "one_label": 1, "url": 1,
                "ip_address": 1, "too_long": 1, "over_max_length": 1, "bad_label": 1, "undecodable": 1}  # fmt: skip
    assert {reason: count for reason, count in counts.items() if count} == expected
    assert found.rejects[0] == [6, "a b.com", "bad_character"] and len(found.rejects) == 5
    assert set(all_names(found.train)) | set(all_names(found.validation)) == {"example.com", *sample_names(300)}


def test_no_name_is_on_both_sides_and_sides_do_not_depend_on_order_or_company(tmp_path):
    names = sample_names(2_000)
    (tmp_path / "a.txt").write_text("\n".join(names))
    (tmp_path / "b.txt").write_text("\n".join(name.upper() for name in reversed(names[500:])))
    a, b = load(tmp_path / "a.txt"), load(tmp_path / "b.txt")
    train, validation = set(all_names(a.train)), set(all_names(a.validation))
    assert not train & validation and train | validation == set(names)
    assert set(all_names(b.train)) <= train and set(all_names(b.validation)) <= validation
    assert abs(len(validation) / 2_000 - 0.1) < 0.02
    other = load(tmp_path / "a.txt", split_seed=1)
    assert set(all_names(other.validation)) != validation


def test_duplicates_are_found_however_far_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_module, "CHUNK", 50)
    names = sample_names(1_000)
    order = np.random.default_rng(0).permutation(3_000) % 1_000
    (tmp_path / "names.txt").write_text("\n".join(names[i] for i in order))
    found = load(tmp_path / "names.txt")
    assert (found.counts["kept"], found.counts["duplicate"]) == (1_000, 2_000)
    assert set(all_names(found.train)) | set(all_names(found.validation)) == set(names)


def test_names_up_to_max_length_less_its_frame_are_kept(tmp_path):
    lines = [f"{'a' * 60}.{'b' * (n - 65)}.com" for n in (125, 126, 127)]
    (tmp_path / "names.txt").write_text("\n".join(lines + sample_names(50)))
    found = load(tmp_path / "names.txt")
    assert found.counts["over_max_length"] == 1 and found.rejects[0][0] == 3


def test_the_split_is_pinned():
    """The same names are held out on every machine and in every version, or old figures would not compare."""
    names = sample_names(1_000)
    side = on_validation_side(hash_names(*characters(names)), 0.1, 0)
    assert side.sum() == 101
    assert [name for name, held in zip(names, side) if held][:3] == [
        "ali-sahin.club", "fashionheating.com", "smarttravel.com",
    ]  # fmt: skip


def test_formats_give_the_same_names(tmp_path):
    names = sample_names(150)
    text = "\n".join(names) + "\n"
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(text.encode()))
    rows = "\n".join(f'{i},"{name}"' for i, name in enumerate(names))
    (tmp_path / "c.csv").write_text("rank,domain\n" + rows)
    (tmp_path / "d.tsv").write_text("rank\tdomain\n" + rows.replace(",", "\t"))
    (tmp_path / "e.csv.gz").write_bytes(gzip.compress(("site,x\n" + "\n".join(f"{n},1" for n in names)).encode()))
    pq.write_table(pa.table({"n": range(150), "text": names}), tmp_path / "f.parquet")
    expected = set(names)
    for path in sorted(tmp_path.iterdir()):
        found = load(path, column="site" if path.name.startswith("e") else None)
        assert set(all_names(found.train)) | set(all_names(found.validation)) == expected, path
    for many in (tmp_path / "*.t*", tmp_path):
        if many == tmp_path:
            (tmp_path / "e.csv.gz").unlink()
        found = load(many)
        assert found.counts["kept"] == 150 and found.counts["duplicate"] >= 300


def test_num_samples_takes_the_first_valid_names(tmp_path):
    names = sample_names(400)
    path = tmp_path / "names.txt"
    path.write_text("\n".join(["bad name", names[0], *names]))
    found = load(path, num_samples=100)
    assert set(all_names(found.train)) | set(all_names(found.validation)) == set(names[:100])
    assert found.counts == {"lines": 102, "kept": 100, "bad_character": 1, "duplicate": 1}


def test_the_cache_is_keyed_by_content_and_settings(tmp_path, monkeypatch):
    built = []
    build = corpus_module._build
    monkeypatch.setattr(corpus_module, "_build", lambda *args: (built.append(1), build(*args)))
    path = tmp_path / "names.txt"
    path.write_text("\n".join(sample_names(200)))
    load(path)
    load(path)
    assert len(built) == 1
    load(path, fraction=0.2)
    for changed in ({"split_seed": 1}, {"max_length": 64}, {"num_samples": 150}, {"column": "x"}):
        load(path, **changed)
    path.write_text("\n".join(sample_names(201)))
    assert load(path).counts["kept"] == 201
    assert len(built) == 7


def test_a_killed_build_leaves_nothing_that_loads(tmp_path, monkeypatch):
    path = tmp_path / "names.txt"
    path.write_text("\n".join(sample_names(222)))
    monkeypatch.setattr(corpus_module, "_write_lengths", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        load(path)
    monkeypatch.undo()
    monkeypatch.setenv("DOMAIN_CANINE_CACHE", str(tmp_path / "cache"))
    assert load(path).counts["kept"] == 222


def wrong(tmp_path, name: str, content: bytes, match: str, **options):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=match):
        load(path, **options)


def test_bad_data_is_told_clearly(tmp_path):
    wrong(tmp_path, "empty.txt", b"", "it is empty")
    wrong(tmp_path, "blank.txt", b"\n\n \n", "empty 3")
    wrong(tmp_path, "binary.txt", b"\x00\x01\x02" * 100, "binary file")
    wrong(tmp_path, "invalid.txt", b"hello\nworld\n", "(?s)no valid domain name.*one label 2.*line 1: 'hello'")
    wrong(tmp_path, "single.txt", b"example.com\n", "1 valid, unique name.*side empty")
    wrong(tmp_path, "two.csv", b"a,b\nx.com,y.com\n", "columns a, b; name one with --dataset_column")
    wrong(tmp_path, "two.csv", b"a,b\nx.com,y.com\n", "no column 'c'; it has a, b", column="c")
    wrong(tmp_path, "torn.txt.gz", gzip.compress(b"example.com\n" * 9999)[:-40], "cannot read.*torn.txt.gz")
    wrong(tmp_path, "no.txt.gz", b"example.com\n", "cannot read.*[Gg]zip")
    wrong(tmp_path, "no.parquet", b"example.com\n", "cannot read.*no.parquet")
    wrong(tmp_path, "empty.csv", b"", "it is empty")
    wrong(tmp_path, "headless.csv", b"a.com\nb.com\n", "has no header, its first row is 'a.com'")
    for missing in (tmp_path / "missing.txt", tmp_path / "missing", "data/domains.txt", "missing.csv.gz"):
        with pytest.raises(UserError, match="no file or folder"):
            open_source(str(missing))
    with pytest.raises(UserError, match="no file matches"):
        open_source(str(tmp_path / "*.nothing"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="holds no .txt"):
        open_source(str(tmp_path / "folder"))


def test_without_a_network_a_hub_id_is_told_clearly():
    with pytest.raises(UserError, match="(?s)cannot load the data set 'some/names'.*--dataset sample"):
        list(open_source("some/names").lines())


def test_hub_data_are_read_whole_or_streamed(tmp_path):
    """The real loading code, on a folder in the Hub's layout."""
    names = sample_names(120)
    pq.write_table(pa.table({"rank": range(120), "domain": names}), tmp_path / "train.parquet")
    for streaming in (False, True):
        source = Hub(str(tmp_path), streaming=streaming)
        assert list(source.lines()) == names
    assert Hub(str(tmp_path)).count() == 120
    assert Hub(str(tmp_path)).digest() == Hub(str(tmp_path)).digest()
    found = load_corpus(Hub(str(tmp_path)), 0.1, 0, 128, None, quiet=True)
    assert found.counts["kept"] == 120
    with pytest.raises(UserError, match="no column 'x'; it has rank, domain"):
        list(Hub(str(tmp_path), "x").lines())


def test_table_reads_any_rows(tmp_path):
    names = sample_names(1_000)
    writer = TableWriter(tmp_path / "t.arrow", rows_per_batch=64)
    for start in range(0, 1_000, 37):
        writer.add(names[start : start + 37])
    assert writer.close() == 1_000
    table = pickle.loads(pickle.dumps(NameTable(tmp_path / "t.arrow")))
    rows = np.random.default_rng(0).permutation(1_000)
    assert table.names(rows) == [names[row] for row in rows]
    taken, lengths = table.take(rows[:5])
    assert lengths.tolist() == [len(names[row]) for row in rows[:5]] and taken.shape == (5, lengths.max())
    assert table_of(names).names(rows) == table.names(rows)
    import datasets

    assert datasets.Dataset.from_file(str(tmp_path / "t.arrow"))["name"][:3] == names[:3]


def test_counts_are_kept_beside_the_names(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("\n".join(sample_names(233)))
    folder = load(path).train.source.parent
    assert json.loads((folder / "corpus.json").read_text())["counts"]["kept"] == 233
