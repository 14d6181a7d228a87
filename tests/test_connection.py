"""Connections that break, by a real server on loopback: every name arrives, once, and no cut is taken for the end."""

import bz2
import gzip
import io
import random
import re
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count, islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from huggingface_hub import get_session
from test_streams import NAMES, load, make_stream, passes, training_names

from domain_canine import connection
from domain_canine.cleaning import Cleaner
from domain_canine.connection import HttpFile
from domain_canine.errors import UserError
from domain_canine.remote import HubStream, open_stream
from domain_canine.sample import sample_names
from domain_canine.sources import open_source


class Server:
    """Files over HTTP.

    Args:
        files: path -> bytes.
        ranges: whether parts are given.
        most: connections end after a random number of bytes up to this one, in mid-body.
        framing: how the body's end is told: length, chunks, or close.
        refused: errors that are answered before the first file is given.
        tags: whether a version is told, of the bytes.
        shift: parts begin so many bytes before what was asked for.
        packs: whether bodies are compressed for who allows it.
    """

    def __init__(
        self, files, ranges=True, most=None, framing="length", refused=(), stall=False, tags=True, shift=0, packs=False
    ):
        self.requests, self.drops = [], 0
        server, chance = self, random.Random(0)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 20

            def log_message(self, *args):
                pass

            def do_GET(self):
                path = self.path.partition("?")[0]
                server.requests.append(path)
                if path not in files:
                    return self.send_error(404)
                if len(server.requests) <= len(refused):
                    return self.send_error(refused[len(server.requests) - 1])
                packed = packs and "gzip" in self.headers["Accept-Encoding"]
                data = gzip.compress(files[path]) if packed else files[path]
                wanted = re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) if ranges else None
                start = max(0, int(wanted[1]) - shift) if wanted else 0
                if wanted and not data:
                    return self.send_error(416)
                self.send_response(206 if wanted else 200)
                if wanted:
                    self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
                if tags:
                    self.send_header("ETag", str(zlib.crc32(data)))
                if packed:
                    self.send_header("Content-Encoding", "gzip")
                if framing == "length":
                    self.send_header("Content-Length", str(len(data) - start))
                elif framing == "chunks":
                    self.send_header("Transfer-Encoding", "chunked")
                self.close_connection = True
                self.end_headers()
                cut = start + chance.randrange(most) if most else len(data)
                body = data[start:cut]
                if framing == "chunks":
                    body = b"%x\r\n%b\r\n" % (len(body), body) + (b"0\r\n\r\n" if cut >= len(data) else b"")
                self.wfile.write(body)
                if cut < len(data):
                    server.drops += 1
                    if stall:
                        time.sleep(30)
                return None

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.handle_error = lambda *args: None
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setattr(connection, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(connection, "LONGEST_WAIT", 0.002)
    servers = []

    def start(*args, **options):
        servers.append(Server(*args, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.http.shutdown()
        server.http.server_close()


def as_file(kind, names) -> bytes:
    text = "".join(f"{name}\n" for name in names).encode()
    if kind == ".parquet":
        file = io.BytesIO()
        pq.write_table(
            pa.table({"rank": range(len(names)), "domain": names}), file, row_group_size=500, compression=None
        )
        return file.getvalue()
    if kind == ".csv":
        return b"rank;domain\r\n" + b"".join(b'%d;"%b"\r\n' % (i, name.encode()) for i, name in enumerate(names))
    packed = {".gz": gzip.compress, ".bz2": bz2.compress, ".zst": lambda data: pa.compress(data, "zstd", asbytes=True)}
    return packed.get(Path(kind).suffix, bytes)(text)


KINDS = [".txt", ".txt.gz", ".txt.bz2", ".txt.zst", ".csv", ".parquet"]


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_every_name_arrives_once_a_pass_over_connections_that_break(serve, monkeypatch, capfd, kind, ranges):
    names = sample_names(3_000)
    data = as_file(kind, names)
    # Parts of the file without ranges must reach its end now and then.
    most = len(data) // 4 if ranges else 5 * len(data) // 4
    monkeypatch.setattr(connection, "PIECE", len(data) // 16)
    server = serve({f"/list/names{kind}": data}, ranges=ranges, most=most)
    # The workers are forks of a process that has read from there.
    stream = make_stream(open_stream(f"{server.url}/list/names{kind}?download=1"), workers=2 * ranges, batch_size=64)
    assert len(stream.validation()[0]) + len(training_names(names)) == len(names)
    expected = sorted(training_names(names))
    right = [sorted(found) == expected for found in passes(load(stream), 4)]
    assert right == [True] * 4  # the names themselves would take pytest minutes to compare
    assert server.drops > 1 and "trying again in 0.001 s" in capfd.readouterr().err


@pytest.mark.parametrize(("options", "sends"), [
    ({"framing": "chunks", "ranges": False, "most": 80_000}, True), ({"refused": (503, 408, 425, 429)}, True),
    ({"framing": "close"}, True), ({"most": 30_000, "stall": True}, True), ({"framing": "close", "ranges": False}, False),
])  # fmt: skip
def test_no_end_is_taken_for_the_whole(serve, monkeypatch, options, sends):
    monkeypatch.setattr(connection, "TIMEOUT", (1, 0.2))
    monkeypatch.setattr(connection, "PIECE", 1_000)
    names = sample_names(3_000)
    server = serve({"/names.txt": as_file(".txt", names)}, **options)
    if not sends:
        with pytest.raises(UserError, match="does not tell its length"):
            list(open_stream(f"{server.url}/names.txt").blocks())
        return
    begin = time.monotonic()
    found = [line for block in open_stream(f"{server.url}/names.txt").blocks(100) for line in block.lines.to_pylist()]
    assert time.monotonic() - begin < 20
    right = [line.decode().strip() for line in found] == names
    assert right


def test_nothing_is_compressed_on_the_way(serve):
    data = as_file(".txt", NAMES)
    assert connection.HttpFile(serve({"/names.txt": data}, packs=True).url + "/names.txt").read() == data


def test_parquet_without_ranges_is_fetched_once(serve):
    names = sample_names(3_000)
    server = serve({"/names.parquet": as_file(".parquet", names)}, ranges=False)
    assert sum(len(block.lines) for block in open_stream(f"{server.url}/names.parquet").blocks()) == len(names)
    assert len(server.requests) == 1


def test_what_will_not_pass_is_told_at_once_and_what_does_not_after_the_tries(serve, monkeypatch):
    server = serve({"/cut.txt": b"example.com\n" * 1_000}, most=1)
    with pytest.raises(UserError, match=r"absent.txt' cannot be read: the server answers 404"):
        make_stream(open_stream(f"{server.url}/absent.txt")).validation()
    assert len(server.requests) == 1
    with pytest.raises(
        UserError, match=r"cut.txt' cannot be read: 10 tries in a row failed, the last with: .*"
    ) as told:
        make_stream(open_stream(f"{server.url}/cut.txt")).validation()
    assert len(server.requests) == 1 + 11 and re.search("ended before|Incomplete|incomplete", str(told.value))


def test_waits_grow_to_a_limit_and_start_anew_after_a_success(monkeypatch):
    slept = []
    monkeypatch.setattr(connection.time, "sleep", slept.append)
    patience = connection.Patience("here")
    for _ in range(connection.TRIES):
        patience.wait(OSError("x"))
    with pytest.raises(UserError, match="'here' cannot be read"):
        patience.wait(OSError("x"))
    patience.reset()
    patience.wait(OSError("x"))
    assert slept == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 1]


def test_the_errors_of_the_hubs_client_are_drops():
    """Whichever library its release makes connections with."""
    with pytest.raises(connection.DROPS) as raised:
        type(get_session())().get("http://127.0.0.1:1")
    assert isinstance(raised.value, connection.ClientError)


def test_an_iterator_may_break_behind_every_item(monkeypatch):
    monkeypatch.setattr(connection, "FIRST_WAIT", 0)
    opened, many = count(1), 2 * connection.TRIES

    def open_again():
        yield from range(next(opened))
        raise connection.ClientError("x")

    assert list(islice(connection.patiently("here", open_again), many)) == list(range(many))


def test_a_file_that_is_cut_or_changes_at_the_server_is_refused(serve, monkeypatch):
    monkeypatch.setattr(connection, "PIECE", 1_000)
    names = sample_names(3_000)
    files = {f"/names{kind}": as_file(kind, names)[:-20] for kind in KINDS[1:4]}
    for path in files:
        with pytest.raises(UserError, match=f"cannot read .*{path}.*[Tt]runcated"):
            list(open_stream(serve(files).url + path).blocks())
    files = {"/names.txt": as_file(".txt", names)}
    blocks = open_stream(serve(files, most=20_000).url + "/names.txt").arrays(0, 100)
    monkeypatch.setattr("domain_canine.readers.TEXT_BLOCK", 5_000)
    next(blocks)
    files["/names.txt"] += b"one.more\n"
    with pytest.raises(UserError, match="has changed while it was read"):
        list(blocks)


def test_bytes_that_are_no_text_and_bad_columns_are_told(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"b\xff.com\r\nexample.org\r\n\r\nb\xc3\xbccher.de")
    cleaner = Cleaner(128)
    assert cleaner(next(open_stream(str(tmp_path / "a.txt")).blocks())).to_pylist() == [
        "example.org",
        "xn--bcher-kva.de",
    ]
    assert [(reject.line, reject.reason) for reject in cleaner.rejects] == [(1, "undecodable")]
    for text, told in (
        ("rank,host\n1,a.com\n", "has the columns rank, host; name one"),
        ("a.com,x\n", "has no header"),
    ):
        (tmp_path / "b.csv").write_text(text)
        with pytest.raises(UserError, match=told):
            next(open_stream(str(tmp_path / "b.csv"), "a.com" if "a.com," in text else None).blocks())


def test_a_hub_data_set_is_opened_again_where_it_broke(tmp_path, serve, monkeypatch):
    for i in range(3):
        pq.write_table(pa.table({"rank": range(len(NAMES[i::3])), "domain": NAMES[i::3]}), tmp_path / f"{i}.parquet")
    monkeypatch.setattr(
        "domain_canine.hub.load", lambda *args, **kwargs: load_dataset(str(tmp_path), split="train", **kwargs)
    )
    read, reads = HubStream._read, count()

    def break_now_and_then(self, file, rows):
        for block in read(self, file, rows):
            if next(reads) in (1, 7, 8):
                raise ConnectionError("Server Disconnected")
            yield block

    monkeypatch.setattr(HubStream, "_read", break_now_and_then)
    source = open_stream("some/names")
    assert source.files == ["some/names"] * 3
    assert sorted(passes(load(make_stream(source, batch_size=1)))[0]) == sorted(training_names())


def test_an_address_that_does_not_exist_is_told_at_once(serve, capsys):
    for url in ("http://nowhere.invalid/a.txt", "http://127.0.0.1:99999999/a.txt", "http:///a.txt"):
        with pytest.raises(UserError, match="does not exist: .*; check it, and the network"):
            HttpFile(url)
    assert not capsys.readouterr().err


def test_a_server_that_was_never_reached_is_tried_three_times(serve, capsys):
    closed = serve({})
    closed.http.shutdown()
    closed.http.server_close()
    with pytest.raises(UserError, match="3 tries in a row failed, the last with: .*Connection refused"):
        HttpFile(f"{closed.url}/a.txt")
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 3 and told[2].endswith("(3 of 3 times)") and "HTTPConnection" not in told[0]


def test_an_empty_file_of_a_server_with_ranges_is_empty(serve):
    with HttpFile(f"{serve({'/a.txt': b''}).url}/a.txt") as file:
        assert file.size == 0 and file.read() == b""


def test_other_content_behind_an_address_is_no_rest_of_the_first(serve):
    """Of the same length, so that its version alone tells."""
    files = {"/a.txt": b"aaaa.com\n" * 1_000}
    server = serve(files, most=5_000)
    told = r"changed while it was read: it had 9000 bytes \(version .*\)"
    with HttpFile(f"{server.url}/a.txt") as file, pytest.raises(UserError, match=told):
        while file.read(100):
            files["/a.txt"] = b"bbbb.com\n" * 1_000


def test_a_part_that_begins_elsewhere_is_not_taken(serve):
    server = serve({"/a.txt": b"a.com\n" * 1_000}, most=3_000, shift=7)
    with pytest.raises(UserError, match="asked for what follows byte .*, the server sent 'bytes "):
        HttpFile(f"{server.url}/a.txt").readall()


def test_what_has_no_version_is_not_kept(serve):
    with pytest.raises(UserError, match="neither a version .* nor a date"):
        open_source(f"{serve({'/a.txt': b'a.com'}, tags=False).url}/a.txt").digest()
    assert open_source(f"{serve({'/a.txt': b'a.com'}).url}/a.txt").digest()
