"""Forward and backward passes as CUDA graphs: recorded once for each shape of batch, then replayed.

A micro-step of the base model has hundreds of kernels, and a processor takes longer to start them than a GPU to run
them when a batch has few names: of 1,500 on an H100, 41 ms for 512 names that are computed in 20. Replayed, they are
one call.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import nn

from .errors import UserError, first_line
from .guards import memory_is_out

MOST = 64  # records; a run of fixed counts has some 20 shapes, since L goes in steps of 4, one by slots up to 150
LARGEST = 80_000  # code points of a pass: 4,096 names of 16 characters; the base model takes 16 GB for so many
LINE = 32  # numbers of fp32 in a cache line of a GPU
BYTES = 1_000_000  # of the device for each code point of a pass, which records and what else runs share


class Record(NamedTuple):
    graph: torch.cuda.CUDAGraph
    batch: dict[str, torch.Tensor | bool]  # what it reads
    made: tuple[torch.Tensor, ...]  # what it writes, anew each time


class RecordedSteps:
    """Forward and backward passes of micro-batches, replayed where their shape was seen before.

    Gradients lie in one tensor for the whole run, since records write them there; it is zeroed when a step begins,
    which is known by ``zero_grad`` having taken them from the parameters. A batch of many code points takes several
    passes, by rows: so its memory has a bound. Records share theirs, which begins with the largest: when one comes that
    is larger than those before, these are made again.

    Args:
        parameters: those of the model; each that is trained gets a gradient, if one of zeros.
        run: forward and backward pass of a batch on the device; returns tensors of the device, which add up over rows.
            What it does on the processor is done once a shape, and it must not wait for the device.
        device: of both.
        largest: code points of a pass.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], run: Callable[[dict], tuple], device: torch.device, largest: int
    ):
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.run, self.device, self.largest = run, device, largest
        # Each begins where a cache line does, for the optimiser's wide loads.
        sizes = [-(-parameter.numel() // LINE) * LINE for parameter in self.parameters]
        self.all_gradients = torch.zeros(sum(sizes), device=device)
        self.gradients = [
            part[: parameter.numel()].view_as(parameter)
            for part, parameter in zip(self.all_gradients.split(sizes), self.parameters)
        ]
        self.records: dict[tuple, Record] = {}
        self.seen = Counter()  # passes of each shape
        self.pool, self.largest_record = None, 0

    def __call__(self, batch: dict[str, torch.Tensor | bool]) -> tuple[torch.Tensor, ...]:
        """What ``run`` returns of this batch, wherever its tensors are; valid until the next call."""
        self._begin()
        first, *others = cut(batch, self.largest)
        made = self._pass(first)
        if others:
            made = tuple(each.clone() for each in made)
            for part in others:
                torch._foreach_add_(made, self._pass(part))
        return made

    def add_up(self) -> None:
        """Gradients become their sum over all processes, each of which has made its own micro-steps."""
        torch.distributed.all_reduce(self.all_gradients)

    def _pass(self, batch):
        shape = tuple(
            (name, each.shape, each.dtype) if torch.is_tensor(each) else (name, each) for name, each in batch.items()
        )
        self.seen[shape] += 1
        if shape not in self.records:
            # A first time as it is: kernels are loaded, compiled and chosen, which a graph cannot hold.
            if self.seen[shape] == 1 or not self._has_place(shape):
                return self._run(self._moved(batch))
            self._make_room(batch["input_ids"].numel())
            self.records[shape] = self._record(self._moved(batch))
        record = self.records[shape]
        for name, each in batch.items():
            if torch.is_tensor(each):
                record.batch[name].copy_(each, non_blocking=True)
        record.graph.replay()
        return record.made

    def _run(self, batch):
        """A pass, whose gradients are added to those before all at once: one by one they are 270 kernels."""
        for parameter in self.parameters:
            parameter.grad = None
        made = self.run(batch)
        added = [
            (gradient, parameter.grad)
            for gradient, parameter in zip(self.gradients, self.parameters)
            if parameter.grad is not None
        ]
        if added:
            torch._foreach_add_(*zip(*added))
        for parameter, gradient in zip(self.parameters, self.gradients):
            parameter.grad = gradient
        return made

    def _has_place(self, shape):
        """Whether one record more may be; one is let go for it if its shape was seen half as often or less."""
        if len(self.records) < MOST:
            return True
        rarest = min(self.records, key=self.seen.get)
        if self.seen[shape] < 2 * self.seen[rarest]:
            return False
        self._wait()
        del self.records[rarest]
        return True

    def _make_room(self, size):
        if size > self.largest_record:
            self._wait()
            self.records, self.pool, self.largest_record = {}, None, size

    def _wait(self):
        torch.get_device_module(self.device).synchronize()  # records that are let go may still run

    def _moved(self, batch):
        """On the device, in memory that nobody else writes to."""
        return {
            name: torch.empty_like(each, device=self.device).copy_(each, non_blocking=True)
            if torch.is_tensor(each) else each
            for name, each in batch.items()
        }  # fmt: skip

    def _begin(self):
        begins = all(parameter.grad is None for parameter in self.parameters)
        if begins:
            self.all_gradients.zero_()
        for parameter, gradient in zip(self.parameters, self.gradients):
            if parameter.grad is not gradient and not begins:  # a callback's doing
                gradient.copy_(torch.zeros_like(gradient) if parameter.grad is None else parameter.grad)
            parameter.grad = gradient

    def _record(self, batch):
        torch.cuda.empty_cache()  # what the step before has left; records have a memory of their own, and share it
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads go on meanwhile: that of the data loader asks for pinned memory.
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                made = self._run(batch)
        except RuntimeError as error:
            cause = error.__context__ or error  # the end of a capture that has failed fails, too
            if out := [each for each in (cause, error) if memory_is_out(each)]:
                raise out[0] from None
            raise UserError(
                f"the step cannot be recorded as a CUDA graph ({first_line(cause)}); --no_cuda_graphs goes on without"
            ) from error
        self.pool = graph.pool()
        return Record(graph, batch, made)


def cut(batch: dict[str, torch.Tensor | bool], largest: float) -> Iterator[dict[str, torch.Tensor | bool]]:
    """The batch, or parts of like many rows if it has more than ``largest`` code points."""
    rows, parts = len(batch["input_ids"]), 1
    while batch["input_ids"].numel() > largest * parts and parts < rows:
        parts *= 2  # few shapes: halves of a number of rows that is a power of two are alike
    size = -(-rows // parts)
    for begin in range(0, rows, size):
        yield {
            name: each[begin : begin + size] if torch.is_tensor(each) and each.ndim else each
            for name, each in batch.items()
        }


def largest_pass(device: torch.device) -> int:
    """Code points of a pass that the device has memory for, with a record of as many."""
    if device.type != "cuda":
        return LARGEST
    return min(LARGEST, torch.cuda.get_device_properties(device).total_memory // BYTES)
