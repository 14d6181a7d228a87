"""Made-up names in any number, quickly: their lengths and characters are like real ones, their words are not."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

_AT_ONCE = 1 << 20
_LETTERS = np.frombuffer(b"eaoinrstlcdumhpgbfykvwzjxq0123456789", np.uint8)  # the frequent ones first
_SUFFIXES = [b".com", b".net", b".org", b".de", b".co.uk", b".info", b".xyz"]
_SHARES = [0.54, 0.1, 0.1, 0.1, 0.06, 0.05, 0.05]


def names(rows: int, seed: int = 0) -> Iterator[pa.StringArray]:
    """Arrays of together ``rows`` names, 17 characters long on average, 5 to 66; few are equal."""
    draw = np.random.default_rng(seed)
    for first in range(0, rows, _AT_ONCE):
        count = min(_AT_ONCE, rows - first)
        suffix = draw.choice(len(_SUFFIXES), count, p=_SHARES)
        extra = np.array([len(each) for each in _SUFFIXES])[suffix]
        ends = np.cumsum(np.clip(draw.gamma(7, 1.8, count).astype(np.int64), 2, 60) + extra)
        data = _LETTERS[(draw.random(ends[-1]) ** 2 * len(_LETTERS)).astype(np.int64)]
        for i, each in enumerate(_SUFFIXES):
            begins = (ends - extra)[suffix == i]
            for j, character in enumerate(each):
                data[begins + j] = character
        offsets = np.concatenate([[0], ends]).astype(np.int32)
        yield pa.StringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(data))


def write_lines(path: Path, rows: int) -> None:
    """Lines as they are found: one in 16 is there twice, one in 64 in upper case, one in 1,024 no name."""
    import pyarrow.compute as pc

    with path.open("wb") as file:
        for array in names(rows):
            at = np.arange(len(array))
            array = array.take(pa.array(np.where(at % 16 == 1, at - 1, at)))
            array = pc.if_else(pa.array(at % 64 == 0), pc.ascii_upper(array), array)
            array = pc.if_else(pa.array(at % 1024 == 7), "no name", array)
            file.write(pc.binary_join(pa.array([array.to_pylist()]), "\n")[0].as_buffer())
            file.write(b"\n")
