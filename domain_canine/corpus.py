"""Raw lines to clean, unique names, split by hash into a training and a validation side, in Arrow on disk.

The result is kept in a cache folder, keyed by the content and the settings, and read by memory map.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from . import hashing
from .errors import UserError
from .normalization_domain_canine import InvalidDomain, normalize_domain
from .table import NameTable, TableWriter

SMALL = 1_000_000  # names; below, a model of full size learns the list rather than the language
CHUNK = 65_536  # lines cleaned at once, rows of a record batch
SPECIAL = 2  # code points that [CLS] and [SEP] add to a name
_VERSION = 1  # of the cleaning rules and the cache's format: counted up when either changes
SIDES = ("train", "validation")
_SPLIT = 201  # the split's own kind of draw


@dataclass
class Corpus:
    """Names ready for training; ``counts`` says what became of every line."""

    train: NameTable
    train_lengths: np.ndarray
    validation: NameTable
    validation_lengths: np.ndarray
    counts: dict[str, int]
    rejects: list[list]
    description: str


class Cleaner:
    """Normalises lines and counts what becomes of each; the counts add up to the lines seen."""

    def __init__(self, max_length: int):
        self.longest = max_length - SPECIAL
        self.counts = Counter()
        self.rejects = []

    def __call__(self, lines: Iterable[str]) -> Iterator[str]:
        for line in lines:
            self.counts["lines"] += 1
            if line.lstrip("\ufeff \t").startswith("#"):
                self.counts["comment"] += 1
                continue
            try:
                name = normalize_domain(line)
            except InvalidDomain as error:
                self._reject(line, error.reason)
                continue
            if len(name) > self.longest:
                self._reject(line, "over_max_length")
            else:
                yield name

    def _reject(self, line, reason):
        self.counts[reason] += 1
        if reason != "empty" and len(self.rejects) < 5:
            shown = line.encode("utf-8", "backslashreplace").decode("utf-8").strip()
            self.rejects.append([self.counts["lines"], shown[:80], reason])


def characters(names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """ASCII names -> (B, L) uint8, padded with 0, and (B,) lengths."""
    lengths = np.array([len(name) for name in names], dtype=np.int64)
    padded = np.zeros((len(names), lengths.max(initial=0)), dtype=np.uint8)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = np.frombuffer("".join(names).encode("ascii"), np.uint8)
    return padded, lengths


def on_validation_side(name_hashes: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """(B,) bool: the side of each name, a function of the name, the seed and the fraction alone."""
    return hashing.unit(hashing.key(seed, _SPLIT, name_hashes)) < fraction


class _Seen:
    """The hashes of all names so far, 8 bytes each, in sorted runs that are merged as they grow alike."""

    def __init__(self):
        self.runs = []

    def new(self, name_hashes: np.ndarray) -> np.ndarray:
        """(B,) bool: True where a hash is seen for the first time; they are seen from now on."""
        fresh, first = np.unique(name_hashes, return_index=True)
        for run in self.runs:
            known = run[np.minimum(np.searchsorted(run, fresh), len(run) - 1)] == fresh
            fresh, first = fresh[~known], first[~known]
        if len(fresh):
            self.runs.append(fresh)
        while len(self.runs) > 1 and len(self.runs[-2]) <= 2 * len(self.runs[-1]):
            self.runs[-2:] = [np.sort(np.concatenate(self.runs[-2:]))]
        is_new = np.zeros(len(name_hashes), dtype=bool)
        is_new[first] = True
        return is_new


def load_corpus(
    source, fraction: float, split_seed: int, max_length: int, num_samples: int | None, quiet: bool = False
) -> Corpus:
    """Clean, de-duplicate and split a source, or open what an earlier call left in the cache.

    Args:
        source: of ``sources.open_source``.
        fraction: share of the names on the validation side.
        split_seed: of the split.
        max_length: of the model's input; longer names are left out and counted.
        num_samples: only the first so many valid, unique names, before the split.

    Raises:
        UserError: no valid name, or none on one of the sides.
    """
    settings = [_VERSION, fraction, split_seed, max_length, num_samples, getattr(source, "column", None)]
    content = hashlib.blake2b(json.dumps([source.digest(), *settings]).encode(), digest_size=8).hexdigest()
    home = os.environ.get("DOMAIN_CANINE_CACHE") or Path.home() / ".cache" / "domain_canine"
    folder = Path(home).expanduser() / content
    if not (folder / "corpus.json").is_file():
        building = folder
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            building = Path(tempfile.mkdtemp(prefix=f"{folder.name}.building-", dir=folder.parent))
            _build(source, building, fraction, split_seed, max_length, num_samples, quiet)
            try:
                building.rename(folder)
            except OSError:
                # Another process was quicker with the same corpus.
                if not (folder / "corpus.json").is_file():
                    raise
        except OSError as error:
            raise UserError(
                f"cannot write the cleaned names to {str(folder.parent)!r}: {error}; free some space, or give another "
                "folder in DOMAIN_CANINE_CACHE"
            ) from error
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return _open(folder, source.description)


def _build(source, folder, fraction, split_seed, max_length, num_samples, quiet):
    cleaner = Cleaner(max_length)
    seen = _Seen()
    wanted = float("inf") if num_samples is None else num_samples
    kept = 0

    def sides():
        """Chunks of (names, on the validation side)."""
        nonlocal kept
        clean = cleaner(tqdm(source.lines(), "cleaning", unit=" lines", unit_scale=True, leave=False, disable=quiet))
        # No line is read beyond the last name that is wanted.
        while kept < wanted and (chunk := list(islice(clean, int(min(CHUNK, wanted - kept))))):
            hashes = hashing.hash_names(*characters(chunk))
            new = np.flatnonzero(seen.new(hashes))
            cleaner.counts["duplicate"] += len(chunk) - len(new)
            kept += len(new)
            yield [chunk[i] for i in new], on_validation_side(hashes[new], fraction, split_seed)

    writers = {side: TableWriter(folder / f"{side}.arrow", CHUNK) for side in SIDES}
    for names, validation in sides():
        for side, writer in writers.items():
            writer.add([name for name, where in zip(names, validation) if SIDES[where] == side])
    rows = {side: writer.close() for side, writer in writers.items()}
    counts = {"lines": cleaner.counts["lines"], "kept": kept} | dict(cleaner.counts)
    if kept == 0:
        raise UserError(f"{source.description!r} holds no valid domain name; {_told(counts, cleaner.rejects)}")
    for side in SIDES:
        if not rows[side]:
            raise UserError(
                f"{kept:,} valid, unique name(s) leave the {side} side empty at --validation_split {fraction}; "
                f"give more names; {_told(counts, cleaner.rejects)}"
            )
        _write_lengths(NameTable(folder / f"{side}.arrow"), folder / f"{side}.lengths")
    (folder / "corpus.json").write_text(json.dumps({"counts": counts, "rejects": cleaner.rejects}))


def _told(counts, rejects):
    told = ", ".join(f"{reason.replace('_', ' ')} {count:,}" for reason, count in counts.items() if count)
    shown = "".join(f"\n  line {line}: {text!r}: {reason.replace('_', ' ')}" for line, text, reason in rejects)
    return f"of its lines: {told}{shown}" if counts["lines"] else "it is empty"


def _write_lengths(table: NameTable, path: Path) -> None:
    """A byte a name: what batches are planned from."""
    with path.open("wb") as file:
        for start in range(0, len(table), CHUNK):
            table.lengths(np.arange(start, min(start + CHUNK, len(table)))).astype(np.uint8).tofile(file)


def _open(folder: Path, description: str) -> Corpus:
    told = json.loads((folder / "corpus.json").read_text())
    return Corpus(
        train=NameTable(folder / "train.arrow"),
        train_lengths=np.memmap(folder / "train.lengths", dtype=np.uint8, mode="r"),
        validation=NameTable(folder / "validation.arrow"),
        validation_lengths=np.memmap(folder / "validation.lengths", dtype=np.uint8, mode="r"),
        counts=told["counts"],
        rejects=told["rejects"],
        description=description,
    )
