"""The arguments of a run's starts, on disk in its folder: they mark it as ours, and tell a resume of another run."""

import json
import math
import os
import time
from pathlib import Path

import torch
import transformers

from .arguments import DEFAULT_MODEL
from .checkpoints import step_of
from .errors import UserError, first_line
from .paths import user_path
from .run_folder import RUN_FILE

CONTENT = "content of the names"
# Of no account where the names, with their labels, are the same.
_WHERE = {"dataset", "dataset_column", "num_samples", "train_file", "validation_file", "label_column"}
# Other values of these ask an evaluation nothing else; of all other settings they may.
_ASKS_THE_SAME = {
    "model_name_or_path", "model_size", "config_overrides", "seed", "data_seed", "optim", "names a step",
    "slots a step", "mlm_probability", "mask_replace_prob", "random_replace_prob", "span_length", "fixed_shapes",
    "pooling", "freeze_encoder", "lora_rank",
}  # fmt: skip


def settings(model_arguments, data_arguments, args, content: str | None = None) -> dict:
    """What makes two runs the same: the model, the names and their masks, the seeds, the names a step.

    Args:
        content: of the names, where they are known.
    """
    shares, data = args.gradient_accumulation_steps * args.world_size, dict(vars(data_arguments))
    slots = data.pop("slots_per_batch", None)
    names = None if slots else args.per_device_train_batch_size * shares
    step = {"optim": args.optim.value, "names a step": names, "slots a step": slots and slots * shares}
    known = {CONTENT: content} if content else {}
    return vars(model_arguments) | data | {"seed": args.seed, "data_seed": args.data_seed} | step | known


def refuse_changed_run(checkpoint: str, now: dict) -> None:
    """A resume goes on with the run that the checkpoint is of: no held-out name is trained on by accident.

    Raises:
        UserError: a setting differs from that of the run's latest start.
    """
    path = Path(checkpoint).parent / RUN_FILE
    try:
        latest = json.loads(path.read_text())[-1] if path.is_file() else {"settings": now}
        before, different = latest["settings"], _different(latest, now)
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{str(path)!r}, which tells how the run was started, is damaged: {first_line(error)}\n"
            "  If this is the same run, go on with --allow_changed_run: the file is made anew."
        ) from error
    if different:
        table = "".join(f"\n  {name:<20} {before[name]} -> {now[name]}" for name in different)
        raise UserError(
            f"the run of {checkpoint!r} was started otherwise:{table}\n  Give the old values, start afresh in another "
            "--output_dir, or take the change with --allow_changed_run."
        )


def _different(start, now):
    """Names of the settings that a start had otherwise."""
    before, there = start["settings"], start.get("directory", "")
    return [name for name in now if name in before and not _same(before[name], now[name], there)]


def in_weights(starts: list[dict], step: float) -> list[dict]:
    """The starts that have a part in the weights of this step: others went on elsewhere, later, or made no step."""
    kept, end = [], step
    for start in reversed(starts):
        begin = start.get("resumed_from") or 0
        if begin < end:
            kept, end = [start, *kept], begin
    return kept or starts


def _asks_anew(checkpoint, now):
    """Whether evaluations are of other names, or of other questions about them, than those before a checkpoint."""
    path = checkpoint.parent / RUN_FILE
    if not path.is_file():
        return False
    try:
        start = in_weights(json.loads(path.read_text()), step_of(checkpoint))[-1]
        different, content = _different(start, now), start["settings"].get(CONTENT)
    except (ValueError, LookupError, TypeError):  # it is damaged, and --allow_changed_run has said so
        return True
    alike = _ASKS_THE_SAME | (_WHERE if content is not None and content == now.get(CONTENT) else set())
    return not alike.issuperset(different)


def asked_anew(run: Path) -> int:
    """The step since which a run's evaluations ask the same question: 0, or that of the latest changed start."""
    starts = json.loads((run / RUN_FILE).read_text()) if (run / RUN_FILE).is_file() else []
    changed = [start["resumed_from"] for start in in_weights(starts, math.inf) if start.get("asks_anew")]
    return changed[-1] if changed else 0


def _same(before, now, there) -> bool:
    """Whether two values are alike, or paths of one file or folder, of which the former starts ``there``."""
    if before == now:
        return True
    try:
        return os.path.samefile(os.path.join(there, os.path.expanduser(before)), os.path.expanduser(now))
    except (OSError, TypeError, ValueError):
        return False


def write_run_file(args, now: dict, data: dict, checkpoint: str | None) -> None:
    """Add this start, without secrets.

    Args:
        now: of ``settings``.
        data: what is known of the names: how many lines, kept, on each side, and where they lie.
        checkpoint: that the start goes on from.
    """
    path = Path(args.output_dir) / RUN_FILE
    try:
        starts = json.loads(path.read_text())
    except (OSError, ValueError):  # there is none, or it is damaged and --allow_changed_run has said so
        starts = []
    base = now["model_name_or_path"] or DEFAULT_MODEL
    origin = "random" if now["model_size"] else "local" if user_path(base).is_dir() else "hub"
    device = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else args.device.type
    starts.append({
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "resumed_from": step_of(Path(checkpoint)) if checkpoint else None,
        "asks_anew": checkpoint is not None and _asks_anew(Path(checkpoint), now),
        "directory": os.getcwd(),
        "settings": now,
        "origin": origin,
        "data": data,
        "machine": {
            "devices": f"{args.world_size} x {device}", "precision": args.precision, "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "training": args.to_dict(),
    })  # fmt: skip
    written = path.with_suffix(".part")
    with written.open("w") as file:
        file.write(json.dumps(starts, indent=1, default=str) + "\n")
        file.flush()
        os.fsync(file.fileno())  # a run whose arguments are lost with the power would not be known as ours
    written.replace(path)
