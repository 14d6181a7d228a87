"""Rows to masked batches, inside the data loader's workers."""

from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from . import hashing
from .masking import EVALUATION_EPOCH, DataCollatorForCodePointMasking, as_batch, below
from .sampling import BatchPlan, MicroStepSampler, Window, slots
from .table import NameTable, spans
from .tokenization_domain_canine import CLS, PAD, SEP

# Characters that batches of fixed shapes have room for. L is 2 more.
FIXED_ROOMS = (8, 12, 16, 20, 24, 28, 36, 48, 72, 128, 256)
# Names masked at once. Of 256 a call into NumPy costs more than its work, and very many leave the processor's cache: at
# 256, 1024, 2048, 4096, 6144 names 0.4, 0.85, 0.96, 1.08, 1.02 M names/s.
AT_ONCE = 4096


def frame(names: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Characters (B, C), 0 beyond a name, and lengths -> code points with [CLS] and [SEP] (B, L), and how many."""
    ids = np.full((len(names), needed(names.shape[1])), PAD, dtype=np.int32)
    ids[:, 1 : names.shape[1] + 1] = names
    return _set_ends(ids, lengths), lengths + 2


def _set_ends(ids, lengths):
    ids[:, 0] = CLS
    ids.ravel()[np.arange(0, ids.size, ids.shape[1]) + lengths + 1] = SEP
    return ids


def needed(characters: int) -> int:
    """L for names of so many characters.

    It is 2 modulo 4: the model adds two slots and rounds up to whole molecules, so that it computes no slot more.
    """
    return characters + 2 + -characters % 4


class _Share(NamedTuple):
    """One rank's names of a window, one micro-batch after the other."""

    data: np.ndarray  # (C,) uint8 a byte, those of the window's names, and room for one more
    starts: np.ndarray  # (n,) int64 the byte before each
    lengths: np.ndarray  # (n,) int64 its characters
    drawn: np.ndarray  # (..., n) what comes with each: draws for its masks
    bounds: np.ndarray  # (M + 1,) of the micro-batches in the above
    rooms: np.ndarray  # (M,) characters that a micro-batch's L and K are for


class NameBatches(Dataset):
    """Masked batches of a table, by (epoch, micro-step).

    Args:
        table, lengths: the names, and a byte a name; of fewer lengths, the first names.
        collator: masks them; None where they are not masked (``LabelledBatches``).
        rank, ranks: this process, and how many there are.
        batch_size: names a rank and micro-step.
        micro_steps: gradient accumulation steps.
        seed: of the order.
        evaluation: rows in order, masks the same at every call.
        fixed_shapes: for compiled kernels, no more shapes than FIXED_ROOMS: each batch has ``batch_size`` rows, empty
            names without a target in place of those it lacks; L and K are for names of as many characters as the next
            of FIXED_ROOMS.
        global_batch: names a step over all ranks and micro-steps, on average: batches are then cut evenly by slots, and
            ``batch_size`` is their mean, rounded.
    """

    def __init__(
        self,
        table: NameTable,
        lengths: np.ndarray,
        collator: DataCollatorForCodePointMasking | None,
        batch_size: int,
        rank: int = 0,
        ranks: int = 1,
        micro_steps: int = 1,
        seed: int = 42,
        evaluation: bool = False,
        fixed_shapes: bool = False,
        global_batch: int | None = None,
    ):
        self.table = table
        self.collator = collator.for_evaluation() if evaluation and collator else collator
        self.batch_size, self.rank, self.ranks = batch_size, rank, ranks
        self.evaluation, self.fixed_shapes = evaluation, fixed_shapes
        step = global_batch or batch_size * ranks * micro_steps
        self.plan = BatchPlan(
            lengths, step, micro_steps, seed, shuffle=not evaluation, even=global_batch is not None
        )  # fmt: skip
        self.content: str | None = None  # equal for equal names
        self._window, self._share, self._ready = None, None, {}

    def __len__(self) -> int:
        """Names, not batches: what the Trainer reports as the number of examples."""
        return len(self.plan.lengths)

    def largest(self) -> tuple[int, int]:
        """Rows and characters of a micro-batch that takes as much memory as any."""
        longest = int(self.plan.lengths.max())
        if self.fixed_shapes:
            longest = FIXED_ROOMS[int(np.searchsorted(FIXED_ROOMS, longest))]
        if not self.plan.even:
            return self.batch_size, longest
        # Rows of the longest names in the slots of the first window's largest batch.
        rows, batches = self.plan.window(0, 0)[1]
        shares = [share for batch in batches for share in self.plan.deal(batch, self.rank, self.ranks) if len(share)]
        most = max(len(share) * int(slots(self.plan.lengths[rows[share[-1]]])) for share in shares)
        return max(1, most // int(slots(longest))), longest

    def divide(self, batch_size: int, micro_steps: int) -> None:
        """The same steps in other micro-steps."""
        self.batch_size, self.plan.micro_steps = batch_size, micro_steps
        self._window, self._share, self._ready = None, None, {}

    def sampler(self) -> MicroStepSampler:
        return MicroStepSampler(self.plan.steps * self.plan.micro_steps)

    def __getitem__(self, at: tuple[int, int]) -> dict[str, torch.Tensor]:
        epoch, index = at
        first, window = self.plan.window(epoch, index // self.plan.micro_steps)
        if window is not self._window:
            self._window, self._share, self._ready = window, self._read(window, epoch), {}
        place = index - first * self.plan.micro_steps
        if place not in self._ready:
            self._ready.update(self._make(self._alike(place)))
        return self._ready.pop(place)

    def _read(self, window: Window, epoch: int) -> _Share:
        """All that is done once for a window: names are read by runs of rows, and hashed."""
        deal = self.plan.deal
        shares = [self._fill(share) for batch in window.batches for share in deal(batch, self.rank, self.ranks)]
        mine = np.concatenate(shares)
        bounds = np.cumsum([0, *map(len, shares)])
        data, starts, lengths = spans(self.table.take(window.rows))
        # An empty name, the last, stands for the rows that are missing.
        starts, lengths = np.append(starts, starts[0])[mine], np.append(lengths, 0)[mine]
        drawn = self._draw(np.append(window.rows, -1)[mine], data, starts, lengths, epoch)
        begin, end = starts.min(), int((starts + lengths).max())
        data = np.pad(data[begin:end], (1, needed(FIXED_ROOMS[-1])))
        rooms = np.maximum(np.maximum.reduceat(lengths, bounds[:-1]), 1)
        if self.fixed_shapes:
            rooms = np.take(FIXED_ROOMS, np.searchsorted(FIXED_ROOMS, rooms))
        rooms = needed(rooms) - 2  # batches of one L have one K: a GPU records steps of few shapes
        return _Share(data, starts - begin, lengths, drawn, bounds, rooms)

    def _draw(self, rows, data, starts, lengths, epoch):
        """What comes with the names of these rows (n,), -1 for an empty one: here four draws a name, (4, n) uint64."""
        # By the name itself for evaluation, so that its masks do not change with its place in the file.
        names = hashing.hash_names(data, starts, lengths) if self.evaluation else np.maximum(rows, 0)
        return self.collator.draws(names, EVALUATION_EPOCH if self.evaluation else epoch)

    def _fill(self, share):
        """A rank's rows of a micro-step (B,), or at least one: an empty name rather than leave others waiting."""
        missing = (self.batch_size if self.fixed_shapes else 1) - len(share)
        return np.append(share, np.full(missing, -1)) if missing > 0 else share

    def _alike(self, place):
        """Micro-batches of the same L, this one among them, that this process will be asked for."""
        worker, lengths = get_worker_info(), needed(self._share.rooms)
        workers = worker.num_workers if worker else 1
        mine = np.arange(place % workers, len(lengths), workers)
        alike = mine[lengths[mine] == lengths[place]].tolist()
        count = max(1, AT_ONCE // self.batch_size)
        begin = alike.index(place) // count * count
        return alike[begin : begin + count]

    def _make(self, places):
        """Masked micro-batches, {place: batch}."""
        data, starts, lengths, drawn, bounds, rooms = self._share
        widest = int(rooms[places].max())
        length = needed(widest)
        rows = np.concatenate([np.arange(bounds[place], bounds[place + 1]) for place in places])
        starts, lengths = starts[rows], lengths[rows]
        # L bytes from the one before a name on are an item of this view: to gather them takes 10 ns a name.
        text = np.ndarray(len(data) - length, f"V{length}", data, strides=1)[starts].view(np.uint8)
        text = text.reshape(-1, length)
        text *= below(length).view(np.uint8).take(lengths + 1, axis=0)
        ids = _set_ends(text.astype(np.int32), lengths)
        made = self._finish(ids, lengths, drawn[..., rows], widest)
        batches, begin = {}, 0
        for place in places:
            here = slice(begin, begin + bounds[place + 1] - bounds[place])
            batches[place] = self._cut(made, lengths, here, int(rooms[place]))
            begin = here.stop
        return batches

    def _finish(self, ids, lengths, drawn, widest):
        """Framed names (B, L) and what came with them -> arrays (B, ...) that batches are cut from."""
        return self.collator.mask(ids, lengths, drawn, self.collator.most(widest))

    def _cut(self, masked, lengths, here, room):
        return as_batch(masked, lengths + 2, here, self.collator.most(room), self.collator.keeps_ascii)
