"""Which names form which batch: a pure function of (seed, epoch, step), found without keeping an order in memory.

An epoch is a permutation of the rows, computed on the fly (a Feistel network, so no row is stored). It is cut into
windows of 64 global batches; within a window rows are sorted by length and cut into batches, and the batches are
permuted. So names of like length meet, padding stays small, and any step is one window away.

What is left over after the last full global batch forms the epoch's last, shorter step. A global batch is dealt to
micro-steps and ranks by length, in shares that differ by one row at most; a share may be empty in that last step.
"""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import BatchSampler

from . import hashing

WINDOW = 64  # global batches; at 512 names 75% or more of the slots are real, and a window takes milliseconds

_ROUNDS = 6
# One number for each kind of draw.
_PERMUTE, _SHUFFLE = 101, 102


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
        lengths: (N,) characters of each name; a memory map will do.
        global_batch: rows of a step over all ranks and micro-steps.
        micro_steps: gradient accumulation steps.
        seed: of the order.
        shuffle: without it, rows are sorted by length over windows of the order given (for evaluation).
    """

    def __init__(
        self, lengths: np.ndarray, global_batch: int, micro_steps: int = 1, seed: int = 0, shuffle: bool = True
    ):
        self.lengths = lengths
        self.global_batch = global_batch
        self.micro_steps = micro_steps
        self.seed = seed
        self.shuffle = shuffle
        self.steps = -(-len(lengths) // global_batch)
        self._window_key, self._window = None, None

    def rows(self, epoch: int, step: int, micro_step: int = 0, rank: int = 0, ranks: int = 1) -> np.ndarray:
        """Rows of one rank's micro-batch, (B,) int64, sorted by length; B may be 0 in an epoch's last step."""
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of an epoch of {self.steps}")
        batch = self._batch(epoch, step)
        # Micro-steps are cut in order of length; ranks of a micro-step interleave, so that they end together.
        share = np.array_split(batch, self.micro_steps)[micro_step]
        return share[rank::ranks]

    def _batch(self, epoch, step):
        full = len(self.lengths) // self.global_batch
        first = full if step == full else step // WINDOW * WINDOW
        if self._window_key != (epoch, first):
            self._window_key, self._window = (epoch, first), self._make_window(epoch, first, full)
        return self._window[step - first]

    def _make_window(self, epoch, first, full):
        """The batches of steps ``first`` .. ``first + WINDOW``, (steps, global_batch); or the one short batch."""
        count = len(self.lengths)
        last = min(first + WINDOW, full)
        end = count if first == full else last * self.global_batch
        rows = np.arange(first * self.global_batch, end)
        if self.shuffle:
            rows = Permutation(count, int(hashing.key(self.seed, _PERMUTE, epoch)))(rows)
        rows = rows[np.argsort(self.lengths[rows], kind="stable")]
        if first == full:
            return rows[None]
        batches = rows.reshape(-1, self.global_batch)
        if self.shuffle:
            batches = batches[np.argsort(hashing.key(self.seed, _SHUFFLE, epoch, first, np.arange(len(batches))))]
        return batches


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
