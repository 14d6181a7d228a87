"""Counter-based randomness: every draw is a hash of what it is for, never of how many draws came before.

So any split of the work over ranks, micro-batches and workers draws alike, and any step can be reached at once.
All arithmetic is on uint64 and wraps; results are the same on every machine and NumPy version.
"""

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FACTORS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)
_FNV_OFFSET = np.uint64(0xCBF29CE484222325)
_FNV_PRIME = np.uint64(0x100000001B3)
_AT_ONCE = 1 << 15  # names hashed at once: what they need stays in the processor's cache


def mix(values) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele et al. 2014): a bijection of uint64 that looks random."""
    # In place, and with one array for the shifts: new arrays for all results take twice as long.
    x = np.array(values, dtype=np.uint64, ndmin=1)
    x += _GOLDEN
    shifted = x >> _SHIFTS[0]
    x ^= shifted
    x *= _FACTORS[0]
    x ^= np.right_shift(x, _SHIFTS[1], out=shifted)
    x *= _FACTORS[1]
    x ^= np.right_shift(x, _SHIFTS[2], out=shifted)
    return x.reshape(np.shape(values))[()]


def key(*parts) -> np.ndarray:
    """One uint64 (or array, by broadcasting) from several non-negative integers, in order."""
    h = np.uint64(0)
    for part in parts:
        h = mix(h ^ mix(part))
    return h


def unit(values) -> np.ndarray:
    """uint64 -> float64 in [0, 1), from the upper 53 bits."""
    return (values >> np.uint64(11)).astype(np.float64) * 2.0**-53


def hash_names(data: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """64-bit hash of each name: FNV-1a over its characters, then ``mix``.

    Args:
        data: (N,) code points of all names, and whatever lies between them.
        starts, lengths: (B,) where each name begins in ``data``, and its characters.

    Returns:
        (B,) uint64; two of 255 million names share one with a probability of 0.2%.
    """
    found = np.full(len(starts), _FNV_OFFSET)
    for first in range(0, len(starts), _AT_ONCE):
        # The longest first: those that go on are a prefix, which shrinks from character to character.
        order = first + np.argsort(-lengths[first : first + _AT_ONCE].astype(np.int16), kind="stable")
        at, h = starts[order], found[order]
        going = len(order) - np.cumsum(np.bincount(lengths[order]))
        with np.errstate(over="ignore"):
            for column, count in enumerate(going[:-1]):
                here = h[:count]
                here ^= data[at[:count] + column].astype(np.uint64)
                here *= _FNV_PRIME
        found[order] = h
    return key(0, found)
