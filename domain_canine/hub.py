"""The Hugging Face Hub: is it there, tries when it is not; data sets, loaded by ``datasets``."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache

import huggingface_hub
import numpy as np
from huggingface_hub import constants
from huggingface_hub.errors import OfflineModeIsEnabled

from .connection import ClientError
from .errors import UserError, first_line
from .readers import ROW_BLOCK, Block, as_bytes, choose_column

PASSING = (429, 500, 502, 503, 504)  # what may be over after a while
PAUSES = (2, 5)  # seconds between three tries; with time-outs less than a minute
TIMEOUT, STALL = 10, 30  # seconds for a first answer, and without a byte; the client has none
_offline_by_us = False


class Away(Exception):
    """The Hub cannot be reached, or has no time for us."""


def insist(call: Callable):
    """What a call of the Hub's client returns, tried three times while the Hub is away.

    Raises:
        Away: it still is. What the Hub refuses, and the user's own HF_HUB_OFFLINE, raise as the client does.
    """
    for pause in (0, *PAUSES):
        time.sleep(pause)
        try:
            return _called(call)
        except Exception as error:
            if not _passes(error):
                raise
            last = error
    raise Away(first_line(last)) from last


def _called(call):
    # What an earlier request found out, for those that can do without the Hub, may be over.
    offline, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE and not _offline_by_us
    try:
        session = huggingface_hub.get_session()
        session.timeout = STALL
        answer = session.head(constants.ENDPOINT, timeout=TIMEOUT)
        if answer.status_code in PASSING:
            raise Away(f"{constants.ENDPOINT} answers {answer.status_code}")
        return call()
    finally:
        constants.HF_HUB_OFFLINE = offline


def _passes(error):
    """Whether the Hub is away, rather than refusing; an upload that fails by itself is a RuntimeError of hf_xet."""
    answer = getattr(error, "response", None)
    if answer is not None:
        return answer.status_code in PASSING
    passing = (Away, ClientError, ConnectionError, TimeoutError, RuntimeError)
    return isinstance(error, passing) and not isinstance(error, OfflineModeIsEnabled)


@cache
def use_cache_if_unreachable() -> None:
    """Without a network, go offline at once: the client libraries would retry for 80 seconds a request and then fail.

    What is in the local cache is still found then.
    """
    global _offline_by_us
    if constants.HF_HUB_OFFLINE:
        return
    try:
        huggingface_hub.get_session().head(constants.ENDPOINT, timeout=TIMEOUT)
    except Exception:  # connection, proxy and time-out errors of whichever HTTP library the client uses
        constants.HF_HUB_OFFLINE = _offline_by_us = True
        try:
            import datasets.config
        except ImportError:
            return
        datasets.config.HF_HUB_OFFLINE = True


def load(dataset: str, streaming: bool = False):
    """The ``train`` split of a data set: a ``datasets.Dataset``, or an ``IterableDataset`` that is read as it is used.

    Raises:
        UserError: it cannot be loaded.
    """
    import datasets

    use_cache_if_unreachable()
    try:
        return datasets.load_dataset(dataset, split="train", streaming=streaming)
    except Exception as error:  # every release raises other classes: connection, HTTP, not found, offline
        raise UserError(
            f"cannot load the data set {dataset!r} from the Hugging Face Hub: {first_line(error)}\n"
            "  Check the id and the network (and HF_HUB_OFFLINE), or use local names: --dataset FILE, "
            "or --dataset sample to try things out."
        ) from error


@dataclass
class Hub:
    """A data set of the Hugging Face Hub, its ``train`` split, downloaded whole."""

    description: str
    column: str | None = None
    _loaded: object = field(default=None, repr=False)

    def load(self):
        """The ``datasets.Dataset``, downloaded and loaded once."""
        if self._loaded is None:
            self._loaded = load(self.description)
        return self._loaded

    def blocks(self) -> Iterator[Block]:
        data = self.load()
        column = choose_column(data.column_names, self.column, f"the data set {self.description!r}")
        number = 1
        for table in data.select_columns([column]).with_format("arrow").iter(ROW_BLOCK):
            numbers = np.arange(number, number + len(table))
            number += len(table)
            yield Block(self.description, numbers, as_bytes(table[column]), (number - 1) / len(data))

    def digest(self) -> str:
        return f"{self.description} {self.load()._fingerprint}"
