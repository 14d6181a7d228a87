"""The same steps in other micro-steps, before the first: fewer where a GPU has room for them at once, and for
``--auto_find_batch_size`` as small as the memory wants.
"""

import gc
import sys

import torch

from .batches import needed
from .errors import UserError
from .guards import memory_is_out
from .recorded import largest_pass
from .tokenization_domain_canine import CLS

SLOTS = 19  # of a name, on average


def joined(batch: int, accumulation: int, largest: int) -> int:
    """How many micro-steps of so many names are computed at once, where steps are recorded.

    They fill a quarter of the largest pass at most: about 4 GB of 80, and as much for the record. An H100 makes 26,700
    names/s in micro-steps of 256 names, 39,200 of 512.

    Args:
        largest: code points of a pass.
    """
    most = largest // 4 // SLOTS
    factors = (n for n in range(1, accumulation + 1) if accumulation % n == 0)
    return max(n for n in factors if n == 1 or n * batch <= most)


def join_micro_steps(trainer) -> None:
    """Compute micro-steps at once, as ``joined``; the steps stay the same."""
    args = trainer.args
    # All processes deal the same steps, if their GPUs differ by the smallest.
    largest = trainer.accelerator.gather(torch.tensor([largest_pass(args.device)], device=args.device)).min().item()
    count = joined(args.per_device_train_batch_size, args.gradient_accumulation_steps, largest)
    if count > 1:
        _divide(trainer, args.per_device_train_batch_size * count, args.gradient_accumulation_steps // count)
        if trainer.is_world_process_zero():
            names, micro_steps = args.per_device_train_batch_size, args.gradient_accumulation_steps
            print(
                f"the GPU computes {names:,} names at once: a step is accumulated in {micro_steps:,} instead of "
                f"{micro_steps * count:,}",
                file=sys.stderr,
            )


def fit_batch(trainer) -> None:
    """Halve the names a micro-step, and double the micro-steps, until a step on the largest batch fits.

    The names a step, and so the run, stay the same; and the weights, whose trial gradients are dropped. The Trainer's
    own way starts the run again where memory is out, from the weights of that moment and with another batch.

    Raises:
        UserError: not even one name fits.
    """
    args = trainer.args
    while not _fits(trainer):
        if args.per_device_train_batch_size == 1:
            raise UserError("--auto_find_batch_size: the memory does not hold a step of one name; take a smaller model")
        if trainer.streamed and args.per_device_train_batch_size % 2:
            raise UserError(
                f"--auto_find_batch_size: {args.per_device_train_batch_size} names of a stream are too many for the "
                "memory, and cannot be halved; give a --batch_size that is a power of two"
            )
        _divide(trainer, -(-args.per_device_train_batch_size // 2), args.gradient_accumulation_steps * 2)
    if trainer.is_world_process_zero():
        names, micro_steps = args.per_device_train_batch_size, args.gradient_accumulation_steps
        print(f"the memory holds {names:,} names a micro-step; {micro_steps:,} are accumulated", file=sys.stderr)


def _divide(trainer, batch_size, micro_steps):
    trainer.args.per_device_train_batch_size, trainer.args.gradient_accumulation_steps = batch_size, micro_steps
    trainer.train_dataset.divide(batch_size, micro_steps)
    trainer._train_batch_size = trainer.args.train_batch_size


def _fits(trainer) -> bool:
    """Whether the largest micro-step fits on every rank, beside what training will hold then."""
    failed = torch.zeros(1, device=trainer.args.device)
    devices = [trainer.args.device] if trainer.args.device.type == "cuda" else []
    with torch.random.fork_rng(devices):  # the trial's dropout leaves the run's alone
        try:
            _try(trainer)
        except RuntimeError as error:
            if not memory_is_out(error):
                raise
            failed += 1
    trainer.model.zero_grad(set_to_none=True)
    gc.collect()
    if devices:
        torch.cuda.empty_cache()
    return not trainer.accelerator.reduce(failed, "sum").item()


def _try(trainer) -> None:
    args, model = trainer.args, trainer.model.train()
    batch = _largest(trainer.train_dataset)
    if args.records_steps:
        rows = max(1, largest_pass(args.device) // batch["input_ids"].shape[1])
        batch = {name: values[:rows] for name, values in batch.items()}
        torch.cuda.reset_peak_memory_stats()
    batch = {name: values.to(args.device) for name, values in batch.items()}
    # AdamW's two moments, and between several processes the buckets that DDP's gradients travel in.
    buckets = args.world_size > 1 and not args.records_steps
    size = sum(parameter.numel() for parameter in model.parameters()) * (2 + buckets)
    held = [torch.empty(size, device=args.device)]
    before = torch.cuda.memory_allocated() if args.records_steps else 0
    # The second pass is beside the gradients of the first, and beside what a record of it holds.
    for _ in range(2 if args.records_steps else min(2, args.gradient_accumulation_steps)):
        with trainer.accelerator.autocast():
            loss = model(**batch).loss
        loss.backward()
        if args.records_steps and len(held) == 1:
            of_a_pass = torch.cuda.max_memory_allocated() - before
            held.append(torch.empty(of_a_pass, dtype=torch.uint8, device=args.device))


def _largest(batches) -> dict[str, torch.Tensor]:
    rows, characters = batches.largest()
    names = torch.full((rows, needed(characters)), ord("a"))
    names[:, 0] = CLS
    batch = {"input_ids": names, "attention_mask": torch.ones_like(names)}
    if batches.collator is None:
        return batch | {"labels": torch.zeros(rows, dtype=torch.long), "loss_weights": torch.ones(rows)}
    masked = torch.ones(rows, batches.collator.most(names.shape[1] - 2), dtype=torch.long)
    return batch | {"masked_positions": masked, "labels": masked * ord("a")}
