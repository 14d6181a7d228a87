"""``score`` and ``complete`` on the command line: order, reasons, formats, and what goes wrong."""

import contextlib
import csv
import gzip
import io
import json
import os
import signal
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest
from conftest import ROOT

from domain_canine import cli, rows
from domain_canine.arguments import ModelArguments
from domain_canine.errors import UserError
from domain_canine.pretrained import build_model, build_tokenizer, load_model
from domain_canine.sample import sample_names
from domain_canine.scoring_domain_canine import score_names

LINES = ["Example.com", "", "no-dot", "bücher.de", "http://a.com/x", "# note", "192.168.0.1", "last.org"]
NAMES = ["example.com", None, None, "xn--bcher-kva.de", None, None, None, "last.org"]
REASONS = [None, "empty", "one_label", None, "url", "comment", "ip_address", None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    model = build_model(ModelArguments(model_size="tiny", config_overrides="num_hidden_layers=1"))
    model.save_pretrained(path)
    build_tokenizer(model, 128).save_pretrained(path)
    return path


def call(*words) -> int:
    return cli.main([str(word) for word in words])


def process(*words, **options):
    """The command, with smaller windows: what is written comes sooner."""
    code = "from domain_canine import cli, rows; rows.WINDOW = 256; cli.entry()"
    command = [sys.executable, "-c", code, *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, **options)


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(LINES) + "\n")
    return path


def test_every_line_is_a_row_in_order_with_its_reason(folder, lines, tmp_path):
    outputs = {suffix: tmp_path / f"scores.{suffix}" for suffix in ("csv", "jsonl", "parquet")}
    for path in outputs.values():
        assert call("score", folder, lines, "--output", path, "--characters") == 0
    told = pq.read_table(outputs["parquet"]).to_pylist()
    assert told == [json.loads(line) for line in outputs["jsonl"].read_text().splitlines()]
    assert [row["input"] for row in told] == LINES and [row["name"] for row in told] == NAMES
    assert [row["reason"] for row in told] == REASONS
    model = load_model(str(folder)).eval()
    for row in told:
        if row["name"] is None:
            assert row["log_probability"] is row["bits_per_character"] is row["characters"] is None
            continue
        [score] = score_names(model, [row["name"]])
        assert row["characters"] == pytest.approx(score.characters, abs=1e-4)
        assert row["log_probability"] == pytest.approx(score.log_probability, abs=1e-4)
    with outputs["csv"].open() as file:
        for row, other in zip(csv.DictReader(file), told, strict=True):
            assert row["input"] == other["input"] and row["name"] == (other["name"] or "")
            numbers = [float(number) for number in row["characters"].split()]
            assert numbers == pytest.approx(other["characters"] or [], rel=1e-5)


def test_rows_that_are_no_names_are_counted(folder, lines, capfdbinary):
    """A column that holds none would look like success."""
    assert call("score", folder, lines) == 0
    told = b"5 of 8 rows are no names (empty 1, one label 1, url 1, comment 1, ip address 1): the reason stands beside"
    assert told in capfdbinary.readouterr().err
    assert call("score", folder, "example.com") == 0
    assert b"no names" not in capfdbinary.readouterr().err


def test_orders_of_a_model_that_has_not_learnt_them_are_warned_of(folder, capfdbinary):
    for flags, warned in (((), False), (("--orders", "0"), False), (("--orders", "2"), True)):
        assert call("score", folder, "example.com", *flags) == 0
        assert (b"warning: --orders 2" in capfdbinary.readouterr().err) == warned


def rounded(table: bytes) -> list[dict]:
    """Its rows; a process with other threads adds in another order."""
    rows = list(csv.DictReader(table.decode().splitlines()))
    for row in rows:
        for name in ("log_probability", "bits_per_character"):
            row[name] = row[name] and pytest.approx(float(row[name]), abs=1e-4)
    return rows


def test_names_files_and_standard_input_are_the_same(folder, lines, tmp_path, capfdbinary):
    assert call("score", folder, lines) == 0
    of_file = rounded(capfdbinary.readouterr().out)
    with gzip.open(tmp_path / "lines.csv.gz", "wt") as file:
        csv.writer(file).writerows([["id", "domain"], *([i, line] for i, line in enumerate(LINES))])
    assert call("score", folder, tmp_path / "lines.csv.gz", "--column", "domain") == 0
    assert rounded(capfdbinary.readouterr().out) == of_file
    piped = process("score", folder, "-", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert rounded(piped.communicate(lines.read_bytes())[0]) == of_file
    assert call("score", folder, *(line for line in LINES if line)) == 0
    assert rounded(capfdbinary.readouterr().out) == [row for row in of_file if row["input"]]


def test_a_file_of_many_windows_is_scored_as_its_lines_are(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "WINDOW", 50)
    names = sample_names(300)
    (tmp_path / "names.txt").write_text("\n".join(names))
    assert call("score", folder, tmp_path / "names.txt", "--output", tmp_path / "out.parquet") == 0
    table = pq.read_table(tmp_path / "out.parquet")
    assert table["name"].to_pylist() == names
    model = load_model(str(folder)).eval()
    expected = [score.log_probability for score in score_names(model, names)]
    assert table["log_probability"].to_pylist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("delimiter", [",", ";"])
def test_a_row_of_a_csv_that_has_other_columns_stays_in_its_place(folder, tmp_path, delimiter):
    (tmp_path / "a.csv").write_text("domain,x\na.com,1\nb.com,1,2\nc.com,3\n".replace(",", delimiter))
    assert call("score", folder, tmp_path / "a.csv", "--output", tmp_path / "a.jsonl") == 0
    told = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [row["reason"] for row in told] == [None, "malformed_row", None]
    assert [row["name"] for row in told] == ["a.com", None, "c.com"] and (
        told[1]["input"] == f"b.com{delimiter}1{delimiter}2"
    )


def test_malformed_rows_stay_in_their_places_over_windows_whatever_their_bytes(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "WINDOW", 2)
    lines = [f"{name},1" for name in sample_names(9)]
    lines[3], lines[6], lines[8] = "caf\xe9.com", '"2"3,b.com', "odd"
    (tmp_path / "a.csv").write_bytes("\n".join(["domain,x", *lines, ""]).encode("latin-1"))
    for suffix in ("csv", "parquet", "jsonl"):
        assert call("score", folder, tmp_path / "a.csv", "--output", tmp_path / f"o.{suffix}") == 0
    told = pq.read_table(tmp_path / "o.parquet").to_pylist()
    assert [place for place, row in enumerate(told) if row["reason"] == "malformed_row"] == [3, 6, 8]
    assert [told[place]["input"] for place in (3, 6, 8)] == ["caf\\xe9.com", '"2"3,b.com', "odd"] and len(told) == 9


def test_line_ends_within_a_line_do_not_break_a_csv(folder, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a.com\nb\rc.com\nd.com\n")
    assert call("score", folder, tmp_path / "a.txt", "--output", tmp_path / "o.csv") == 0
    with (tmp_path / "o.csv").open() as file:
        assert [row["input"] for row in csv.DictReader(file)] == ["a.com", "b\\rc.com", "d.com"]
    assert pc.read_csv(tmp_path / "o.csv").num_rows == 3


@pytest.mark.parametrize("word", ["fill", "score"])
def test_a_full_disk_is_one_message(folder, word):
    """Standard output has a buffer, which the interpreter flushes at its end unless somebody does sooner."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "domain_canine", word, str(folder), "a.com" if word == "score" else "a?.com"], cwd=ROOT, env=environment, stdout=full,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "space" in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (gzip.compress(b"a.com\n", mtime=0), "standard input is compressed: unpack it"),
        ("a.com\n".encode("utf-16"), "standard input is UTF-16 text"),
        (b"x" * (9 << 20), "standard input has a line of more than"),
        (None, "standard input is closed"),
    ],
)
def test_standard_input_that_is_no_text_is_one_message(folder, tmp_path, monkeypatch, given, told):
    monkeypatch.setattr(sys, "stdin", given and io.TextIOWrapper(io.BytesIO(given)))
    with pytest.raises(UserError, match=told):
        call("score", folder, "-", "--output", tmp_path / "x.csv")
    assert not (tmp_path / "x.csv").exists()


def test_the_mark_at_the_head_of_a_file_is_no_part_of_its_first_line(folder, tmp_path, capfdbinary):
    (tmp_path / "marked.txt").write_bytes("a.com\nb.com\n".encode("utf-8-sig"))
    assert call("score", folder, tmp_path / "marked.txt") == 0
    assert [row["input"] for row in rounded(capfdbinary.readouterr().out)] == ["a.com", "b.com"]


def test_empty_names_are_rows(folder):
    for given in (["a.com", ""], ["", "a.com"], ["a.com", "", "b.com"]):
        assert [text for block in rows.read_rows(given) for text in block.texts] == given


def test_a_name_too_long_for_a_path_is_a_row(folder, capfdbinary):
    assert call("score", folder, "a" * 300 + ".com") == 0
    [row] = rounded(capfdbinary.readouterr().out)
    assert row["reason"] == "too_long"


def test_standard_input_is_not_written_over(folder, tmp_path):
    (tmp_path / "names.csv").write_text("a.com\n")
    with (tmp_path / "names.csv").open() as file:
        piped = process("score", folder, "-", "--output", tmp_path / "names.csv", "--overwrite", stdin=file)
        assert b"is among the names to be read" in piped.communicate()[1] and piped.returncode == 2
    assert (tmp_path / "names.csv").read_text() == "a.com\n"


def test_an_empty_file_gives_an_empty_table(folder, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    for suffix in ("csv", "jsonl", "parquet"):
        assert call("score", folder, tmp_path / "empty.txt", "--output", tmp_path / f"e.{suffix}") == 0
    assert pq.read_table(tmp_path / "e.parquet").num_rows == 0
    assert (tmp_path / "e.csv").read_text().startswith("input,name,") and (tmp_path / "e.jsonl").read_text() == ""


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["score", "MODEL", "nofile.txt"], "there is no file or folder 'nofile.txt'"),
        (["score", "MODEL", "*.none"], "no file matches '..none'"),
        (["score", "MODEL", "a.com", "--output", ""], "--output '': give it the suffix"),
        (["complete", "MODEL", "a?.com", "--exclude", ""], "the name of the data is empty"),
        (["score", "MODEL", "lines.csv", "--column", "nope"], "has no column 'nope'; it has a, b"),
        (["score", "MODEL", "lines.csv"], "has the columns a, b; name one with --dataset_column"),
        (["score", "MODEL", "a.com", "--output", "x.txt"], "give it the suffix .csv, .jsonl or .parquet"),
        (["score", "MODEL", "a.com", "--output", "there.csv"], "exists; add --overwrite"),
        (["score", "MODEL", "a.com", "--output", "no/where.csv"], "cannot be written: No such file"),
        (["score", "MODEL", "a.com", "--output", f"{'x' * 300}.csv"], "xxx…' is no path: File name too long"),
        (["score", "m" * 300, "a.com"], "mmm…' is no path: File name too long"),
        (["score", "MODEL", "a.com", "--column", "a"], "--dataset_column 'a': a name has no columns"),
        (["score", "MODEL", "names.txt", "--column", "a"], "'names.txt' is text and has no columns"),
        (["score", "MODEL", "-", "--column", "a"], "standard input has no columns"),
        (["score", "MODEL", "a.com", "--orders", "-1"], "--orders must be at least 0, not -1"),
        (["score", "nomodel/x", "a.com"], "cannot load the model"),
        (["score", "nomodel/x/y", "a.com"], "there is no model folder"),
        (["score", ".", "a.com"], "holds no model"),
        (["score", "MODEL", "lines.csv", "a.com"], "'lines.csv' reads as a file: give one file"),
        (["score", "MODEL", "a.com", "nofile.txt"], "'nofile.txt' reads as a file: give one file"),
        (["score", "MODEL", "rows.jsonl"], "'rows.jsonl' is JSON; names come one a line"),
        (["complete", "MODEL", "a?.com", "--exclude", "rows.jsonl"], "'rows.jsonl' is JSON"),
        (["score", "MODEL", "-bad.com"], "what begins with a hyphen goes behind --"),
        (["complete", "MODEL", "a?.com", "--top_k", "2"], "--temperature and top_k are for drawing"),
        (["complete", "MODEL", "a b?.com"], "cannot become a domain name"),
        (["complete", "MODEL", "a?.com", "--length", "x"], "give MIN-MAX"),
        (["complete", "MODEL", "a?.com", "--length", "9-3"], "give MIN-MAX"),
        (["complete", "MODEL", "a?.com", "--count", "0"], "--count must be at least 1, not 0"),
        (["complete", "MODEL", "a?.com", "--temperature", "0"], "--temperature must be 0.001 or more"),
        (["complete", "MODEL", "a?.com", "--temperature", "inf"], "--temperature must be 0.001 or more, not inf"),
        (["complete", "MODEL", "a?.com", "--seed", str(2**64)], "--seed must be from 0 on"),
        (["complete", "MODEL", "a?.com", "--exclude", "nofile.txt"], "there is no file or folder 'nofile.txt'"),
        (["complete", "MODEL", "a?.com", "--exclude", "x" * 300], "is no path: File name too long"),
        (["complete", "MODEL", "a?.com", "--exclude", "lines.csv"], "has the columns a, b; name one"),
        (["complete", "MODEL", "a?.com", "--column", "b"], "is a column of --exclude, which is not given"),
        (["complete", "MODEL", "a?.com", "--suffixes", "net"], "ends in none of the suffixes net"),
    ],
)
def test_mistakes_are_one_message(folder, tmp_path, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lines.csv").write_text("a,b\n1,2\n")
    (tmp_path / "names.txt").write_text("a.com\n")
    (tmp_path / "rows.jsonl").write_text('\n {"name": "a.com"}\n')
    (tmp_path / "there.csv").write_text("mine")
    with pytest.raises(UserError, match=told.replace("(", r"\(")):
        call(*(folder if word == "MODEL" else word for word in words))
    assert (tmp_path / "there.csv").read_text() == "mine" and not (tmp_path / "x.txt").exists()


@pytest.mark.parametrize("command", ["score", "embed"])
def test_a_mistake_leaves_what_overwrite_would_replace(folder, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    names = tmp_path / "names.csv"
    names.write_text("domain,other\na.com,x\n")
    (tmp_path / "old.csv").write_text("old\n")
    for inputs, output, told in (
        (["names.csv"], "names.csv", "is among the names to be read"),
        (["*.csv"], "./names.csv", "is among the names to be read"),
        (["names.csv", "--column", "third"], "old.csv", "has no column 'third'"),
        (["nofile.csv"], "old.csv", "there is no file"),
        (["no/file"], "old.csv", "there is no file"),
    ):
        with pytest.raises(UserError, match=told):
            call(command, folder, *inputs, "--output", output, "--overwrite")
    with pytest.raises(UserError, match="is among the names to be read"):
        call("complete", folder, "a?.com", "--exclude", names, "--output", names, "--overwrite")
    assert names.read_text().endswith("a.com,x\n") and (tmp_path / "old.csv").read_text() == "old\n"


def test_overwrite_replaces(folder, tmp_path):
    (tmp_path / "there.csv").write_text("mine")
    assert call("score", folder, "a.com", "--output", tmp_path / "there.csv", "--overwrite") == 0
    assert "a.com" in (tmp_path / "there.csv").read_text()


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_what_was_written_before_an_interrupt_is_valid(folder, tmp_path, suffix):
    path, endless = tmp_path / f"out.{suffix}", b"".join(name.encode() + b"\n" for name in sample_names(5000))
    running = process("score", folder, "-", "--output", path, stdin=subprocess.PIPE)
    deadline = time.monotonic() + 60
    os.set_blocking(running.stdin.fileno(), False)
    while not (path.exists() and path.stat().st_size > 30_000) and time.monotonic() < deadline:
        with contextlib.suppress(BlockingIOError):
            running.stdin.write(endless)
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    assert running.wait(20) == 130
    said = running.stderr.read()
    assert b"Traceback" not in said
    if suffix == "parquet":
        names = pq.read_table(path)["name"].to_pylist()
    elif suffix == "csv":
        names = [row["name"] for row in csv.DictReader(path.open())]
    else:
        names = [json.loads(line)["name"] for line in path.read_text().splitlines()]
    assert f"{len(names):,} rows in {path}".encode() in said
    assert len(names) >= 256 and names == (sample_names(5000) * 100)[: len(names)]


def test_a_signal_in_the_middle_of_a_row_group_leaves_a_table(tmp_path):
    def stop(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    schema = pa.schema([("text", pa.string()), ("numbers", pa.list_(pa.float64()))])
    columns = {"text": ["example.com"] * 2000, "numbers": [[number / 3] * 10 for number in range(2000)]}
    try:
        for delay in range(1, 41, 2):
            with pytest.raises(KeyboardInterrupt), rows.Table(str(tmp_path / "out.parquet"), schema, True) as table:
                signal.setitimer(signal.ITIMER_REAL, delay / 1000)
                while True:
                    table.write(columns)
            assert pq.read_table(tmp_path / "out.parquet").num_rows % 2000 == 0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_reader_that_has_seen_enough_ends_it_quietly(folder, tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(sample_names(9_000)))
    running = process("score", folder, tmp_path / "names.txt", stdout=subprocess.PIPE)
    assert running.stdout.readline().startswith(b"input,")
    running.stdout.close()
    assert running.wait(60) == 141 and running.stderr.read() == b""


def test_what_complete_has_found_is_there_when_it_is_ended(folder, tmp_path):
    out = tmp_path / "names.csv"
    running = process("complete", folder, *(f"{letter}???????.com" for letter in "abcdefghij" * 40), "--output", out)
    while not out.exists() or out.read_text().count("\n") < 2:
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    assert running.wait(60) == 143, running.stderr.read()
    assert pc.read_csv(out).column("pattern").to_pylist()[0] == "a???????.com"


def test_complete_writes_names_with_their_scores_and_says_what_is_missing(folder, tmp_path, capfd):
    known = [f"{number},a{letter}.com" for number, letter in enumerate("abcdefghijklmnopqrstuvwxyz")]
    (tmp_path / "known.csv").write_text("\n".join(["id,host", *known]))
    out = tmp_path / "names.jsonl"
    assert call("complete", folder, "a?.com", "*", "--count", "20", "--suffixes", "com,net", "--length", "2-3",
                "--exclude", tmp_path / "known.csv", "--column", "host", "--output", out) == 0  # fmt: skip
    told = [json.loads(line) for line in out.read_text().splitlines()]
    first = [row for row in told if row["pattern"] == "a?.com"]
    assert {row["name"] for row in first} == {f"a{digit}.com" for digit in "0123456789"}
    assert len(told) == 10 + 20 and "'a?.com': 10 of 20 names found" in capfd.readouterr().err
    (tmp_path / "known.txt").write_text("\n".join(["# known", "", "http://aa.com/", "AB.com"]))
    assert call("complete", folder, "a?.com", "--count", "36", "--exclude", tmp_path / "known.txt") == 0
    seen = capfd.readouterr()
    assert "aa.com" in seen.out and "ab.com" not in seen.out
    assert "known.txt': 1 lines are no names (url 1)" in seen.err
    (tmp_path / "known.txt").write_text("")
    assert call("complete", folder, "a?.com", "--exclude", tmp_path / "known.txt") == 0
    assert "known.txt' holds no name: nothing is left out" in capfd.readouterr().err
    model = load_model(str(folder)).eval()
    expected = [score.bits_per_character for score in score_names(model, [row["name"] for row in told])]
    assert [row["bits_per_character"] for row in told] == pytest.approx(expected, abs=1e-4)
