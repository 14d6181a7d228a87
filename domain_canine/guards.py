"""What would spoil a run: updates that are not finite, and memory that is out."""

import sys
from collections import deque
from pathlib import Path

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch.distributed.tensor import DTensor

from .checkpoints import whole_checkpoints
from .errors import OwnError, UserError, first_line
from .masking import IGNORED
from .tokenization_domain_canine import SEP

# With fp16 gradients overflow until the scale of the loss is found: from 2**16 down to 1 that takes 16 steps.
FP16_IN_A_ROW = 20


class Late:
    """A number of the device, on its way to the host without anybody waiting; read a step later, it has arrived."""

    def __init__(self, value: torch.Tensor):
        self._cuda = value.device.type == "cuda"
        if not self._cuda:
            self._host = value.clone()
            return
        self._host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
        self._host.copy_(value, non_blocking=True)
        self._arrived = torch.cuda.Event()
        self._arrived.record()

    def read(self) -> float:
        if self._cuda:
            self._arrived.synchronize()
        return self._host.item()


def poisoned(loss: torch.Tensor) -> torch.Tensor:
    """The loss, with a gradient that is as little finite as it is: then the norm that ranks share tells of both."""
    return loss * (1 + 0 * loss.detach())


class FiniteSteps:
    """Skips the update of a step whose loss or gradient is not finite, on the device, and tells of it a step late.

    Args:
        run: the folder for the names of such steps.
        allowed: so many of them, over the run, before it stops.
        rank: of this process; the first one speaks.
        in_a_row: so many are nothing to speak of.
    """

    def __init__(self, run: Path, allowed: int, rank: int, in_a_row: int):
        self.run, self.allowed, self.rank, self.in_a_row = run, allowed, rank, in_a_row
        self.skipped = self.row = 0
        self._batches: dict[int, list] = {}  # of the steps that are not known to be finite, on the host
        self._pending: deque[tuple[int, float, Late]] = deque()

    def begin(self, step: int, batches: list[dict]) -> None:
        self._batches[step] = batches

    def observe(self, step: int, rate: float, norm: torch.Tensor, model, optimizer: torch.optim.Optimizer) -> None:
        """Before the update: have it skipped unless the norm of the gradients is finite.

        AdamW's fused kernels take the news on the device, but for MPS's, which pass over it; there, and with another
        optimiser, the host waits for them.
        """
        norm = torch.as_tensor(norm)
        norm = (norm.full_tensor() if isinstance(norm, DTensor) else norm).detach()
        bad = (~torch.isfinite(norm)).float()
        self._pending.append((step, rate, Late(bad)))
        takes_news = getattr(optimizer, "_step_supports_amp_scaling", False) and bad.device.type != "mps"
        if takes_news and not isinstance(next(model.parameters()), DTensor):
            optimizer.found_inf = bad
        elif bad.item():
            model.zero_grad(set_to_none=True)  # an optimiser passes over parameters without a gradient

    def settle(self, all_of_them: bool = False) -> None:
        """Look at the steps that are done; at the latest one, too, if ``all_of_them``.

        Raises:
            UserError: more than allowed were not finite.
        """
        while len(self._pending) > (0 if all_of_them else 1):
            step, rate, bad = self._pending.popleft()
            batches = self._batches.pop(step)
            if not bad.read():
                self.row = 0
                continue
            self.row += 1
            if self.row > self.in_a_row:
                self.skipped += 1
                self._tell(step, rate, batches)

    def _tell(self, step, rate, batches):
        suffix = f"-{self.rank}" if self.rank else ""
        path = self.run / f"not_finite-{step}{suffix}.txt"
        try:
            path.write_text("".join(f"{name}\n" for batch in batches for name in names_of(batch)))
            where = f"its names are in {path}"
        except OSError as error:
            where = f"its names could not be written to {path}: {error.strerror}"
        what = f"step {step:,}: the loss or its gradient is not finite (learning rate {rate:.3g}); {where}"
        if self.skipped > self.allowed:
            whole = whole_checkpoints(self.run)
            raise UserError(
                f"{what}\n  Last good checkpoint: {whole[-1] if whole else 'none'}. Lower --learning_rate, look at "
                "these names, or skip up to N such steps by --max_skipped_steps N."
            )
        if self.rank == 0:
            print(f"{what}; skipped, {self.skipped} of {self.allowed} allowed", file=sys.stderr)


def names_of(batch: dict[str, torch.Tensor]) -> list[str]:
    """The names that a batch was made of; what is masked of them is in the labels."""
    ids = batch["input_ids"].clone().cpu()
    if "masked_positions" in batch:
        at, labels = batch["masked_positions"].cpu(), batch["labels"].cpu()
        ids.scatter_(1, at, torch.where(labels != IGNORED, labels, ids.gather(1, at)))
    names = ("".join(map(chr, row[1 : row.index(SEP)])) for row in ids.tolist())
    return [name for name in names if name]  # empty ones stand for rows that were missing


def memory_is_out(error: RuntimeError) -> bool:
    """Whether that is what an error says: PyTorch's allocator's, or CUDA's own, as of a graph's, cuBLAS's, Triton's."""
    told = str(error)
    return should_reduce_batch_size(error) or "out of memory" in told or "CUBLAS_STATUS_ALLOC_FAILED" in told


def out_of_memory(error: RuntimeError, args) -> OwnError:
    """What to do about memory that is out."""
    batch, accumulated = args.per_device_train_batch_size, args.gradient_accumulation_steps
    whole = whole_checkpoints(Path(args.output_dir))
    then = f"; {whole[-1].name} is there to --resume_from_checkpoint" if whole else ""
    others = f"--per_device_eval_batch_size (now {args.per_device_eval_batch_size}) or --max_length"
    if args.records_steps:  # which joins micro-steps as far as they should fit
        remedy = (
            "Give --auto_find_batch_size, which finds what fits, or --no_cuda_graphs, which computes micro-steps as "
            f"given, in less memory, slower; or lower {others}"
        )
    else:
        remedy = (
            f"Lower --batch_size (now {batch}; with --gradient_accumulation_steps, now {accumulated}, doubled the run "
            f"stays the same), {others}; --auto_find_batch_size finds the first by itself"
        )
    return OwnError(f"the memory of {args.device} is out: {first_line(error)}\n  {remedy}{then}")
