"""Reading over connections that break: files behind http(s) URLs, and any iterator that can be opened again.

A connection that ends early, stalls or is refused is tried again, with growing waits; it never looks like the end.
"""

import http.client
import io
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice

import requests
import urllib3
from huggingface_hub.errors import HfHubHTTPError

from .errors import UserError, first_line

TRIES = 10  # in a row that bring nothing: with these waits, about 4 minutes
FIRST_TRIES = 3  # where no server was ever reached: more likely a mistake than a break
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds; doubled from try to try
TIMEOUT = (10, 60)  # seconds to connect, and from byte to byte
PIECE = 1 << 20  # bytes read at once: what a drop costs
# Of the Hub's client, for connections, time-outs and answers: of httpx in its versions 1, of httpx2 since.
ClientError = HfHubHTTPError.__bases__[0]
# What the network layers raise: requests and our own reading, and the Hub's client.
DROPS = (OSError, EOFError, http.client.HTTPException, urllib3.exceptions.HTTPError, ClientError)
_PASSING = (408, 425, 429)  # the client errors that may be over after a while


def is_url(dataset: str) -> bool:
    return dataset.startswith(("http://", "https://"))


class Patience:
    """Waits between tries, and gives up after ``TRIES`` in a row."""

    def __init__(self, what: str):
        self.what, self.failures = what, 0

    def reset(self) -> None:
        self.failures = 0

    def wait(self, error: Exception, tries: int = TRIES) -> None:
        """Sleep before the next try.

        Raises:
            UserError: there have been enough.
        """
        self.failures += 1
        if self.failures > tries:
            raise UserError(
                f"{self.what!r} cannot be read: {tries} tries in a row failed, the last with: {_told(error)}\n"
                "  Check the network and the address; a run that has checkpoints goes on with --resume_from_checkpoint."
            ) from error
        seconds = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (self.failures - 1))
        told = f"trying again in {seconds:g} s ({self.failures} of {tries} times)"
        print(f"lost {self.what}: {_told(error)}; {told}", file=sys.stderr)
        time.sleep(seconds)


def _reason(error: Exception) -> Exception | None:
    """What urllib3 raised within an error of requests."""
    return getattr(error.args[0], "reason", None) if error.args else None


def _told(error: Exception) -> str:
    """What went wrong, without the addresses and objects that requests puts around it."""
    return str(_reason(error)).rpartition(": ")[2] if _reason(error) else first_line(error)


def patiently(what: str, open_again: Callable[[], Iterator]) -> Iterator:
    """The items of an iterator that may break: it is opened again then, and what was given is passed over."""
    patience, given = Patience(what), 0
    while True:
        try:
            for item in islice(open_again(), given, None):
                given += 1
                patience.reset()
                yield item
            return
        except DROPS as error:
            patience.wait(error)


class HttpFile(io.RawIOBase):
    """The bytes behind a URL. After a drop reading goes on at the byte where it broke: by a request for the rest, or
    from a server without ranges by reading up to there again.

    Raises:
        UserError: at once for what will not pass (404); after ``TRIES`` for what did not.
    """

    def __init__(self, url: str):
        self.url = url
        self.size: int | None = None  # bytes; None where the server sends chunks, whose last one ends them
        self.ranges = False  # whether the server gives parts
        self.version: str | None = None  # as the server tells
        self._at, self._response, self._patience = 0, None, Patience(url)
        while self._response is None:
            try:
                self._connect()
            except DROPS as error:
                unknown = isinstance(_reason(error), urllib3.exceptions.NameResolutionError)
                if unknown or isinstance(error, requests.exceptions.InvalidURL):
                    raise UserError(f"{url!r} does not exist: {_told(error)}; check it, and the network") from error
                reached = not isinstance(_reason(error), urllib3.exceptions.NewConnectionError)
                self._patience.wait(error, TRIES if reached else FIRST_TRIES)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self.size is not None

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        if at != self._at:
            self._disconnect()
            self._at = at
        return at

    def readinto(self, buffer) -> int:
        while self.size is None or self._at < self.size:
            try:
                if self._response is None:
                    self._connect()
                piece = self._piece(len(buffer))
            except DROPS as error:
                self._disconnect()
                self._patience.wait(error)
                continue
            buffer[: len(piece)] = piece
            self._at += len(piece)
            self._patience.reset()
            return len(piece)
        return 0

    def close(self) -> None:
        self._disconnect()
        super().close()

    def _piece(self, most):
        piece = self._response.raw.read(min(most, PIECE))
        if not piece and self.size is not None:
            raise ConnectionError(f"it ended before its {self.size:,} bytes")
        return piece

    def _disconnect(self):
        if self._response is not None:
            self._response.close()
            self._response = None

    def _connect(self):
        # Compressed on the way, lengths and ranges would be those of other bytes.
        headers = {"Range": f"bytes={self._at}-", "Accept-Encoding": "identity"}
        response = requests.get(self.url, headers=headers, stream=True, timeout=TIMEOUT)
        if response.status_code == 416 and self._at == 0:  # nothing of an empty file can be had in parts
            response = requests.get(self.url, headers={"Accept-Encoding": "identity"}, stream=True, timeout=TIMEOUT)
        if 400 <= response.status_code < 500 and response.status_code not in _PASSING:
            raise UserError(
                f"{self.url!r} cannot be read: the server answers {response.status_code} {response.reason}; "
                "check the address"
            )
        response.raise_for_status()
        self.ranges = response.status_code == 206
        size = _size(response, self._at)
        if size is None and "chunked" not in response.headers.get("Transfer-Encoding", ""):
            raise UserError(
                f"{self.url!r} does not tell its length, so that a cut would go unnoticed; download it first"
            )
        version = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if self._at and (size, version) != (self.size, self.version):
            raise UserError(
                f"{self.url!r} has changed while it was read: it had {self.size} bytes (version {self.version}), and "
                f"has {size} (version {version}) now"
            )
        self.size, self.version, self._response = size, version, response
        skipped = self._at if self.ranges else 0
        while skipped < self._at:
            if not (piece := self._piece(self._at - skipped)):
                raise ConnectionError("it ended before the byte where it had broken")
            skipped += len(piece)


def _size(response, at: int) -> int | None:
    """Bytes of the whole file, of which a part was asked for from ``at`` on; None where the server does not tell."""
    if response.status_code == 206:
        unit_and_first, _, rest = response.headers.get("Content-Range", "").partition("-")
        if unit_and_first != f"bytes {at}":
            raise ConnectionError(f"asked for what follows byte {at}, the server sent {unit_and_first!r}")
        size = rest.rpartition("/")[2]
    else:
        size = response.headers.get("Content-Length", "*")
    return int(size) if size.isdigit() else None
