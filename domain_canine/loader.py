"""The data loader over ready batches."""

import atexit
import multiprocessing
import signal
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, get_worker_info

from .batches import NameBatches
from .errors import OwnError, UserError
from .stopping import SIGNALS
from .streams import StreamBatches


def ignore_signals(worker: int) -> None:
    """In a worker: what a terminal sends to all processes is for the main one, which needs the worker's batches."""
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)


@atexit.register
def _kill_workers():
    # They ignore the SIGTERM by which multiprocessing would end them, and may wait for a network.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's would tell of an error
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


class Parcel:
    """A batch on its way from a worker, which is a batch again when it arrives: its bytes go through the pipe.

    A tensor travels as an open file, by a connection of its own: four of them took the main process 1.7 ms.
    """

    def __init__(self, batch: dict[str, torch.Tensor | bool]):
        self.batch = batch

    def __reduce__(self):
        return opened, ({name: each.numpy() if torch.is_tensor(each) else each for name, each in self.batch.items()},)


def opened(arrays: dict[str, np.ndarray | bool]) -> dict[str, torch.Tensor | bool]:
    return {name: torch.from_numpy(each) if isinstance(each, np.ndarray) else each for name, each in arrays.items()}


def packed(batch):
    """A batch, or the error of a stream, as a worker hands it over."""
    return Parcel(batch) if isinstance(batch, dict) and get_worker_info() else batch


def the_one(items: list):
    return packed(items[0])


def with_position(item: tuple):
    batch, *position = item
    return packed(batch), *position


class BatchLoader(DataLoader):
    """A DataLoader over ready batches; the Trainer tells it the epoch.

    Args:
        batches: NameBatches or StreamBatches.
        args: of the Trainer: workers, prefetching, pinned memory.
    """

    def __init__(self, batches: NameBatches | StreamBatches, args):
        options = {
            "num_workers": args.dataloader_num_workers,
            "pin_memory": args.dataloader_pin_memory and args.device.type == "cuda",
            # An own generator: the workers' seeds must not be drawn from the one that dropout uses.
            "generator": torch.Generator().manual_seed(args.seed),
        }
        if args.dataloader_num_workers:
            options["worker_init_fn"] = ignore_signals
            options["prefetch_factor"] = args.dataloader_prefetch_factor
            # Those of an evaluation, whose loader is made anew each time, would stay to the end of the run.
            evaluation = isinstance(batches, NameBatches) and batches.evaluation
            options["persistent_workers"] = args.dataloader_persistent_workers and not evaluation
        if isinstance(batches, StreamBatches):
            super().__init__(batches, batch_size=None, collate_fn=with_position, **options)
        else:
            super().__init__(batches, batch_sampler=batches.sampler(), collate_fn=the_one, **options)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return self._of_stream() if isinstance(self.dataset, StreamBatches) else super().__iter__()

    def _of_stream(self):
        """Batches without their positions, of which the stream is told: workers are ahead by what they prefetch."""
        for batch, worker, position in super().__iter__():
            if isinstance(batch, UserError):
                raise OwnError(str(batch)) from batch
            self.dataset.consumed(worker, position)
            yield batch

    def set_epoch(self, epoch: int) -> None:
        if isinstance(self.dataset, NameBatches):
            self.batch_sampler.set_epoch(epoch)
