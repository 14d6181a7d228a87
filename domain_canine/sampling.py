"""Which names form which batch: a pure function of (seed, epoch, step), found without keeping an order in memory.

Names lie on disk in random order already, so an epoch is a permutation of blocks of consecutive rows, computed on the
fly (a Feistel network, nothing is stored). Rows are counted from another one in each epoch, so that blocks begin
elsewhere and the short block, always the last, holds other names. What results is cut into windows of 64 global
batches; within a window rows are sorted by length and cut into batches, and the batches are permuted. So names of like
length meet, padding stays small, reads go by block, and any step is one window away.

What is left over after the last full global batch forms the epoch's last, shorter step. A global batch is dealt to
micro-steps and ranks by length, in shares that differ by one row at most; a share may be empty in that last step.

Batches may also be cut evenly by slots, what the model computes, instead of by names: then the batches of a window, the
last one too, have more short names or fewer long ones.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from torch.utils.data import BatchSampler

from . import hashing
from .scoring_domain_canine import slots as model_slots

WINDOW = 64  # global batches; at 512 names 75% or more of the slots are real, and a window takes milliseconds
# Rows, 16 KB of names. From a cold disk single rows, blocks of 256, 1024, 4096 came at 0.14, 4.6, 42 and 60 M names/s.
BLOCK = 1024

_ROUNDS = 4  # enough for a permutation that looks random (Luby and Rackoff 1988)
_DRAWS = 101  # the order's own kinds of draws, from here on


class _Keys(NamedTuple):
    """What the draws of an epoch begin with, uint64."""

    permute: np.uint64
    shuffle: np.uint64
    shift: np.uint64
    ties: np.uint64


@lru_cache
def _keys(seed: int, epoch: int) -> _Keys:
    return _Keys(*hashing.key(seed, epoch, _DRAWS + np.arange(len(_Keys._fields))))


def slots(characters):
    """As the model's, of a number, or of an array of any integers as int64."""
    return model_slots(np.int64(characters))


def cuts_by_slots(needed: np.ndarray, parts: int) -> np.ndarray:
    """Where names in order of length are cut into ``parts`` batches, the largest as small as can be: (parts - 1,).

    A batch takes as many slots as its longest name for every name; ``needed`` (N,), N >= parts, are those of each.
    """
    least, most = int(needed.sum()) // parts, int(needed[-1]) * len(needed)
    while least < most:
        middle = (least + most) // 2
        least, most = (least, middle) if len(_filled(needed, middle)) < parts else (middle + 1, most)
    cuts = _filled(needed, most)
    while len(cuts) < parts - 1:  # fewer than allowed: the batch of the most names becomes two
        edges = [0, *cuts, len(needed)]
        i = int(np.argmax(np.diff(edges)))
        cuts.insert(i, (edges[i] + edges[i + 1]) // 2)
    return np.array(cuts, np.int64)


def _filled(needed, limit):
    """Cuts of batches that are filled up to ``limit`` slots, or with one name, from the longest on."""
    cuts, stop = [], len(needed)
    while (stop := stop - max(1, limit // int(needed[stop - 1]))) > 0:
        cuts.insert(0, stop)
    return cuts


def names_within(lengths: np.ndarray, limit: int) -> int:
    """How many names a batch of about ``limit`` slots has, on average; of a million names that are in random order."""
    some = np.sort(lengths[: 1 << 20])
    few = limit * WINDOW // int(slots(some).mean())  # a window's
    needed = slots(some[:: max(1, len(some) // few)])
    return max(1, len(needed) // (len(_filled(needed, limit)) + 1))


class Window(NamedTuple):
    """The batches of some consecutive steps."""

    rows: np.ndarray  # (n,) int64 in the order to read them in: runs of consecutive rows
    batches: list[np.ndarray]  # a step each: (B,) int64 indices into ``rows``, sorted by length


class Permutation:
    """A pseudo-random permutation of ``range(size)``, evaluated at any positions without being stored.

    An unbalanced Feistel network over the next power of two; what falls outside walks on (Black and Rogaway 2002).
    """

    def __init__(self, size: int, seed: int):
        bits = max(2, (size - 1).bit_length())
        self.size = size
        self._low_bits = np.uint64(bits // 2)
        self._masks = np.uint64(2 ** (bits // 2) - 1), np.uint64(2 ** (bits - bits // 2) - 1)
        self._keys = hashing.key(seed, np.arange(_ROUNDS))

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Positions (n,) in [0, size) -> rows (n,) int64."""
        values = self._step(positions.astype(np.uint64))
        while (outside := values >= self.size).any():
            values[outside] = self._step(values[outside])
        return values.astype(np.int64)

    def _step(self, values):
        low_mask, high_mask = self._masks
        low, high = values & low_mask, values >> self._low_bits
        for i, round_key in enumerate(self._keys):
            if i % 2:
                low = low ^ (hashing.mix(high ^ round_key) & low_mask)
            else:
                high = high ^ (hashing.mix(low ^ round_key) & high_mask)
        return (high << self._low_bits) | low


class BatchPlan:
    """The rows of every step, micro-step and rank.

    Args:
        lengths: (N,) uint8 characters of each name; a memory map will do.
        global_batch: rows of a step over all ranks and micro-steps.
        micro_steps: gradient accumulation steps.
        seed: of the order.
        shuffle: without it, rows are sorted by length over windows of the order given (for evaluation).
        block: consecutive rows that stay together.
        even: a window's batches are cut to need as few slots as possible at most; ``global_batch`` is their mean.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        global_batch: int,
        micro_steps: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        block: int = BLOCK,
        even: bool = False,
    ):
        self.lengths = np.asarray(lengths)  # a memory map stays one, without the slower indexing of np.memmap
        self.global_batch = global_batch
        self.micro_steps = micro_steps
        self.seed = seed
        self.shuffle = shuffle
        self.block = block
        self.even = even
        self.steps = -(-len(lengths) // global_batch)
        self._key, self._window = None, None

    def rows(self, epoch: int, step: int, micro_step: int = 0, rank: int = 0, ranks: int = 1) -> np.ndarray:
        """Rows of one rank's micro-batch, (B,) int64, sorted by length; B may be 0 in an epoch's last step."""
        first, window = self.window(epoch, step)
        return window.rows[self.deal(window.batches[step - first], rank, ranks)[micro_step]]

    def deal(self, batch: np.ndarray, rank: int, ranks: int) -> list[np.ndarray]:
        """A rank's share of a global batch (B,), for each micro-step."""
        # Micro-steps are cut in order of length; ranks of a micro-step interleave, so that they end together.
        cuts = [len(batch) * share // self.micro_steps for share in range(self.micro_steps + 1)]
        return [batch[start + rank : stop : ranks] for start, stop in zip(cuts, cuts[1:])]

    def window(self, epoch: int, step: int) -> tuple[int, Window]:
        """The window that a step lies in, and its first step; the last window is kept."""
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of an epoch of {self.steps}")
        first, steps = self._span(step)
        if self._key != (epoch, first):
            self._key, self._window = (epoch, first), self._make_window(epoch, first, steps)
        return first, self._window

    def _span(self, step):
        """First step of a step's window, and the steps in it."""
        first = step // WINDOW * WINDOW
        if self.even:
            # The last window has what is left over of names and steps, up to twice as many: so no step is short.
            last = max(0, self.steps // WINDOW - 1) * WINDOW
            return (last, self.steps - last) if first >= last else (first, WINDOW)
        whole = len(self.lengths) // self.global_batch
        return (whole, 1) if step == whole else (first, min(WINDOW, whole - first))

    def _make_window(self, epoch, first, steps):
        """The batches of so many steps from ``first`` on."""
        rows = self._positions_to_rows(epoch, first * self.global_batch, (first + steps) * self.global_batch)
        # One radix sort of 16 bits: 7 ns a name, where a sort of 64 bits takes 80. Of rows of one length those of a
        # block must not always meet in a batch; 256 groups in random order are enough for that.
        lengths = self.lengths[rows]
        order = lengths.astype(np.uint16) << np.uint16(8)
        if self.shuffle:
            ties = hashing.mix(rows.astype(np.uint64) ^ _keys(self.seed, epoch).ties)
            order |= (ties >> np.uint64(56)).astype(np.uint16)
        order = np.argsort(order, kind="stable")
        if self.even:
            batches = np.split(order, cuts_by_slots(slots(lengths[order]), steps))
        else:
            batches = list(order.reshape(steps, -1))
        if self.shuffle:
            numbers = np.arange(first, first + steps, dtype=np.uint64)
            batches = [batches[i] for i in np.argsort(hashing.mix(numbers ^ _keys(self.seed, epoch).shuffle))]
        return Window(rows, batches)

    def _positions_to_rows(self, epoch, start, stop):
        """Rows (n,) at the positions from ``start`` to ``stop``, or the end, of an epoch."""
        count, block = len(self.lengths), self.block
        stop = min(stop, count)
        if not self.shuffle:
            return np.arange(start, stop)
        first, whole = start // block, count // block
        blocks = np.arange(first, -(-stop // block))
        full = blocks < whole
        blocks[full] = Permutation(whole, int(_keys(self.seed, epoch).permute))(blocks[full])
        rows = (blocks[:, None] * block + np.arange(block)).ravel()[start - first * block : stop - first * block]
        rows += int(_keys(self.seed, epoch).shift) % count
        rows[rows >= count] -= count
        return rows


class MicroStepSampler(BatchSampler):
    """Yields ``[(epoch, micro-step of the epoch)]``; the data set makes the batch.

    So the Trainer's ``skip_first_batches`` skips pairs of integers: half an epoch of 255 million names in 50 ms.
    """

    def __init__(self, micro_steps_per_epoch: int):
        self.micro_steps_per_epoch = micro_steps_per_epoch
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return ([(self.epoch, index)] for index in range(self.micro_steps_per_epoch))

    def __len__(self) -> int:
        return self.micro_steps_per_epoch
