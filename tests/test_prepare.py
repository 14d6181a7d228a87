"""From lines to clean, unique, shuffled, split names on disk: the same bytes again, whatever happens in between."""

import json
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from filelock import FileLock

from domain_canine import cli
from domain_canine import prepare as module
from domain_canine.cleaning import hash_array, on_validation_side
from domain_canine.corpus import load_corpus
from domain_canine.errors import UserError
from domain_canine.hub import Hub
from domain_canine.prepare import Settings, prepare
from domain_canine.sample import sample_names
from domain_canine.sources import open_source


def make(text: str | bytes, folder, settings=Settings(), name: str = "names.txt", **options):  # noqa: B008
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.parent / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    prepare(open_source(str(path)), folder, settings, quiet=True, **options)
    return load_corpus(str(folder), settings)


def names_of(side) -> list[str]:
    return side.table.names(np.arange(len(side.table)))


def every_name(corpus) -> list[str]:
    return names_of(corpus.train) + names_of(corpus.validation)


def contents(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def small_pieces(monkeypatch):
    """Many parts and shards of few names."""
    monkeypatch.setattr(module, "PART_BYTES", 2_000)
    monkeypatch.setattr(module, "SHARD_ROWS", 300)
    monkeypatch.setattr("domain_canine.readers.TEXT_BLOCK", 500)


def test_every_line_is_counted(tmp_path):
    lines = ["# a comment", "", "  ", "Example.com", "example.com.", "a b.com", "com", "https://x.com", "1.2.3.4",
             "x" * 70 + ".com", "y" * 40 + "." + "y" * 60 + "." + "y" * 50 + ".com", "-a.com", *sample_names(300)]  # fmt: skip
    found = make("\r\n".join(lines).encode() + b"\nb\xffd.com\n", tmp_path / "out")
    counts = dict(found.counts)
    assert counts.pop("lines") == len(lines) + 1 == sum(counts.values())
    expected = {"kept": 301, "comment": 1, "empty": 2, "duplicate": 1, "bad_character": 1, "one_label": 1, "url": 1,
                "ip_address": 1, "too_long": 1, "over_max_length": 1, "bad_label": 1, "undecodable": 1}  # fmt: skip
    assert {reason: count for reason, count in counts.items() if count} == expected
    assert set(every_name(found)) == {"example.com", *sample_names(300)}
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert rejects[0] == {
        "source": str(tmp_path / "names.txt"),
        "line": 6,
        "reason": "bad_character",
        "text": "a b.com",
    }
    assert [reject["line"] for reject in rejects] == [6, 7, 8, 9, 10, 11, 12, 313] and found.rejects == rejects[:5]


def test_no_name_is_on_both_sides_and_sides_do_not_depend_on_order_or_company(tmp_path):
    names = sample_names(2_000)
    a = make("\n".join(names), tmp_path / "a" / "out")
    b = make("\n".join(name.upper() for name in reversed(names[500:])), tmp_path / "b" / "out")
    train, validation = set(names_of(a.train)), set(names_of(a.validation))
    assert not train & validation and train | validation == set(names)
    assert set(names_of(b.train)) <= train and set(names_of(b.validation)) <= validation
    held = on_validation_side(hash_array(pa.array(names)), 0.1, 0)
    assert validation == {name for name, is_held in zip(names, held) if is_held}
    other = make("\n".join(names), tmp_path / "c" / "out", Settings(split_seed=1))
    assert set(names_of(other.validation)) != validation


def test_duplicates_are_found_however_far_apart(tmp_path, small_pieces):
    names = sample_names(1_000)
    order = np.random.default_rng(0).permutation(3_000) % 1_000
    found = make("\n".join(names[i] for i in order), tmp_path / "out")
    assert (found.counts["kept"], found.counts["duplicate"]) == (1_000, 2_000)
    assert sorted(every_name(found)) == sorted(names)
    assert len(list((tmp_path / "out" / "train").glob("*.arrow"))) == 9 and len(found.train.table) > 850


def test_different_names_of_one_key_stay_two_also_at_the_ends_of_the_range(tmp_path, monkeypatch, small_pieces):
    def two_keys(*parts):
        return np.where(np.asarray(parts[-1]) % np.uint64(2) == 0, np.uint64(0), np.uint64(2**64 - 1))

    monkeypatch.setattr(module.hashing, "key", two_keys)
    names = sample_names(1_000)
    with monkeypatch.context() as patched:
        patched.setattr(module, "on_validation_side", lambda hashes, *_: np.arange(len(hashes)) % 10 == 0)
        found = make("\n".join(names + names[:500]), tmp_path / "a" / "out")
    one_side = names_of(found.train)
    assert len(set(one_side)) == len(one_side) and set(every_name(found)) == set(names)
    # Within a key they stand in order of the names, so that the bytes are the same again.
    assert sum(a > b for a, b in zip(one_side, one_side[1:])) == 1


def test_names_are_shuffled_and_another_seed_shuffles_otherwise(tmp_path, small_pieces):
    names = sorted(sample_names(1_000))
    found = names_of(make("\n".join(names), tmp_path / "a" / "out").train)
    rank = np.array([names.index(name) for name in found])
    assert abs(np.corrcoef(rank, np.arange(len(rank)))[0, 1]) < 0.1
    other = names_of(make("\n".join(names), tmp_path / "b" / "out", Settings(seed=1)).train)
    assert other != found and sorted(other) == sorted(found)


def test_the_same_input_gives_the_same_bytes(tmp_path, monkeypatch, small_pieces):
    text = "\n".join(["bad name", *sample_names(1_000), *sample_names(500)])
    for name in "ab":
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        (tmp_path / name / "names.txt").write_text(text)
        prepare(open_source("names.txt"), tmp_path / name / "out", Settings(), memory=1.0 + (name == "b"), quiet=True)
        monkeypatch.setattr(module, "PART_BYTES", 777)  # however the work was cut
    assert contents(tmp_path / "a" / "out") == contents(tmp_path / "b" / "out")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [".out.lock", "names.txt", "out"]


def test_lengths_lie_beside_the_names_and_datasets_opens_the_folder(tmp_path, small_pieces):
    import datasets

    found = make("\n".join(sample_names(1_000)), tmp_path / "out")
    opened = datasets.load_from_disk(str(tmp_path / "out"))
    for side in ("train", "validation"):
        names = names_of(getattr(found, side))
        assert getattr(found, side).lengths.tolist() == [len(name) for name in names]
        assert opened[side]["name"][:] == names and opened[side].cache_files


def test_what_datasets_leaves_beside_the_names_is_not_trained_on(tmp_path):
    import datasets

    make("\n".join(sample_names(300)), tmp_path / "out")
    opened = datasets.load_from_disk(str(tmp_path / "out"))
    opened["train"].map(lambda row: {"name": row["name"].partition(".")[0]})
    opened["train"].filter(lambda row: len(row["name"]) < 12)
    assert any(path.name.startswith("cache-") for path in (tmp_path / "out" / "train").iterdir())
    found = load_corpus(str(tmp_path / "out"), Settings())
    assert set(every_name(found)) == set(sample_names(300))
    assert len(found.train.table) == len(found.train.lengths)


@pytest.mark.parametrize("killed", [False, True])
def test_another_column_of_several_inputs_is_another_set(tmp_path, monkeypatch, killed):
    for i in range(2):
        rows = [f"old{i}{name},new{i}{name}" for name in sample_names(300)]
        (tmp_path / f"{i}.csv").write_text("\n".join(["old,new", *rows]))
    inputs = ["prepare", str(tmp_path / "0.csv"), str(tmp_path / "1.csv"), "--output", str(tmp_path / "out")]
    if not killed:
        assert cli.main([*inputs, "--column", "old"]) == 0
        assert json.loads((tmp_path / "out" / "manifest.json").read_text())["input"]["column"] == "old"
        with pytest.raises(UserError, match=r"other settings \(column\)"):
            cli.main([*inputs, "--column", "new"])
        return
    with monkeypatch.context() as patched:
        patched.setattr(module, "_write_shard", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            cli.main([*inputs, "--column", "old"])
    assert cli.main([*inputs, "--column", "new"]) == 0
    found = every_name(load_corpus(str(tmp_path / "out"), Settings()))
    assert len(found) == 600 and all(name.startswith("new") for name in found)


def test_a_folder_may_be_called_anything(tmp_path, monkeypatch):
    text = "\n".join(sample_names(300))
    for name in ("out[1]", "a*b?", "with space", "ö"):
        assert make(text, tmp_path / name / "out").counts["kept"] == 300
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="is there already"):
        prepare(open_source("sample"), Path("."), Settings(), quiet=True)


def test_a_manifest_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    for text in ('{"name": "app"}', "[]", "{torn"):
        (tmp_path / "out" / "manifest.json").write_text(text)
        with pytest.raises(UserError, match="is there already, and nothing is overwritten"):
            make("\n".join(sample_names(300)), tmp_path / "out")


def test_names_up_to_max_length_less_its_frame_are_kept(tmp_path):
    lines = [f"{'a' * 60}.{'b' * (n - 65)}.com" for n in (125, 126, 127)]
    found = make("\n".join(lines + sample_names(50)), tmp_path / "out")
    assert found.counts["over_max_length"] == 1 and found.rejects[0]["line"] == 3


def test_num_samples_takes_the_first_valid_names(tmp_path):
    names = sample_names(400)
    found = make("\n".join(["bad name", names[0], *names]), tmp_path / "out", Settings(num_samples=100))
    assert set(every_name(found)) == set(names[:99])
    assert found.counts == {"lines": 101, "kept": 99, "bad_character": 1, "duplicate": 1}


def test_a_killed_run_goes_on_where_it_was(tmp_path, monkeypatch, small_pieces):
    text = "\n".join(sample_names(1_000))
    cleaned, written = [], []
    clean, write = module._clean_part, module._write_shard

    def counted_clean(part, path, settings):
        if len(cleaned) >= 5:
            raise KeyboardInterrupt
        clean(part, path, settings)
        cleaned.append(path)

    def counted_write(*args):
        if len(written) >= 2:
            raise KeyboardInterrupt
        write(*args)
        written.append(args[-1])

    for name, counted, done in (("_clean_part", counted_clean, cleaned), ("_write_shard", counted_write, written)):
        monkeypatch.setattr(module, name, counted)
        with pytest.raises(KeyboardInterrupt):
            make(text, tmp_path / "out")
        monkeypatch.setattr(module, name, {"_clean_part": clean, "_write_shard": write}[name])
        assert done and not (tmp_path / "out").exists() and (tmp_path / "out.building").is_dir()
    again = []
    monkeypatch.setattr(module, "_clean_part", lambda *args: again.append(1))
    monkeypatch.setattr(module, "_write_shard", lambda *args: (again.append(args[-1]), write(*args)))
    found = make(text, tmp_path / "out")
    # All parts were done, and two shards of three of the training side.
    assert [getattr(path, "name", path)[:10] for path in again] == ["data-00002", "data-00000"]
    assert sorted(every_name(found)) == sorted(sample_names(1_000))
    monkeypatch.undo()
    # What is left of other input is not taken, not even when its removal was killed.
    shutil.copytree(tmp_path / "out", tmp_path / "out.building")
    shutil.rmtree(tmp_path / "out")
    monkeypatch.setattr(module.shutil, "rmtree", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        make("\n".join(sample_names(50)), tmp_path / "out")
    monkeypatch.undo()
    assert not (tmp_path / "out.building" / "manifest.json").exists()
    assert make(text, tmp_path / "out").counts["kept"] == 1_000
    (tmp_path / "out").rename(tmp_path / "out.building")
    assert make("\n".join(sample_names(50)), tmp_path / "out").counts["kept"] == 50


def test_a_shard_has_its_name_when_it_is_whole(tmp_path, monkeypatch):
    names, write = sample_names(300), module.write_names

    def write_half(shard, path):
        write(shard[: len(shard) // 2], path)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(module, "write_names", write_half)
        make("\n".join(names), tmp_path / "out")
    assert not list(tmp_path.rglob("data-*.arrow"))
    assert sorted(every_name(make("\n".join(names), tmp_path / "out"))) == sorted(names)


def test_killed_at_any_moment_it_leaves_nothing_half_made(tmp_path):
    names = sample_names(6_000)
    (tmp_path / "names.txt").write_text("\n".join([*names, "bad name", *names[:1_000]]))
    script = [sys.executable, str(ROOT / "tests" / "kill_prepare.py"), str(tmp_path / "names.txt")]
    run = subprocess.run(
        [*script, str(tmp_path / "out"), "50", "20000", "1000"], capture_output=True, text=True, cwd=ROOT, timeout=300,
        env={"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    # Some runs came to their end under fire, by what the killed ones had left.
    assert int(run.stdout) > 1
    module.PART_BYTES, before = 20_000, module.PART_BYTES
    module.SHARD_ROWS, rows = 1_000, module.SHARD_ROWS
    try:
        prepare(open_source(str(tmp_path / "names.txt")), tmp_path / "reference", Settings(), quiet=True)
    finally:
        module.PART_BYTES, module.SHARD_ROWS = before, rows
    assert contents(tmp_path / "out") == contents(tmp_path / "reference")
    assert not (tmp_path / "out.building").exists()


def test_another_process_is_waited_for(tmp_path, capsys):
    with FileLock(tmp_path / ".out.lock"):
        thread = threading.Thread(target=prepare, args=(open_source("sample"), tmp_path / "out", Settings(), 4.0, True))
        thread.start()
        said, deadline = "", time.monotonic() + 60
        while "waiting" not in said and time.monotonic() < deadline:
            time.sleep(0.05)
            said += capsys.readouterr().err
        assert said == f"another process prepares {tmp_path / 'out'}: waiting for it\n"
        assert not (tmp_path / "out").exists() and not (tmp_path / "out.building").exists()
    thread.join(timeout=60)
    assert (tmp_path / "out" / "manifest.json").is_file()


def test_lack_of_memory_or_disk_keeps_what_is_done(tmp_path, monkeypatch):
    (tmp_path / "names.txt").write_text("\n".join(sample_names(500)))
    write = module._write_shard

    class Engine:
        def sql(self, *args, **options):
            import duckdb

            raise duckdb.OutOfMemoryException("could not allocate\nmore")

    monkeypatch.setattr(module, "_write_shard", lambda engine, *args: write(Engine(), *args))
    with pytest.raises(UserError, match="could not allocate; free some space or memory.*what is done is kept"):
        prepare(open_source(str(tmp_path / "names.txt")), tmp_path / "out", Settings(), quiet=True)
    assert list((tmp_path / "out.building" / "parts").glob("*.parquet"))


def test_nothing_is_overwritten(tmp_path):
    names = "\n".join(sample_names(200))
    found = make(names, tmp_path / "out")
    assert not prepare(open_source(str(tmp_path / "names.txt")), tmp_path / "out", Settings(), quiet=True)
    with pytest.raises(UserError, match="prepared from other input or with other settings \\(content\\)"):
        make(names + "\nx.com", tmp_path / "out")
    with pytest.raises(UserError, match="\\(split_seed\\)"):
        make(names, tmp_path / "out", Settings(split_seed=1))
    assert every_name(load_corpus(str(tmp_path / "out"), Settings())) == every_name(found)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    for taken in (tmp_path / "mine", tmp_path / "names.txt"):
        with pytest.raises(UserError, match="is there already, and nothing is overwritten"):
            prepare(open_source("sample"), taken, Settings(), quiet=True)
    with pytest.raises(UserError, match="cannot write the names"):
        prepare(open_source("sample"), tmp_path / "names.txt" / "out", Settings(), quiet=True)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "it is empty"),
        ("\n\n \n", "empty 3"),
        ("hello\nworld\n", "(?s)no valid domain name.*one label 2.*line 1: 'hello'"),
        ("example.com\n", "1 valid, unique name.*side empty"),
    ],
)
def test_input_without_names_is_told_clearly(tmp_path, text, match):
    with pytest.raises(UserError, match=match):
        make(text, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_hub_data_are_prepared(tmp_path):
    """The real loading code, on a folder in the Hub's layout."""
    names = sample_names(120)
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"rank": range(120), "domain": names}), tmp_path / "data" / "train.parquet")
    prepare(Hub(str(tmp_path / "data")), tmp_path / "out", Settings(), quiet=True)
    found = load_corpus(str(tmp_path / "out"), Settings())
    assert found.counts == {"lines": 120, "kept": 120, "duplicate": 0}
    assert not prepare(Hub(str(tmp_path / "data")), tmp_path / "out", Settings(), quiet=True)
    with pytest.raises(UserError, match="no column 'x'; it has rank, domain"):
        prepare(Hub(str(tmp_path / "data"), "x"), tmp_path / "other", Settings(), quiet=True)


def test_settings_reach_the_result(tmp_path):
    assert replace(Settings(), num_samples=5) != Settings()
    found = make("\n".join(sample_names(1_000)), tmp_path / "out", Settings(validation_split=0.5))
    assert 450 < len(found.validation.lengths) < 550


def test_nothing_is_said_where_no_script_is_run(tmp_path):
    """As in a notebook: DuckDB takes it for a terminal, and draws a bar of its own for what lasts 2 s."""
    code = (
        "import sys\nfrom pathlib import Path\nimport duckdb\nfrom domain_canine import prepare as module\n"
        "from domain_canine.sources import open_source\nconnect, write = duckdb.connect, module._write_shard\n"
        "def at_once(**options):\n"
        "    engine = connect(**options)\n    engine.execute('SET progress_bar_time = 100')\n    return engine\n"
        "def slowly(engine, *given):\n"
        "    write(engine, *given)\n    engine.execute('SELECT sum(hash(range)) FROM range(200_000_000)')\n"
        "duckdb.connect, module._write_shard = at_once, slowly\n"
        "module.prepare(open_source('sample'), Path(sys.argv[1]), module.Settings(num_samples=100), quiet=True)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code, tmp_path / "out"], cwd=ROOT, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
