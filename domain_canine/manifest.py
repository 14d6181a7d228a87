"""What a folder of prepared names says of itself, to this package and to ``datasets``."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np

from .errors import UserError

MANIFEST = "manifest.json"
STATE = "building.json"  # what a folder is being made of, until it has its manifest
LENGTHS = "lengths.u8"
REJECTS = "rejects.jsonl"
SIDES = ("train", "validation")
SHOWN = 5  # rejects in the manifest, for the table of a run's start
VERSION = 2  # of the cleaning rules, the split, the order and the format: counted up when one changes


def write_whole(path: Path, text: str) -> None:
    """The text, or what was there before: never a part of it."""
    part = path.with_name(f"{path.name}.writing")
    part.write_text(text)
    part.replace(path)


def finish(folder: Path, description: str, made_of: dict, counts: dict[str, int], rejects: list[dict]) -> None:
    """Lengths in one file a side, what ``datasets.load_from_disk`` wants, and last the manifest."""
    sides, files = {}, [REJECTS, "dataset_dict.json"]
    for side in SIDES:
        made = shards(folder, side)
        with (folder / side / LENGTHS).open("wb") as together:
            for shard in made:
                with shard.with_suffix(".lengths").open("rb") as lengths:
                    shutil.copyfileobj(lengths, together)
        lengths = np.memmap(folder / side / LENGTHS, np.uint8, "r")
        sides[side] = {"names": len(lengths), "longest": int(lengths.max())}
        names = [shard.name for shard in made]
        _describe_to_datasets(folder / side, side, names, made_of["content"])
        files += [f"{side}/{name}" for name in (*names, LENGTHS, "state.json", "dataset_info.json")]
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": SIDES}))
    manifest = {
        "source": description,
        "input": made_of,
        "counts": counts,
        "sides": sides,
        "rejects": rejects,
        "files": {name: [(folder / name).stat().st_size, _digest(folder / name)] for name in files},
    }
    write_whole(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def is_prepared(folder: Path) -> bool:
    """Whether a folder has a manifest, and it is one of ours."""
    try:
        return "version" in json.loads((folder / MANIFEST).read_text())["input"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read_manifest(folder: Path) -> dict:
    """The manifest of a folder whose files are all there, in full size.

    Raises:
        UserError: a file is missing or cut, or another version made it.
    """
    manifest = json.loads((folder / MANIFEST).read_text())
    if (found := manifest["input"]["version"]) != VERSION:
        raise UserError(f"{str(folder)!r} was prepared by another version ({found}, not {VERSION}): prepare it again")
    for name, (size, _) in manifest["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            found = f"has {path.stat().st_size:,} bytes, not {size:,}" if path.is_file() else "is missing"
            raise UserError(f"{str(path)!r} {found}: copy the folder again, or prepare it again")
    return manifest


def shards(folder: Path, side: str) -> list[Path]:
    """The files of a side's names, in order; ``datasets`` leaves caches of its own beside them."""
    return sorted((folder / side).glob("data-*-of-*.arrow"))


def check_digests(folder: Path, manifest: dict) -> None:
    """Read every file of a folder again.

    Raises:
        UserError: the contents of one are not what was written.
    """
    for name, (_, digest) in manifest["files"].items():
        if _digest(folder / name) != digest:
            raise UserError(f"{str(folder / name)!r} is damaged: copy the folder again, or prepare it again")


def told_lines(counts: dict[str, int], rejects: list[dict]) -> list[str]:
    """What became of the lines, in a sentence; then the first rejects."""
    if not counts["lines"]:
        return ["it is empty"]
    became = {why: count for why, count in counts.items() if count and why != "lines"}
    return [f"{counts['lines']:,} lines read: {listed(became)}", *map(told_reject, rejects)]


def listed(counts: dict[str, int]) -> str:
    """Counts by what they are of, in words."""
    return ", ".join(f"{why.replace('_', ' ')} {count:,}" for why, count in counts.items())


def told_reject(reject: dict) -> str:
    where = f"{Path(reject['source']).name}, line {reject['line']}"
    return f"not used: {where}: {reject['text'][:80]!r} ({reject['reason'].replace('_', ' ')})"


def _describe_to_datasets(folder, side, files, content):
    """The files that make a folder one that ``datasets.Dataset.save_to_disk`` might have written."""
    fingerprint = hashlib.blake2b(f"{content} {side} {VERSION}".encode(), digest_size=8).hexdigest()
    state = {"_data_files": [{"filename": name} for name in files], "_fingerprint": fingerprint, "_split": side}
    state |= {"_format_columns": None, "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False}
    (folder / "state.json").write_text(json.dumps(state))
    info = {"features": {"name": {"dtype": "string", "_type": "Value"}}}
    (folder / "dataset_info.json").write_text(json.dumps(info))


def _digest(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
