"""What ``prepare`` takes: memory under its limit, whatever the lines are, and no work done twice."""

import json
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from conftest import ROOT

from domain_canine import prepare as module
from domain_canine.prepare import Settings, prepare
from domain_canine.readers import Block
from domain_canine.sample import sample_names
from domain_canine.sources import open_source


def build(tmp_path, memory: float):
    return module._Build(open_source("sample"), tmp_path / "out.building", {}, Settings(), memory, True)


def test_parts_and_the_engine_stay_within_the_limit(tmp_path, monkeypatch):
    asked = []
    connect = duckdb.connect
    monkeypatch.setattr(duckdb, "connect", lambda **options: asked.append(options["config"]) or connect(**options))
    for memory in (1.0, 4.0):
        made = build(tmp_path, memory)
        # 12 times its text, for each that is cleaned, the one that is read and the one that waits.
        assert 12 * made.part_bytes * (made.workers + 2) <= 1e9 * (memory - 0.5)
        prepare(open_source("sample"), tmp_path / f"out{memory}", Settings(num_samples=300), memory, quiet=True)
        assert all(float(each["memory_limit"].removesuffix("GB")) <= (memory - 0.5) / 2 for each in asked)
    assert len(asked) == 4 and build(tmp_path, float("inf")).part_bytes == module.PART_BYTES


def test_few_parts_are_in_memory_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART_BYTES", 200)
    monkeypatch.setattr("domain_canine.readers.TEXT_BLOCK", 100)
    read, cleaned, ahead = [], [], []
    parts, clean = module._parts, module._clean_part

    def counted(*args):
        for part in parts(*args):
            read.append(1)
            ahead.append(len(read) - len(cleaned))
            yield part

    def slow(part, path, settings):
        time.sleep(0.01)
        clean(part, path, settings)
        cleaned.append(1)

    monkeypatch.setattr(module, "_parts", counted)
    monkeypatch.setattr(module, "_clean_part", slow)
    (tmp_path / "names.txt").write_text("\n".join(sample_names(500)))
    prepare(open_source(str(tmp_path / "names.txt")), tmp_path / "out", Settings(), quiet=True)
    assert len(read) > 30 and max(ahead) <= build(tmp_path, 4.0).workers + 3


def test_malformed_rows_fill_a_part_too():
    blocks = [Block("x", np.arange(0), pa.array([], pa.binary()), 0.5, [(i, "a,b") for i in range(100)])] * 10
    assert [len(part) for part, _ in module._parts(blocks, 50_000)] == [2] * 5


def test_junk_is_cleaned_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PIECE_ROWS", 10)
    kept = []
    add = module.Cleaner._add
    monkeypatch.setattr(module.Cleaner, "_add", lambda self, *args: (add(self, *args), kept.append(len(self.rejects))))
    (tmp_path / "names.txt").write_text("\n".join(["no name"] * 95 + sample_names(50)))
    prepare(open_source(str(tmp_path / "names.txt")), tmp_path / "out", Settings(), quiet=True)
    assert len(kept) == 95 and max(kept) == 10
    rejects = (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in rejects] == list(range(1, 96))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("junk", [b"\n" * 40_000_000, b"no name\n" * 400_000, b"1,2,3,4\n" * 1_000_000])
def test_peak_memory_with_junk(tmp_path, junk):
    """Of a process of its own; getrusage would tell its parent's peak, too."""
    suffix = ".csv" if b"," in junk else ".txt"
    (tmp_path / f"names{suffix}").write_bytes(b"domain\n" * (suffix == ".csv") + junk + b"a.com\n" * 1000)
    code = (
        "import sys\nfrom domain_canine import cli\nfrom domain_canine.errors import UserError\n"
        "try:\n    cli.main(sys.argv[1:])\nexcept UserError as error:\n    assert 'empty' in str(error), error\n"
        "print(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0])"
    )
    arguments = ["prepare", str(tmp_path / f"names{suffix}"), "--memory", "1", "--output", str(tmp_path / "out")]
    ran = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(ran.stdout.split()[-1]) / 1e6 < 1.0


def test_more_memory_goes_on_with_what_is_done(tmp_path, monkeypatch, capsys):
    (tmp_path / "names.txt").write_text("\n".join(sample_names(2_000)))
    source = open_source(str(tmp_path / "names.txt"))
    monkeypatch.setattr("domain_canine.readers.TEXT_BLOCK", 1_000)
    with monkeypatch.context() as patched:
        patched.setattr(module, "PART_BYTES", 2_000)
        patched.setattr(module, "_write_shard", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare(source, tmp_path / "out", Settings(), 1.0, quiet=True)
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "out.building" / "parts").glob("*.json")}
    assert len(parts) > 3

    with monkeypatch.context() as patched:
        patched.setattr(module, "_clear", lambda building: None)
        prepare(source, tmp_path / "out", Settings(), 4.0, quiet=True)
    assert {tmp_path / "out.building" / path.relative_to(tmp_path / "out"): path.stat().st_mtime_ns
            for path in (tmp_path / "out" / "parts").glob("*.json")} == parts  # fmt: skip
    # Parts that are larger than memory allows are made anew, and that is said.
    (tmp_path / "out").rename(tmp_path / "out.building")
    (tmp_path / "out.building" / "manifest.json").unlink()
    monkeypatch.setattr(module, "PART_BYTES", 1_000)
    prepare(source, tmp_path / "out", Settings(), 1.0, quiet=True)
    assert "made anew" in capsys.readouterr().err
