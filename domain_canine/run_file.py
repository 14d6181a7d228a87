"""The arguments of a run's starts, on disk in its folder: they mark it as ours, and tell a resume of another run."""

import json
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


def settings(model_arguments, data_arguments, args, content: str | None = None) -> dict:
    """What makes two runs the same: the model, the names and their masks, the seeds, the names a step.

    Args:
        content: of the names, where they are known.
    """
    shares, data = args.gradient_accumulation_steps * args.world_size, dict(vars(data_arguments))
    slots = data.pop("slots_per_batch", None)
    names = None if slots else args.per_device_train_batch_size * shares
    step = {"optim": args.optim.value, "names a step": names, "slots a step": slots and slots * shares}
    known = {"content of the names": content} if content else {}
    return vars(model_arguments) | data | {"seed": args.seed, "data_seed": args.data_seed} | step | known


def refuse_changed_run(checkpoint: str, now: dict) -> None:
    """A resume goes on with the run that the checkpoint is of: no held-out name is trained on by accident.

    Raises:
        UserError: a setting differs from that of the run's latest start.
    """
    path = Path(checkpoint).parent / RUN_FILE
    try:
        latest = json.loads(path.read_text())[-1] if path.is_file() else {"settings": now}
        before, there = latest["settings"], latest.get("directory", "")
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{str(path)!r}, which tells how the run was started, is damaged: {first_line(error)}\n"
            "  If this is the same run, go on with --allow_changed_run: the file is made anew."
        ) from error
    different = [name for name in now if name in before and not _same(before[name], now[name], there)]
    if different:
        table = "".join(f"\n  {name:<20} {before[name]} -> {now[name]}" for name in different)
        raise UserError(
            f"the run of {checkpoint!r} was started otherwise:{table}\n  Give the old values, start afresh in another "
            "--output_dir, or take the change with --allow_changed_run."
        )


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
