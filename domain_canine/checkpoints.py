"""The run folder: which checkpoints are whole, which may go, and whether a folder is ours to write in."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

from safetensors import SafetensorError, safe_open

from .errors import UserError

# Written at the start of a run, with its arguments; tells our folders from other people's.
RUN_FILE = "run_arguments.json"
WRITING = ".writing"  # checkpoints are written below it and moved out when they are whole
# What a checkpoint needs for a resume, beside the weights; none of it goes into the final folder.
STATE = re.compile(
    r"optimizer\.(pt|bin)|scheduler\.pt|scaler\.pt|rng_state(_\d+)?\.pth|trainer_state\.json|stream-\d+\.json"
    r"|pytorch_model_fsdp.*"
)
_NEEDED = (
    r"config\.json", r"trainer_state\.json", r"scheduler\.pt", r"optimizer\.(pt|bin)", r"rng_state(_\d+)?\.pth",
    r"model.*\.safetensors",
)  # fmt: skip
_NAME = re.compile(r"checkpoint-(\d+)")


def is_whole(checkpoint: Path) -> bool:
    """Whether a folder has all that a resume needs, with weights that are not torn."""
    names = {entry.name for entry in checkpoint.iterdir()} if checkpoint.is_dir() else set()
    needed = all(any(re.fullmatch(wanted, name) for name in names) for wanted in _NEEDED)
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
        for name in names:
            if name.endswith(".safetensors"):
                safe_open(checkpoint / name, framework="pt")  # checks the header against the file's length
    except (OSError, ValueError, SafetensorError):
        return False
    return needed


def step_of(checkpoint: Path) -> int:
    return int(_NAME.fullmatch(checkpoint.name)[1])


def whole_checkpoints(run: Path) -> list[Path]:
    """The run's whole checkpoints, oldest step first."""
    found = [entry for entry in run.glob("checkpoint-*") if _NAME.fullmatch(entry.name)]
    return [entry for entry in sorted(found, key=step_of) if is_whole(entry)]


def to_resume_from(run: Path, wanted: str | None) -> str | None:
    """The checkpoint that ``--resume_from_checkpoint`` means; ``newest`` finds it in the run folder.

    Raises:
        UserError: there is none, or the one named is not whole, or the run has gone on from it already.
    """
    if wanted is None:
        return None
    checkpoints = whole_checkpoints(run)
    if wanted == "newest":
        for entry in sorted(set(run.glob("checkpoint-*")) - set(checkpoints)):
            print(f"warning: {entry} is not whole and is passed over", file=sys.stderr)
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
    if checkpoints and checkpoints[-1].resolve() != Path(wanted).resolve():
        raise UserError(
            f"{str(run)!r} holds {checkpoints[-1].name}, which is not {wanted!r}: going on would mix two runs"
            "; give another --output_dir, or delete the checkpoints that are to be forgotten"
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
    if not names or names <= {RUN_FILE, WRITING} or (resuming and RUN_FILE in names):
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
            # Not the mode: safetensors writes files that only their owner can read. Whole or absent, as everywhere.
            shutil.copyfile(entry, run / f".{entry.name}")
            os.replace(run / f".{entry.name}", run / entry.name)
