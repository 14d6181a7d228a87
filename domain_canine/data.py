"""The data flags made into batches: which source, which side, which collator."""

import math
import sys

from transformers.trainer_utils import IntervalStrategy

from .arguments import DataArguments
from .batches import NameBatches
from .connection import is_url
from .corpus import SMALL, load_corpus
from .errors import UserError
from .manifest import is_prepared, told_lines
from .masking import DataCollatorForCodePointMasking
from .paths import user_path
from .prepare import Settings
from .remote import open_stream
from .sample import SAMPLE
from .sampling import names_within
from .sources import local_paths
from .streams import StreamBatches
from .training_arguments import DomainTrainingArguments

EVERY = 10_000  # steps between evaluations of a stream that does not tell its length


def build_collator(data: DataArguments, args: DomainTrainingArguments, config) -> DataCollatorForCodePointMasking:
    return DataCollatorForCodePointMasking(
        fraction=data.mlm_probability,
        mask_replace_prob=data.mask_replace_prob,
        random_replace_prob=data.random_replace_prob,
        span_length=data.span_length,
        objective=data.objective,
        mask_code_point=config.mask_code_point,
        vocab_size=config.vocab_size,
        seed=args.seed if args.data_seed is None else args.data_seed,
    )


def build_batches(data: DataArguments, args: DomainTrainingArguments, collator: DataCollatorForCodePointMasking):
    """Training batches, validation batches, and rows for the start-up table.

    ``told`` of the training batches is what the run's records say of the names. A stream has no epochs for the Trainer:
    ``args.max_steps`` and the steps of evaluation are set here then.

    Raises:
        UserError: the data cannot be read or used.
    """
    for name in ("streaming", "slots_per_batch"):
        if args.torch_compile and getattr(data, name):
            raise UserError(f"--torch_compile needs batches of few shapes; leave it or --{name} out")
    return (_stream if data.streaming else _local)(data, args, collator)


def _place(args, collator) -> dict:
    return {"rank": args.process_index, "ranks": args.world_size, "seed": collator.seed}


def _local(data, args, collator):
    # One process a machine cleans, the others open what it left.
    with args.main_process_first(local=True):
        settings = Settings(data.validation_split, data.split_seed, data.max_length, data.num_samples)
        quiet = args.local_process_index > 0 or not sys.stderr.isatty()
        corpus = load_corpus(data.dataset, settings, data.dataset_column, quiet)
    # Kernels are compiled for each shape anew.
    place = _place(args, collator) | {"fixed_shapes": data.fixed_shapes or args.torch_compile}
    global_batch = None
    if data.slots_per_batch:
        shares = args.world_size * args.gradient_accumulation_steps
        global_batch = names_within(corpus.train.lengths, data.slots_per_batch * shares)
        args.per_device_train_batch_size = -(-global_batch // shares)
    train = NameBatches(
        corpus.train.table, corpus.train.lengths, collator, args.per_device_train_batch_size,
        micro_steps=args.gradient_accumulation_steps, global_batch=global_batch, **place,
    )  # fmt: skip
    validation = NameBatches(
        corpus.validation.table, corpus.validation.lengths, collator, args.per_device_eval_batch_size,
        evaluation=True, **place,
    )  # fmt: skip
    train.content = corpus.content
    train.told = _told(data, corpus.counts, len(train), len(validation)) | {"folder": str(corpus.folder.resolve())}
    return train, validation, _table(corpus, len(train), len(validation), data)


def _stream(data, args, collator):
    source = open_stream(data.dataset, data.dataset_column)
    train = StreamBatches(
        source,
        data.max_length,
        collator,
        args.per_device_train_batch_size,
        workers=args.dataloader_num_workers,
        validation_split=data.validation_split,
        split_seed=data.split_seed,
        num_samples=data.num_samples,
        **_place(args, collator),
    )
    table, lengths, cleaner = train.validation()
    # All that there are, where so few were read for it; else as the metadata tell.
    names = train.valid or min(filter(None, (data.num_samples, source.count())), default=None)
    step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    steps_per_epoch = names and max(1, int(names * (1 - data.validation_split)) // step)
    train.steps_per_epoch = steps_per_epoch
    if args.max_steps <= 0:
        if not steps_per_epoch:
            raise UserError(
                f"--streaming: {data.dataset!r} does not tell how many names it has; set --max_steps, or leave "
                "--streaming out"
            )
        args.max_steps = math.ceil(args.num_train_epochs * steps_per_epoch)
    if args.eval_strategy == "epoch":
        args.eval_strategy = IntervalStrategy.STEPS
        every = args.eval_steps or EVERY
        every = int(every if every >= 1 else every * args.max_steps)
        args.eval_steps = max(1, min(steps_per_epoch or every, args.max_steps))
    validation = NameBatches(
        table, lengths, collator, args.per_device_eval_batch_size, evaluation=True, **_place(args, collator)
    )
    train.told = _told(data, cleaner.counts, None, len(validation))
    named = f"{'about ' * (train.valid is None)}{names:,}" if names else "an unknown number"
    rejects = [reject._asdict() for reject in cleaner.rejects]
    rows = [
        ("data", f"{data.dataset}, streamed: not de-duplicated, shuffled within a buffer"),
        *_lines(cleaner.counts, rejects, "at the head of the stream, "),
        ("names", f"{named}; {len(validation):,} for validation ({100 * data.validation_split:.3g}% by hash)"),
    ]
    return train, validation, rows


def _told(data, counts, train: int | None, validation: int) -> dict:
    """``kind`` is sample, url, hub or local: local names have no name that others could know."""
    kind = SAMPLE if data.dataset == SAMPLE else "url" if is_url(data.dataset) else "local"
    if kind == "local" and not is_prepared(user_path(data.dataset)) and local_paths(data.dataset) is None:
        kind = "hub"
    return {"kind": kind, "counts": counts, "train": train, "validation": validation}


def _table(corpus, train: int, validation: int, data) -> list[tuple[str, str]]:
    """What became of every line."""
    rows = [("data", corpus.description), *_lines(corpus.counts, corpus.rejects)]
    share = f"{100 * data.validation_split:.3g}% by hash"
    rows.append(("names", f"{train:,} to train on, {validation:,} for validation ({share})"))
    if data.slots_per_batch:
        rows.append(("slots", f"about {data.slots_per_batch:,} a device and micro-step; names a step are their mean"))
    if corpus.counts["kept"] < SMALL and data.num_samples is None:
        rows.append(("warning", f"under {SMALL:,} names: fit for a trial, too few to learn the language of names"))
    return rows


def _lines(counts: dict[str, int], rejects: list[dict], where: str = "") -> list[tuple[str, str]]:
    first, *others = told_lines(counts, rejects)
    return [("lines", f"{where}{first}"), *(("", other) for other in others)]
