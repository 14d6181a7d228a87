"""Raw lines to names by vector operations: equal, line by line, to ``normalize_domain``.

Lines of the plain form, nearly all of them, are found by one regular expression that is made of the same rules; every
other line is put to ``normalize_domain`` itself.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from . import hashing
from .normalization_domain_canine import MAX_LABEL, PLAIN, InvalidDomain, normalize_domain
from .readers import Block
from .table import spans

SPECIAL = 2  # code points that [CLS] and [SEP] add to a name

_SPLIT = 201  # the split's own kind of draw


class Reject(NamedTuple):
    """A line that holds no usable name; its text is cut at 300 characters, bytes that are no UTF-8 are escaped."""

    source: str
    line: int
    reason: str
    text: str


class Cleaner:
    """Normalises blocks of lines and counts what becomes of each line; the counts add up to ``lines``.

    Args:
        max_length: of the model's input; longer names are rejected as ``over_max_length``.
    """

    def __init__(self, max_length: int):
        self.longest = max_length - SPECIAL
        self.counts = Counter()
        self.rejects: list[Reject] = []

    def __call__(self, block: Block) -> pa.StringArray:
        """The valid names of a block, in its order."""
        before = self.counts.total()
        text, valid = normalize_lines(block.lines, self.longest, lambda *line: self._reject(block, *line))
        if blank := len(valid) - int(valid.sum()) - (self.counts.total() - before):
            self.counts["empty"] += blank
        for line, row in block.malformed:
            self._add(block.source, line, "malformed_row", row.decode("utf-8", "surrogateescape"))
        names = text.filter(pa.array(valid))
        if block.continued:
            self.counts["inside_quotes"] += block.continued
        self.counts["lines"] += len(block.lines) + len(block.malformed) + block.continued
        self.counts["valid"] += len(names)
        return names

    def _reject(self, block, i, line, reason):
        if reason in ("empty", "comment"):
            self.counts[reason] += 1
        else:
            self._add(block.source, int(block.numbers[i]), reason, line)

    def _add(self, source, line, reason, text):
        self.counts[reason] += 1
        shown = text.strip()[:300].encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        self.rejects.append(Reject(source, line, reason, shown))


def normalize_lines(
    lines: pa.BinaryArray, longest: int, reject: Callable[[int, str, str], None]
) -> tuple[pa.StringArray, np.ndarray]:
    """``normalize_domain`` of every line.

    Args:
        lines: (B,) bytes; white space at the edges, line ends included, does not matter.
        longest: characters a name may have; others are rejected as ``over_max_length``.
        reject: called with the index, the line and the reason where there is no name; comments have one, too. For
            lines of ASCII white space alone it is not called: a file may hold nothing else.

    Returns:
        (B,) names, and (B,) bool: whether there is one.
    """
    # The kernels work on bytes; no one checks that these are UTF-8, and the expression matches ASCII only.
    text = pa.StringArray.from_buffers(len(lines), lines.buffers()[1], lines.buffers()[2], offset=lines.offset)
    text = pc.ascii_lower(pc.ascii_trim_whitespace(text))
    # Up to 63 characters no label is too long.
    short = pc.less_equal(pc.binary_length(text), min(MAX_LABEL, longest))
    valid = np.array(pc.and_(pc.match_substring_regex(text, PLAIN), short))
    others = np.flatnonzero(~valid & np.asarray(pc.greater(pc.binary_length(text), 0)))
    mended = [_normalize(int(i), lines[i].as_py().decode("utf-8", "surrogateescape"), longest, reject) for i in others]
    text = pc.ascii_rtrim(text, ".")
    if mended:
        # What was rejected may be no UTF-8: an empty text takes its place.
        mask = np.zeros(len(valid), bool)
        mask[others] = True
        text = pc.replace_with_mask(text, pa.array(mask), pa.array([name or "" for name in mended], pa.string()))
        valid[others] = [name is not None for name in mended]
    return text, valid


def _normalize(i, line, longest, reject):
    if line.lstrip("\ufeff \t").startswith("#"):
        return reject(i, line, "comment")
    try:
        name = normalize_domain(line)
    except InvalidDomain as error:
        return reject(i, line, error.reason)
    return name if len(name) <= longest else reject(i, line, "over_max_length")


def first_names(blocks: Iterable[Block], count: int, max_length: int) -> Iterator[Block]:
    """Blocks up to the line that holds the ``count``-th valid name."""
    for block in blocks:
        found = np.flatnonzero(normalize_lines(block.lines, max_length - SPECIAL, lambda *line: None)[1])
        if len(found) >= count:
            last = found[count - 1]
            yield block._replace(
                numbers=block.numbers[: last + 1],
                lines=block.lines[: last + 1],
                malformed=[row for row in block.malformed if row[0] < block.numbers[last]],
                done=1.0,
                continued=0,
            )
            return
        count -= len(found)
        yield block


def hash_array(names: pa.StringArray) -> np.ndarray:
    """(B,) uint64: the hash of each name, which its side of the split and its masks come from."""
    return hashing.hash_names(*spans(names))


def on_validation_side(name_hashes: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """(B,) bool: the side of each name, a function of the name, the seed and the fraction alone."""
    return hashing.unit(hashing.key(seed, _SPLIT, name_hashes)) < fraction
