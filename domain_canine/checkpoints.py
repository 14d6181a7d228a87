"""The run folder: which checkpoints are whole, which may go, and whether a folder is ours to write in."""

import os
import re
import shutil
from pathlib import Path

from .errors import UserError

# Written at the start of a run, with its arguments; tells our folders from other people's.
RUN_FILE = "run_arguments.json"
WRITING = ".writing"  # checkpoints are written below it and moved out when they are whole
# What a checkpoint needs for a resume, beside the weights; none of it goes into the final folder.
STATE = re.compile(r"optimizer\.(pt|bin)|scheduler\.pt|scaler\.pt|rng_state(_\d+)?\.pth|trainer_state\.json")
_NAME = re.compile(r"checkpoint-(\d+)")


def is_whole(checkpoint: Path) -> bool:
    """Whether a folder has all that a resume needs."""
    return all((checkpoint / name).is_file() for name in ("config.json", "trainer_state.json", "scheduler.pt"))


def whole_checkpoints(run: Path) -> list[Path]:
    """The run's whole checkpoints, oldest step first."""
    found = [(int(match[1]), entry) for entry in run.glob("checkpoint-*") if (match := _NAME.fullmatch(entry.name))]
    return [entry for _, entry in sorted(found) if is_whole(entry)]


def to_resume_from(run: Path, wanted: str | None) -> str | None:
    """The checkpoint that ``--resume_from_checkpoint`` means; ``newest`` finds it in the run folder.

    Raises:
        UserError: there is none, or the one named is not whole.
    """
    if wanted is None:
        return None
    if wanted == "newest":
        checkpoints = whole_checkpoints(run)
        if not checkpoints:
            raise UserError(
                f"--resume_from_checkpoint: there is no checkpoint in {str(run)!r}; leave the flag out to start afresh"
            )
        return str(checkpoints[-1])
    if not is_whole(Path(wanted)):
        what = "is not a whole checkpoint" if Path(wanted).is_dir() else "is no folder"
        raise UserError(
            f"--resume_from_checkpoint {wanted!r} {what}; give a run's checkpoint-N folder, or no path for the newest"
        )
    return wanted


def refuse_foreign_folder(run: Path, resuming: bool) -> None:
    """Nothing of anyone's is overwritten: a run starts in a new or empty folder, or goes on in its own.

    Raises:
        UserError: the folder is taken.
    """
    if run.exists() and not run.is_dir():
        raise UserError(f"--output_dir {str(run)!r} is a file; give a folder")
    names = {entry.name for entry in run.iterdir()} if run.is_dir() else set()
    if not names or names <= {RUN_FILE, WRITING, "runs"} or (resuming and RUN_FILE in names):
        return
    if RUN_FILE in names:
        raise UserError(
            f"--output_dir {str(run)!r} holds an earlier run; add --resume_from_checkpoint to go on with it, "
            "or give another folder"
        )
    raise UserError(
        f"--output_dir {str(run)!r} is not empty and not a run of this program ({', '.join(sorted(names)[:3])}, ...); "
        "give a new folder"
    )


def move_in(written: Path, checkpoint: Path) -> None:
    """Give a checkpoint, written beside, its name: it is whole or absent at every moment."""
    if checkpoint.exists():  # of an earlier attempt at the same step
        shutil.rmtree(checkpoint)
    os.replace(written, checkpoint)


def prune(run: Path, keep: int | None, best_step: int | None) -> None:
    """Delete all but the ``keep`` newest checkpoints and the best."""
    if keep is not None:
        for checkpoint in whole_checkpoints(run)[:-keep]:
            if checkpoint.name != f"checkpoint-{best_step}":
                shutil.rmtree(checkpoint)


def copy_model(checkpoint: Path, run: Path) -> None:
    """Copy the model (weights, config, tokenizer, code), and nothing of the training state, into the run folder."""
    for entry in checkpoint.iterdir():
        if entry.is_file() and not STATE.fullmatch(entry.name):
            # Not the mode: safetensors writes files that only their owner can read.
            shutil.copyfile(entry, run / entry.name)
