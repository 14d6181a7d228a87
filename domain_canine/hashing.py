"""Counter-based randomness: every draw is a hash of what it is for, never of how many draws came before.

So any split of the work over ranks, micro-batches and workers draws alike, and any step can be reached at once.
All arithmetic is on uint64 and wraps; results are the same on every machine and NumPy version.
"""

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FNV_OFFSET = np.uint64(0xCBF29CE484222325)
_FNV_PRIME = np.uint64(0x100000001B3)


def mix(values) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele et al. 2014): a bijection of uint64 that looks random."""
    x = np.asarray(values).astype(np.uint64)
    with np.errstate(over="ignore"):
        x = x + _GOLDEN
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def key(*parts) -> np.ndarray:
    """One uint64 (or array, by broadcasting) from several non-negative integers, in order."""
    h = np.uint64(0)
    for part in parts:
        h = mix(h ^ mix(part))
    return h


def unit(values) -> np.ndarray:
    """uint64 -> float64 in [0, 1), from the upper 53 bits."""
    return (values >> np.uint64(11)).astype(np.float64) * 2.0**-53


def hash_names(characters: np.ndarray, lengths: np.ndarray, seed: int = 0) -> np.ndarray:
    """64-bit hash of each name: FNV-1a over its characters, then ``mix``.

    Args:
        characters: (B, L) code points, what lies beyond a name's length is not read.
        lengths: (B,) characters of each name.

    Returns:
        (B,) uint64; two of 255 million names share one with a probability of 0.2%.
    """
    h = np.full(len(characters), _FNV_OFFSET)
    with np.errstate(over="ignore"):
        for column in range(characters.shape[1]):
            longer = column < lengths
            h = np.where(longer, (h ^ characters[:, column].astype(np.uint64)) * _FNV_PRIME, h)
    return key(seed, h)
