"""Data sets of the Hugging Face Hub, loaded by ``datasets``."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

import huggingface_hub
import numpy as np
from huggingface_hub import constants

from .errors import UserError, first_line
from .readers import ROW_BLOCK, Block, as_bytes, choose_column


@cache
def use_cache_if_unreachable() -> None:
    """Without a network, go offline at once: the client libraries would retry for 80 seconds a request and then fail.

    What is in the local cache is still found then.
    """
    if constants.HF_HUB_OFFLINE:
        return
    try:
        huggingface_hub.get_session().head(constants.ENDPOINT, timeout=10)
    except Exception:  # connection, proxy and time-out errors of whichever HTTP library the client uses
        constants.HF_HUB_OFFLINE = True
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
