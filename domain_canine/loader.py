"""The data loader over ready batches."""

import atexit
import multiprocessing
import signal
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader

from .batches import NameBatches
from .errors import UserError
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


def the_one(items: list) -> dict[str, torch.Tensor]:
    return items[0]


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
            options["persistent_workers"] = args.dataloader_persistent_workers
        if isinstance(batches, StreamBatches):
            super().__init__(batches, batch_size=None, **options)
        else:
            super().__init__(batches, batch_sampler=batches.sampler(), collate_fn=the_one, **options)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return self._of_stream() if isinstance(self.dataset, StreamBatches) else super().__iter__()

    def _of_stream(self):
        """Batches without their positions, of which the stream is told: workers are ahead by what they prefetch."""
        for batch, worker, position in super().__iter__():
            if isinstance(batch, UserError):
                raise batch
            self.dataset.consumed(worker, position)
            yield batch

    def set_epoch(self, epoch: int) -> None:
        if isinstance(self.dataset, NameBatches):
            self.batch_sampler.set_epoch(epoch)
