"""Rows to masked batches, inside the data loader's workers."""

from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from . import hashing
from .corpus import Cleaner, characters, on_validation_side
from .errors import UserError
from .masking import EVALUATION_EPOCH, DataCollatorForCodePointMasking
from .sampling import WINDOW, BatchPlan, MicroStepSampler
from .table import NameTable, table_of
from .tokenization_domain_canine import CLS, PAD, SEP

STREAM_VALIDATION = 100_000  # names taken from the head of a stream's validation side
_ORDER = 301  # the stream's own kind of draw


def frame(names: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Characters (B, C) and their lengths -> code points with [CLS] and [SEP] (B, L) int64, and L of each row.

    L is 2 modulo 4: the model adds two slots and rounds up to whole molecules, so that it computes no slot more.
    """
    length = int(lengths.max(initial=0)) + 2
    ids = np.full((len(names), length + (2 - length) % 4), PAD, dtype=np.int64)
    ids[:, 0] = CLS
    ids[:, 1 : names.shape[1] + 1] = names
    ids[np.arange(len(names)), lengths + 1] = SEP
    return ids, lengths + 2


class NameBatches(Dataset):
    """Masked batches of a table, by (epoch, micro-step).

    Args:
        table, lengths: the names, and a byte a name.
        collator: masks them.
        rank, ranks: this process, and how many there are.
        batch_size: names a rank and micro-step.
        micro_steps: gradient accumulation steps.
        seed: of the order.
        evaluation: rows in order, masks the same at every call.
    """

    def __init__(
        self,
        table: NameTable,
        lengths: np.ndarray,
        collator: DataCollatorForCodePointMasking,
        batch_size: int,
        rank: int = 0,
        ranks: int = 1,
        micro_steps: int = 1,
        seed: int = 42,
        evaluation: bool = False,
    ):
        self.table = table
        self.collator = collator.for_evaluation() if evaluation else collator
        self.evaluation = evaluation
        self.rank, self.ranks = rank, ranks
        self.plan = BatchPlan(lengths, batch_size * ranks * micro_steps, micro_steps, seed, shuffle=not evaluation)

    def __len__(self) -> int:
        """Names, not batches: what the Trainer reports as the number of examples."""
        return len(self.table)

    def sampler(self) -> MicroStepSampler:
        return MicroStepSampler(self.plan.steps * self.plan.micro_steps)

    def __getitem__(self, at: tuple[int, int]) -> dict[str, torch.Tensor]:
        epoch, index = at
        step, micro_step = divmod(index, self.plan.micro_steps)
        rows = self.plan.rows(epoch, step, micro_step, self.rank, self.ranks)
        if len(rows):
            names, lengths = self.table.take(rows)
        else:
            # A rank without rows in an epoch's last step computes an empty name, which has no target, rather than
            # leave the others waiting.
            rows, names, lengths = np.zeros(1, np.int64), np.zeros((1, 0), np.uint8), np.zeros(1, np.int64)
        ids, framed = frame(names, lengths)
        if self.evaluation:
            # By the name itself, so that its masks do not change with its place in the file.
            return self.collator.collate(ids, framed, hashing.hash_names(names, lengths), EVALUATION_EPOCH)
        return self.collator.collate(ids, framed, rows, epoch)


class StreamBatches(IterableDataset):
    """Masked batches of a source that is read as it is used, endlessly; no name is kept, so duplicates stay.

    Names are shuffled and brought together by length within a buffer of 64 batches. Each rank reads the whole source
    and takes every ``ranks``-th name.
    """

    def __init__(
        self,
        source,
        max_length: int,
        collator: DataCollatorForCodePointMasking,
        batch_size: int,
        rank: int,
        ranks: int,
        validation_split: float,
        split_seed: int,
        num_samples: int | None,
        seed: int,
    ):
        self.source, self.max_length, self.collator = source, max_length, collator
        self.batch_size, self.rank, self.ranks = batch_size, rank, ranks
        self.validation_split, self.split_seed, self.num_samples, self.seed = (
            validation_split,
            split_seed,
            num_samples,
            seed,
        )

    def chunks(self, size: int, cleaner: Cleaner) -> Iterator[tuple[list[str], np.ndarray, np.ndarray]]:
        """One pass: names, their hashes, and whether they are on the validation side."""
        clean = islice(cleaner(self.source.lines()), self.num_samples)
        while names := list(islice(clean, size)):
            hashes = hashing.hash_names(*characters(names))
            yield names, hashes, on_validation_side(hashes, self.validation_split, self.split_seed)

    def validation(self) -> tuple[NameTable, np.ndarray, Cleaner]:
        """The first 100,000 different names of the validation side, or as many as there are, and their lengths.

        The cleaner tells what became of the lines read for it.
        """
        cleaner = Cleaner(self.max_length)
        found, trains = {}, False
        for names, _, validation in self.chunks(16_384, cleaner):
            trains |= not validation.all()
            found.update((names[i], None) for i in np.flatnonzero(validation))
            if len(found) >= STREAM_VALIDATION:
                break
        if not found or not trains:
            side = "training" if found else "validation"
            raise UserError(f"the stream {self.source.description!r} holds no valid name for the {side} side")
        table = table_of(list(found)[:STREAM_VALIDATION])
        return table, table.lengths(np.arange(len(table))), cleaner

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        epoch = 0
        while True:
            for names, hashes, validation in self.chunks(
                WINDOW * self.batch_size * self.ranks, Cleaner(self.max_length)
            ):
                mine = np.flatnonzero(~validation)[self.rank :: self.ranks]
                yield from self._window([names[i] for i in mine], hashes[mine], epoch)
            epoch += 1

    def _window(self, names, hashes, epoch):
        padded, lengths = characters(names)
        order = np.argsort(hashing.key(self.seed, _ORDER, epoch, hashes))
        order = order[np.argsort(lengths[order], kind="stable")]
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        for i in np.argsort(hashing.key(self.seed, _ORDER, epoch, len(names), np.arange(len(batches)))):
            rows = batches[i]
            ids, framed = frame(padded[rows, : lengths[rows].max()], lengths[rows])
            yield self.collator.collate(ids, framed, hashes[rows], epoch)


def the_one(items: list) -> dict[str, torch.Tensor]:
    return items[0]


class BatchLoader(DataLoader):
    """A DataLoader over ready batches; the Trainer tells it the epoch.

    Args:
        batches: NameBatches or StreamBatches.
        args: of the Trainer: workers, prefetching, pinned memory.
    """

    def __init__(self, batches: NameBatches | StreamBatches, args):
        workers = args.dataloader_num_workers
        # A stream is one sequence: several workers would each read it whole.
        workers = min(workers, 1) if isinstance(batches, StreamBatches) else workers
        options = {
            "num_workers": workers,
            "pin_memory": args.dataloader_pin_memory and args.device.type == "cuda",
            # An own generator: the workers' seeds must not be drawn from the one that dropout uses.
            "generator": torch.Generator().manual_seed(args.seed),
        }
        if workers:
            options["prefetch_factor"] = args.dataloader_prefetch_factor
            options["persistent_workers"] = args.dataloader_persistent_workers
        if isinstance(batches, StreamBatches):
            super().__init__(batches, batch_size=None, **options)
        else:
            super().__init__(batches, batch_sampler=batches.sampler(), collate_fn=the_one, **options)

    def set_epoch(self, epoch: int) -> None:
        if isinstance(self.dataset, NameBatches):
            self.batch_sampler.set_epoch(epoch)
