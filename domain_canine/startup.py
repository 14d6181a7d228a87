"""Before the first step: the checkpoint, seeds, and the table that says what will happen."""

import math
import socket
import sys
from pathlib import Path

import torch
from accelerate.utils import gather_object
from transformers import set_seed
from transformers.trainer_utils import IntervalStrategy, enable_full_determinism

from . import checkpoints, reporting
from .arguments import DataArguments, ModelArguments
from .errors import UserError
from .modeling_domain_canine import DomainCanineForMaskedLM
from .run_file import refuse_changed_run, settings, write_run_file
from .run_folder import RUN_FILE, RunFolder, agreed
from .training_arguments import DomainTrainingArguments


def find_checkpoint(args) -> str | None:
    """As ``checkpoints.to_resume_from``, of the arguments."""
    run = Path(args.output_dir)
    return checkpoints.to_resume_from(run, args.resume_from_checkpoint, begun=(run / RUN_FILE).is_file())


def prepare(
    args: DomainTrainingArguments, model_arguments: ModelArguments, data_arguments: DataArguments
) -> str | None:
    """Find the checkpoint to resume from, seed everything, get the reporting ready.

    Returns:
        The checkpoint's path, or None.

    Raises:
        UserError: there is no such checkpoint, it is of another run, or what is to be reported to is not installed.
    """
    checkpoint = agreed(args, lambda: find_checkpoint(args))
    if checkpoint is not None and not args.allow_changed_run:
        refuse_changed_run(checkpoint, settings(model_arguments, data_arguments, args))
    reporting.prepare(args)
    enable_full_determinism(args.seed) if args.full_determinism else set_seed(args.seed)
    return checkpoint


def record(
    run: RunFolder,
    args,
    model_arguments,
    data_arguments,
    content: str | None,
    checkpoint: str | None,
    data: dict,
) -> None:
    """Write the run's arguments into its folder, which marks it as ours.

    Args:
        content: of the names, which a resumed run must have, too.
        data: as ``write_run_file``.

    Raises:
        UserError: it has others, or the folder cannot be written.
    """
    now = settings(model_arguments, data_arguments, args, content)
    if args.world_size > 1:
        (first, known), *others = gather_object([(socket.gethostname(), content)])
        if different := sorted({host for host, its in others if its != known}):
            raise UserError(
                f"{', '.join(different)} has other names than {first}: several machines need the same files, or a "
                "prepared folder on a file system that they share"
            )
    if checkpoint is not None and not args.allow_changed_run:
        refuse_changed_run(checkpoint, now)
    run.claim(lambda: write_run_file(args, now, data, checkpoint))


def print_table(args, model, model_arguments, data_rows, train, objective: str, checkpoint: str | None) -> None:
    """What will happen: model, data, device, batch arithmetic, steps; on stderr, by the first process."""
    if args.process_index == 0:
        steps = None if args.max_steps > 0 else train.plan.steps
        run_rows = _run_rows(args, steps, objective, model_arguments.model_size is not None)
        if checkpoint is not None:
            run_rows.append(("goes on", f"from {checkpoint}"))
        for name, value in [_model_row(model, model_arguments), *data_rows, *run_rows]:
            print(f"{name:>10}  {value}", file=sys.stderr)


def print_final(folder: str, which: str, metrics: dict[str, float], kind, classes: int | None = None) -> None:
    told = f" (validation: {kind.line(metrics)})" if metrics else ""
    print(f"saved the {which} weights{told} to {folder}", file=sys.stderr)
    if classes is not None and metrics.get("eval_perplexity", 0) > classes:
        print(
            f"warning: that is worse than guessing among the {classes} classes: the run has diverged, or hardly begun; "
            "lower --learning_rate, or train for longer",
            file=sys.stderr,
        )


def _model_row(model, arguments) -> tuple[str, str]:
    config = model.config
    parameters = sum(parameter.numel() for parameter in model.parameters())
    origin = f"random weights ({arguments.model_size})" if arguments.model_size else model.name_or_path
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    told = f"{parameters:,} parameters" + (f" ({trained:,} of them trained)" if trained < parameters else "")
    shape = f"{config.num_hidden_layers} layers, {config.hidden_size} wide"
    if isinstance(model, DomainCanineForMaskedLM):
        shape += f", {config.vocab_size} classes, mask U+{config.mask_code_point:04X}"
    return "model", f"{origin}: {told}, {shape}"


def _run_rows(args, steps_per_epoch: int | None, objective: str, from_random_weights: bool) -> list[tuple[str, str]]:
    batch, accumulation, ranks = args.per_device_train_batch_size, args.gradient_accumulation_steps, args.world_size
    device = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else args.device.type
    how = args.precision + ", TF32 for fp32 matrix products" * bool(args.tf32) + ", CUDA graphs" * args.records_steps
    steps = f"{args.max_steps:,}"
    if steps_per_epoch:
        epochs = args.num_train_epochs
        steps = f"{steps_per_epoch:,} an epoch x {epochs:g} epochs = {math.ceil(steps_per_epoch * epochs):,}"
    planned = args.max_steps if args.max_steps > 0 else math.ceil(steps_per_epoch * args.num_train_epochs)
    warmup = args.get_warmup_steps(planned)
    rows = [
        ("objective", objective),
        ("device", f"{ranks} x {device}, {how}, {args.dataloader_num_workers} loader worker(s)"),
        (
            "batch",
            f"{batch} names x {accumulation} accumulated x {ranks} = {batch * accumulation * ranks:,} names a step",
        ),
        ("steps", f"{steps}; learning rate {args.learning_rate:g}, warm-up {warmup:,} steps"),
        ("output", args.output_dir),
    ]
    if args.eval_strategy == IntervalStrategy.STEPS:
        patience = args.early_stopping_patience
        stops = f"; {patience} without a better {args.metric_for_best_model} end the run" if patience else ""
        every = math.ceil(args.eval_steps * (planned if args.eval_steps < 1 else 1))
        rows.append(("evaluated", f"every {every:,} steps{stops}"))
    if warmup >= planned:
        rows.append(("warning", f"the warm-up is as long as the run of {planned:,} steps: lower --warmup_steps"))
    if from_random_weights and args.learning_rate < 1e-4:
        rows.append(("warning", f"{args.learning_rate:g} suits a pretrained model; random weights take 1e-3 to 3e-3"))
    return rows
