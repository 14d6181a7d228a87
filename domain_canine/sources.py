"""What ``--dataset`` means: a file, a folder, a glob, a URL, the Hub, the bundled sample, or several of them."""

import glob
import hashlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .connection import HttpFile, is_url
from .errors import UserError, speaks
from .hub import Hub
from .manifest import MANIFEST, SHOWN, STATE, is_prepared
from .paths import user_path
from .readers import COMPRESSED, Block, kind_of, lines_of, path_of, read
from .sample import SAMPLE, sample_names


def open_source(dataset: str, column: str | None = None):
    """The source that ``--dataset`` means: it has ``description``, ``column``, ``blocks()`` and ``digest()``.

    Args:
        dataset: ``sample``; a URL; an existing path, a glob, or what looks like a file; otherwise a Hub id.
        column: which column of csv, tsv, parquet or Hub data holds the names; found by itself if there is one
            column, or one called ``domain``, ``name``, ``text``, ``domain_name`` or ``hostname``.

    Raises:
        UserError: nothing is there.
    """
    if dataset == SAMPLE:
        return Sample()
    paths = [dataset] if is_url(dataset) else local_paths(dataset, tells=True)
    if paths is None:
        return Hub(dataset, column)
    files = [str(path) for path in paths]
    return Files(dataset, files, column if any(kind_of(path_of(name)) != ".txt" for name in files) else None)


def local_paths(dataset: str, tells: bool = False) -> list[Path] | None:
    """The files of a path, folder or glob; None for what can only be a Hub id.

    Args:
        tells: what of a folder is not read.

    Raises:
        UserError: nothing is there.
    """
    if not dataset:
        raise UserError("the name of the data is empty: give a file, a folder, a URL, a Hub id, or 'sample'")
    path = user_path(dataset)
    if any(character in dataset for character in "*?[") and not path.exists():
        paths = [Path(match) for match in sorted(glob.glob(str(path), recursive=True)) if Path(match).is_file()]
        if not paths:
            raise UserError(f"no file matches {dataset!r}; check the pattern, and quote it in a shell")
        return paths
    if is_prepared(path):
        raise UserError(
            f"{dataset!r} is prepared: a training takes it as it is, without --streaming; give anything else the files "
            "that it was made of"
        )
    if (path / STATE).is_file():
        raise UserError(f"{dataset!r} is not finished: give the command that makes it again, and it goes on")
    if (path / "dataset_dict.json").is_file():
        raise UserError(f"{dataset!r} has no whole {MANIFEST}: copy the whole folder, or prepare the names again")
    if path.exists() and not path.is_dir() and not path.is_file():
        raise UserError(f"{dataset!r} is no file, and a pipe can be read but once: write the names to a file first")
    if path.is_dir():
        entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
        paths = [entry for entry in entries if entry.is_file() and kind_of(entry) is not None]
        if tells and paths and len(paths) < len(entries) and speaks():
            _tell_others(dataset, sorted({*entries} - {*paths}))
        if not paths:
            raise UserError(
                f"the folder {dataset!r} holds no .txt, .csv, .tsv or .parquet file ({', '.join(COMPRESSED)} included)"
            )
        return paths
    if path.exists():
        return [path]
    if kind_of(path) or dataset.startswith((".", "/", "~", "data/")) or dataset.count("/") > 1:
        raise UserError(f"there is no file or folder {dataset!r}; check the path")
    return None


def _tell_others(dataset, others):
    some = ", ".join(f"{entry.name}{'/' * entry.is_dir()}" for entry in others[:SHOWN])
    more = f" and {len(others) - SHOWN:,} more" if len(others) > SHOWN else ""
    then = f"; a quoted glob reaches folders within, as '{dataset}/**/*.txt'" if any(map(Path.is_dir, others)) else ""
    print(f"not read of {dataset!r}: {some}{more}{then}", file=sys.stderr)


class Sample:
    """The bundled synthetic names."""

    description = "the bundled sample (synthetic names)"
    column = None

    def blocks(self) -> Iterator[Block]:
        names = sample_names()
        yield Block(SAMPLE, np.arange(1, len(names) + 1), lines_of("\n".join(names).encode()), 1.0)

    def digest(self) -> str:
        return hashlib.blake2b("\n".join(sample_names()).encode()).hexdigest()


@dataclass
class Files:
    """Local files and URLs, read one after the other."""

    description: str
    files: list[str]
    column: str | None = None

    def blocks(self) -> Iterator[Block]:
        sizes = [1 if is_url(name) else os.path.getsize(name) for name in self.files]
        for i, name in enumerate(self.files):
            for block in read(name, self.column):
                yield block._replace(done=(sum(sizes[:i]) + sizes[i] * block.done) / max(1, sum(sizes)))

    def digest(self) -> str:
        """Of the contents, so that a changed file is never taken for the old one.

        Of a URL: the address, the size, and the version that the server tells (ETag or date).

        Raises:
            UserError: a file cannot be read, or a server tells no version.
        """
        state = hashlib.blake2b()
        for name in self.files:
            if is_url(name):
                with HttpFile(name) as file:
                    if file.version is None:
                        raise UserError(
                            f"{name!r}: the server tells neither a version (ETag) nor a date, and what is kept of it "
                            "could be old; download it first, or use --streaming"
                        )
                    state.update(f"{file.url} {file.size} {file.version}\n".encode())
                continue
            state.update(f"{kind_of(Path(name))} {os.path.getsize(name)}\n".encode())
            try:
                with open(name, "rb") as file:
                    while block := file.read(1 << 20):
                        state.update(block)
            except OSError as error:
                raise UserError(f"cannot read {name!r}: {error.strerror}") from error
        return state.hexdigest()


@dataclass
class Several:
    """Sources one after the other."""

    sources: list

    @property
    def description(self) -> str:
        return ", ".join(source.description for source in self.sources)

    @property
    def column(self) -> str | None:
        return next((source.column for source in self.sources if source.column is not None), None)

    def blocks(self) -> Iterator[Block]:
        for i, source in enumerate(self.sources):
            for block in source.blocks():
                yield block._replace(done=(i + block.done) / len(self.sources))

    def digest(self) -> str:
        return " ".join(source.digest() for source in self.sources)
