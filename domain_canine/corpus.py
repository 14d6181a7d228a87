"""Prepared names, opened by memory map: a folder that ``prepare`` made, or the cache's for raw files and the Hub."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from .cleaning import SPECIAL
from .errors import UserError
from .manifest import LENGTHS, VERSION, is_prepared, read_manifest, shards
from .paths import user_path
from .prepare import Settings, prepare
from .sources import open_source
from .table import NameTable

SMALL = 1_000_000  # names; below, a model of full size learns the list rather than the language


@dataclass
class Side:
    """The names of one side of the split, and their lengths: (N,) uint8, a byte a name."""

    table: NameTable
    lengths: np.ndarray


@dataclass
class Corpus:
    """Names ready for training, in a folder; ``counts`` says what became of every line, ``content`` is equal for equal
    names.
    """

    train: Side
    validation: Side
    counts: dict[str, int]
    rejects: list[dict]
    description: str
    content: str
    folder: Path


def load_corpus(dataset: str, settings: Settings, column: str | None = None, quiet: bool = False) -> Corpus:
    """Names that are prepared, or prepared now and kept in the cache, keyed by content and settings.

    Args:
        dataset: a folder that ``prepare`` made, or what ``sources.open_source`` takes.
        settings: of the split and the names wanted; a prepared folder must fit them.
        column: which one holds the names.
        quiet: no progress bars.

    Raises:
        UserError: as ``prepare``; or a prepared folder does not fit.
    """
    if dataset and is_prepared(user_path(dataset)):
        return _prepared(user_path(dataset), settings)
    source = open_source(dataset, column)
    key = json.dumps([VERSION, source.digest(), source.column, asdict(settings)])
    home = os.environ.get("DOMAIN_CANINE_CACHE") or Path.home() / ".cache" / "domain_canine"
    folder = user_path(home) / hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
    prepare(source, folder, settings, quiet=quiet)
    return _open(folder, source.description)


def _prepared(folder, settings):
    manifest = read_manifest(folder)
    made = manifest["input"]
    for name in ("validation_split", "split_seed"):
        if made[name] != getattr(settings, name):
            raise UserError(
                f"{str(folder)!r} was prepared with --{name} {made[name]}, not {getattr(settings, name)}: give that, "
                "or prepare it again"
            )
    longest = max(side["longest"] for side in manifest["sides"].values()) + SPECIAL
    if longest > settings.max_length:
        raise UserError(
            f"{str(folder)!r} has names that need --max_length {longest}, not {settings.max_length}: give that, or "
            f"prepare it again with --max_length {settings.max_length}"
        )
    corpus = _open(folder, str(folder))
    if settings.num_samples is not None:
        # They are in random order: the first of each side, in the sides' proportion.
        corpus.description += f", {settings.num_samples:,} of its names"
        share = min(1.0, settings.num_samples / manifest["counts"]["kept"])
        for side in (corpus.train, corpus.validation):
            side.lengths = side.lengths[: max(1, round(share * len(side.lengths)))]
    return corpus


def _open(folder: Path, description: str) -> Corpus:
    manifest = read_manifest(folder)
    sides = {}
    for side in manifest["sides"]:
        sides[side] = Side(NameTable(shards(folder, side)), np.memmap(folder / side / LENGTHS, np.uint8, "r"))
    content = hashlib.blake2b(json.dumps(manifest["input"]).encode(), digest_size=8).hexdigest()
    counts, rejects = manifest["counts"], manifest["rejects"]
    return Corpus(**sides, counts=counts, rejects=rejects, description=description, content=content, folder=folder)


def validation_names(folder: Path, content: str | None, count: int) -> list[str] | None:
    """The first of a prepared folder's held-out names, which are in random order; None if they are no longer there.

    Args:
        content: of ``Corpus``, that the folder must still have.
    """
    if not is_prepared(folder):
        return None
    corpus = _open(folder, str(folder))
    if corpus.content != content:
        return None
    return corpus.validation.table.names(np.arange(min(count, len(corpus.validation.lengths))))
