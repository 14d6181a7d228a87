"""Checkpoints on disk: made whole, found again, checked, and cleared away."""

import hashlib
import json
import os
import re
import shutil
import sys
from pathlib import Path
from pickle import UnpicklingError

import torch
from transformers.trainer_pt_utils import safe_globals

from .errors import UserError
from .paths import user_path

WRITING = ".writing"  # checkpoints are written below it and moved out when they are whole
# Sizes and SHA-256 of a checkpoint's files: 0.7 s for the 1.6 GB of the base size.
MANIFEST = "checkpoint_manifest.json"
# What a checkpoint needs for a resume, beside the weights; none of it goes into the final folder.
STATE = re.compile(
    r"optimizer\.(pt|bin)|scheduler\.pt|scaler\.pt|rng_state(_\d+)?\.pth|trainer_state\.json|stream-\d+\.json"
    rf"|progress\.json|{re.escape(MANIFEST)}|pytorch_model_fsdp.*"
)
_NAME = re.compile(r"checkpoint-(\d+)")


def step_of(checkpoint: Path) -> int:
    return int(_NAME.fullmatch(checkpoint.name)[1])


def _found(run):
    """The run's checkpoints, whole or not, oldest step first."""
    return sorted((entry for entry in run.glob("checkpoint-*") if _NAME.fullmatch(entry.name)), key=step_of)


# ---- whole or absent


def seal(written: Path) -> None:
    """Give a written checkpoint its manifest, and bring all of it onto the disk."""
    files = {}
    for path in sorted(path for path in written.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        files[path.relative_to(written).as_posix()] = {"bytes": path.stat().st_size, "sha256": digest}
    with (written / MANIFEST).open("w") as file:
        file.write(json.dumps(files, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    for folder in {written, *(path for path in written.rglob("*") if path.is_dir())}:
        _sync_folder(folder)


def move_in(written: Path, checkpoint: Path) -> None:
    """Give a sealed checkpoint its name: at every moment it is whole or absent, after a power cut, too."""
    if checkpoint.exists():  # of this step, too: the disk failed when older ones were cleared away behind it
        remove(checkpoint)
    os.replace(written, checkpoint)
    _sync_folder(checkpoint.parent)


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint: it loses its name first, so that none is ever found half deleted."""
    grave = checkpoint.parent / WRITING / f"{checkpoint.name}.deleted"
    grave.parent.mkdir(exist_ok=True)
    shutil.rmtree(grave, ignore_errors=True)
    os.replace(checkpoint, grave)
    shutil.rmtree(grave, ignore_errors=True)


def _sync_folder(folder):
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def damage(checkpoint: Path, digests: bool = False) -> str | None:
    """What a checkpoint lacks of being whole, or None.

    Args:
        digests: read every byte, too, instead of the sizes alone.
    """
    try:
        files = json.loads((checkpoint / MANIFEST).read_text())
        for name, told in files.items():
            path = checkpoint / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != told["bytes"]:
                return f"{name} has {path.stat().st_size:,} bytes, not {told['bytes']:,}"
            if digests:
                with path.open("rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != told["sha256"]:
                        return f"the content of {name} has changed"
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError) as error:
        return f"it cannot be read: {error}"
    except (AttributeError, KeyError, TypeError):
        return f"{MANIFEST} is none"
    return None


def is_whole(checkpoint: Path) -> bool:
    """Whether a folder has all files of its manifest, in their sizes."""
    return damage(checkpoint) is None


def whole_checkpoints(run: Path) -> list[Path]:
    """The run's whole checkpoints, oldest step first."""
    return [entry for entry in _found(run) if is_whole(entry)]


def pickled_code(checkpoint: Path) -> str | None:
    """The name of a file that holds more than tensors and plain values, and is not loaded therefore."""
    for path in sorted(checkpoint.iterdir()):
        if path.suffix in (".pt", ".pth", ".bin"):
            try:
                with safe_globals():  # those of the generators' states
                    torch.load(path, map_location="cpu", weights_only=True)
            except UnpicklingError:
                return path.name
    return None


# ---- resume and rotation


def to_resume_from(run: Path, wanted: str | None, begun: bool = False) -> str | None:
    """The checkpoint that ``--resume_from_checkpoint`` means; ``newest`` finds it in the run folder.

    Every byte of it is checked. Of a broken one a warning tells, the one before is taken, and it loses its name: it
    would count as the newest otherwise, and the ones to come be cleared away.

    Args:
        begun: the folder is of a run, which may have ended before its first checkpoint.

    Raises:
        UserError: there is none, or the one named is not whole, or the run has gone on from it already.
    """
    if wanted is None:
        return None
    newest, broken = None, {}
    for entry in reversed(_found(run)):
        if (lacks := damage(entry, digests=True)) is None:
            newest = entry
            break
        broken[entry] = lacks
    if wanted == "newest":
        _warn(broken)
        if newest is None and begun and not broken:
            print(f"{run} has no checkpoint yet: the run starts afresh", file=sys.stderr)
            return None
        if newest is None:
            then = "give another --output_dir" if broken else "leave the flag out"
            raise UserError(
                f"--resume_from_checkpoint: there is no {'whole ' * bool(broken)}checkpoint in {str(run)!r}; {then} to "
                "start afresh"
            )
        _set_aside(broken)
        return str(newest)
    path = user_path(wanted)
    known = newest is not None and newest.resolve() == path.resolve()
    if not known and (lacks := damage(path, digests=True)):
        what = f"is not a whole checkpoint: {lacks}" if path.is_dir() else "is no folder"
        raise UserError(
            f"--resume_from_checkpoint {wanted!r} {what}\n  Give a run's checkpoint-N folder, or no path for the newest"
        )
    if newest is not None and not known:
        raise UserError(
            f"{str(run)!r} holds {newest.name}, which is not {wanted!r}: going on would mix two runs"
            "; give another --output_dir, or delete the checkpoints that are to be forgotten"
        )
    _warn(broken)
    _set_aside(broken)
    return str(path)


def _warn(broken):
    for entry, lacks in broken.items():
        print(f"warning: {entry} is broken and is passed over: {lacks}", file=sys.stderr)


def _set_aside(broken):
    for entry in broken:
        aside = entry.with_name(f"{entry.name}.broken")
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(entry, aside)


def best_evaluation(run: Path, history: list[dict], metric: str, greater: bool) -> tuple[float | None, int | None]:
    """Value and step of the best one in the Trainer's log of which there is a checkpoint; of equal ones the first."""
    best, step = None, None
    for entry in history:
        if metric in entry and is_whole(run / f"checkpoint-{entry['step']}"):
            value = entry[metric]
            if best is None or (value > best if greater else value < best):
                best, step = value, entry["step"]
    return best, step


def prune(run: Path, keep: int | None, best_step: int | None) -> None:
    """Delete all but the ``keep`` newest whole checkpoints and the best, and broken ones that are older than these."""
    if keep is None:
        return
    kept = whole_checkpoints(run)[-keep:]
    for checkpoint in _found(run):
        if step_of(checkpoint) < step_of(kept[0]) and checkpoint.name != f"checkpoint-{best_step}":
            remove(checkpoint)


def copy_model(checkpoint: Path, run: Path) -> None:
    """Copy the model (weights, config, tokenizer, code), and nothing of the training state, into the run folder.

    Nor, of a sealed checkpoint, what was put there later: a card, a report, notes.
    """
    sealed = json.loads((checkpoint / MANIFEST).read_text()) if (checkpoint / MANIFEST).is_file() else None
    for entry in checkpoint.iterdir():
        if entry.is_file() and (sealed is None or entry.name in sealed) and not STATE.fullmatch(entry.name):
            # Not the mode: safetensors writes files that only their owner can read. Whole or absent, as everywhere.
            beside = run / f".{entry.name}"
            try:
                shutil.copyfile(entry, beside)
                os.replace(beside, run / entry.name)
            finally:
                beside.unlink(missing_ok=True)
