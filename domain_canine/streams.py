"""Names to masked batches while they are read from a source, shared between readers, with the position of each.

A reader is a data loader worker of a rank. Where a source has as many files as there are readers, files are dealt to
them; otherwise each reads everything and cleans its own part of every block. A pass over the source is every training
name exactly once over all readers (duplicates in the source stay); passes follow each other without end, each with
another order and other masks, since ranks must take equal numbers of steps. A reader with shorter files is earlier at
its next pass.

A resume is exact: the batch after the last trained one follows, to the bit, if the source is as it was and the numbers
of ranks, of workers, of names a batch and of files are the same. What it costs is reading, without cleaning, from the
start of one file to the position. With another of these numbers the pass starts over, in another order, and that is
said. A file that has changed gives what lies at the same line numbers now, and nobody notices: names may then be seen
twice or not at all in this pass.
"""

import json
import sys
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import IterableDataset, get_worker_info

from . import hashing
from .batches import frame
from .cleaning import SPECIAL, Cleaner, first_names, hash_array, on_validation_side
from .errors import UserError
from .manifest import SHOWN, told_lines
from .masking import DataCollatorForCodePointMasking
from .readers import Block
from .remote import Stream
from .sampling import WINDOW
from .table import NameTable, characters, spans

VALIDATION = 100_000  # names taken from the head of the stream's validation side
_ORDER = 301  # the stream's own kind of draw


class Position(NamedTuple):
    """Where a reader is: behind the ``batches``-th batch of the window that is made of a block."""

    epoch: int = 0  # the pass
    file: int = 0
    block: int = 0
    batches: int = 0


class StreamBatches(IterableDataset):
    """Masked batches of a stream, endlessly, each with the worker it is from and the worker's position.

    Names are shuffled and brought together by length within a window: the names of one block of about 64 batches. So
    the window is a function of the block, the seed and the pass, and nothing else needs to be kept for a resume.

    Args:
        source: what is read.
        max_length: of the model's input.
        collator: masks names; the name's hash stands for its index.
        batch_size: names a rank and micro-step; a window's last batch has fewer.
        rank, ranks, workers: this process, how many there are, and the loader's workers in each.
        validation_split, split_seed: which names are held out.
        num_samples: a pass is the first so many valid names, which every reader then reads all of.
        seed: of the order.
    """

    def __init__(
        self,
        source: Stream,
        max_length: int,
        collator: DataCollatorForCodePointMasking,
        batch_size: int,
        rank: int,
        ranks: int,
        workers: int,
        validation_split: float,
        split_seed: int,
        num_samples: int | None,
        seed: int,
    ):
        self.source, self.max_length, self.collator, self.batch_size = source, max_length, collator, batch_size
        self.rank, self.ranks, self.num_samples, self.seed = rank, ranks, num_samples, seed
        self.validation_split, self.split_seed = validation_split, split_seed
        self.workers = max(1, workers)  # without workers the process reads itself
        self.positions, self.next_worker = [Position()] * self.workers, 0
        self.steps_per_epoch: int | None = None  # where the source tells how many names it has
        self.valid: int | None = None  # names of a pass, where ``validation`` has read all
        self.content = None  # nobody knows it before it is read

    # ---- position

    def consumed(self, worker: int, position: Position) -> None:
        """Told by the loader for every batch that it hands out."""
        self.positions[worker], self.next_worker = position, (worker + 1) % self.workers

    @property
    def _shares(self):
        """What positions are relative to."""
        files = len(self.source.files)
        return {"ranks": self.ranks, "workers": self.workers, "names a batch": self.batch_size, "files": files}

    def save(self, checkpoint: Path) -> None:
        """Write this rank's positions into a checkpoint."""
        state = {"shares": self._shares, "next_worker": self.next_worker, "positions": self.positions}
        _file(checkpoint, self.rank).write_text(json.dumps(state))

    def resume(self, checkpoint: Path) -> None:
        """Go on from a checkpoint: behind its last batch, or where the shares are others, with the next pass.

        A checkpoint of a run that did not stream holds no position: the first pass begins.
        """
        if not _file(checkpoint, 0).is_file():
            return
        state = json.loads(_file(checkpoint, 0).read_text())
        if state["shares"] == self._shares:
            state = json.loads(_file(checkpoint, self.rank).read_text())
            self.positions = [Position(*position) for position in state["positions"]]
            self.next_worker = state["next_worker"]
            return
        every = (json.loads(path.read_text()) for path in checkpoint.glob("stream-*.json"))  # ranks are not alike
        self.positions = [Position(1 + max(epoch for each in every for epoch, *_ in each["positions"]))] * self.workers
        if self.rank == 0:
            before, now = (", ".join(f"{n} {what}" for what, n in of.items()) for of in (state["shares"], self._shares))
            print(
                f"the stream was read by {before}; now by {now}: its pass starts over, in another order",
                file=sys.stderr,
            )

    def largest(self) -> tuple[int, int]:
        """Rows and characters of a micro-batch that takes as much memory as any."""
        return self.batch_size, self.max_length - SPECIAL

    def divide(self, batch_size: int, micro_steps: int) -> None:
        """Other micro-steps, before anything is read."""
        self.batch_size = batch_size

    # ---- names

    def validation(self) -> tuple[NameTable, np.ndarray, Cleaner]:
        """The first 100,000 different names of the validation side, or as many as there are, and their lengths.

        The cleaner tells what became of the lines read for it.
        """
        cleaner = Cleaner(self.max_length)
        blocks = self.source.blocks()
        if self.num_samples:
            blocks = first_names(blocks, self.num_samples, self.max_length)
        held, trains = pa.array([], pa.string()), False
        for block in blocks:
            names = cleaner(block)
            validation = self._held_out(hash_array(names))
            held = pa.concat_arrays([held, names.filter(pa.array(validation))]).unique()
            trains |= not validation.all()
            del cleaner.rejects[SHOWN:]
            if len(held) >= VALIDATION:
                break
        else:
            self.valid = cleaner.counts["valid"]
        if not len(held) or not trains:
            listed = "\n  ".join(told_lines(cleaner.counts, [each._asdict() for each in cleaner.rejects]))
            if not cleaner.counts["valid"]:
                raise UserError(f"{self.source.description!r} holds no valid domain name; {listed}")
            side = "training" if len(held) else "validation"
            raise UserError(f"{self.source.description!r} has no name for the {side} side; give more names; {listed}")
        held = held[:VALIDATION]
        return NameTable([held]), spans(held)[2].astype(np.uint8), cleaner

    def _held_out(self, hashes):
        return on_validation_side(hashes, self.validation_split, self.split_seed)

    def _blocks(self, reader: int, readers: int, start: tuple[int, int]) -> Iterator[tuple[tuple[int, int], Block]]:
        """One reader's share of the rest of a pass, with positions."""
        if self.num_samples:
            blocks = first_names(self.source.blocks(self._rows(readers)), self.num_samples, self.max_length)
            found = (((0, i), block) for i, block in islice(enumerate(blocks), start[1], None))
        elif len(self.source.files) >= readers:
            yield from self.source.positioned(self._rows(1), start, slice(reader, None, readers))
            return
        else:
            found = self.source.positioned(self._rows(readers), start)
        for at, block in found:
            first, last = (len(block.lines) * share // readers for share in (reader, reader + 1))
            yield at, block._replace(numbers=block.numbers[first:last], lines=block.lines[first:last])

    def _rows(self, readers):
        return WINDOW * self.batch_size * readers

    # ---- batches

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor] | UserError, int, Position]]:
        """Batches, workers and positions; a UserError comes as an item, since a worker's own would get a traceback."""
        info = get_worker_info()
        # The loader takes its first batch from its worker 0: let that one be whose turn it is.
        worker = (self.next_worker + (info.id if info else 0)) % self.workers
        try:
            for position, batch in self._batches(worker):
                yield batch, worker, position
        except UserError as error:
            yield error, worker, self.positions[worker]

    def _batches(self, worker):
        reader, readers = self.rank * self.workers + worker, self.ranks * self.workers
        first, *start, given = self.positions[worker]
        for epoch in count(first):
            empty = start == [0, 0] and not given
            for at, block in self._blocks(reader, readers, start):
                names = Cleaner(self.max_length)(block)
                hashes = hash_array(names)
                trained = ~self._held_out(hashes)
                window = self._window(names.filter(pa.array(trained)), hashes[trained], epoch)
                for batches, batch in islice(enumerate(window, 1), given, None):
                    yield Position(epoch, *at, batches), batch
                    empty = False
                given = 0
            if empty:
                raise UserError(
                    f"the stream {self.source.description!r} has no name to train on for reader {reader + 1} of "
                    f"{readers}; use fewer --dataloader_num_workers or ranks"
                )
            start = [0, 0]

    def _window(self, names: pa.StringArray, hashes: np.ndarray, epoch: int) -> Iterator[dict[str, torch.Tensor]]:
        data, starts, lengths = spans(names)
        order = np.argsort(hashing.key(self.seed, _ORDER, epoch, hashes), kind="stable")
        order = order[np.argsort(lengths[order], kind="stable")]
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        window = np.bitwise_xor.reduce(hashes)
        for i in np.argsort(hashing.key(self.seed, _ORDER, epoch, window, np.arange(len(batches)))):
            rows = batches[i]
            ids, framed = frame(characters(data, starts[rows], lengths[rows]), lengths[rows])
            yield self.collator.collate(ids, framed, hashes[rows], epoch)


def _file(checkpoint, rank):
    return checkpoint / f"stream-{rank}.json"
