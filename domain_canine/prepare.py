"""Raw lines to a set of clean, unique, shuffled names, split by hash: out of core, restartable, the same bytes again.

Two passes. First, lines are cleaned part by part; a part's names are written to Parquet, sorted by a key that is a hash
of the name. Then each shard of the result is a range of keys: DuckDB reads that range of all parts, drops what occurs
twice and sorts the rest. Equal names have equal keys, so duplicates are found however far apart; and names in the order
of their hash are shuffled. What is finished, part or shard, outlives a killed process; the folder gets its name when
all is done.
"""

import errno
import glob
import json
import os
import shutil
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from tqdm import tqdm

from . import hashing
from .cleaning import Cleaner, first_names, hash_array, on_validation_side
from .errors import BadInput, UserError, first_line
from .manifest import (
    MANIFEST,
    REJECTS,
    SHOWN,
    SIDES,
    STATE,
    VERSION,
    finish,
    is_prepared,
    read_manifest,
    told_lines,
    write_whole,
)
from .readers import Block
from .table import COLUMN, write_names

PART_BYTES = 1 << 25  # of text and numbers of lines cleaned at once, about 1.2 million names
PIECE_ROWS = 1 << 17  # lines cleaned at once: of junk each leaves a Python object
MALFORMED_BYTES = 300  # what a malformed row is counted as
SHARD_ROWS = 4_000_000  # names of a shard, about 80 MB
ROW_GROUP = 1 << 15  # names; a range of keys is found by the smallest and largest of each group
LEAST_MEMORY = 1.0  # GB; half for the libraries: 0.2 of `prepare`, 0.5 where a training prepares its names
_ORDER = 302  # the order's own kind of draw


@dataclass(frozen=True)
class Settings:
    """What the result depends on, beside the lines.

    Args:
        validation_split: share of the names on the validation side.
        split_seed: of the split.
        max_length: longest input of the model in code points, [CLS] and [SEP] included; longer names are left out.
        num_samples: only the first so many valid names, duplicates among them.
        seed: of the order.
    """

    validation_split: float = 0.1
    split_seed: int = 0
    max_length: int = 128
    num_samples: int | None = None
    seed: int = 0


def prepare(source, folder: Path, settings: Settings, memory: float = 4.0, quiet: bool = False) -> bool:
    """Make ``folder`` of a source, or go on with what a killed call left of it.

    Args:
        source: of ``sources.open_source``.
        folder: made by this call; ``<folder>.building`` lies beside it meanwhile.
        settings: what is made.
        memory: GB that the process may take, however many names there are.
        quiet: no progress bar.

    Returns:
        False if the folder was there already, made of the same input with the same settings.

    Raises:
        UserError: the folder holds something else, a source cannot be read, or no name is left on a side.
    """
    wanted = {"version": VERSION, "content": source.digest(), "column": source.column} | asdict(settings)
    folder = folder.absolute()
    building = folder.with_name(f"{folder.name}.building")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            if _is_made(folder, wanted):
                return False
            if not _is_complete(building, wanted):
                try:
                    _Build(source, building, wanted, settings, memory, quiet).run()
                except BadInput:  # nothing of it would serve once the input is mended
                    _remove(building)
                    raise
            _clear(building)
            building.rename(folder)
    except OSError as error:
        full = error.errno in (None, errno.ENOSPC, errno.ENOMEM, errno.EDQUOT)  # None: the engine's own
        remedy = "free some space or memory, and start again: what is done is kept" if full else "give another folder"
        raise UserError(f"cannot write the names to {str(folder)!r}: {first_line(error)}; {remedy}") from error
    return True


def _alone(folder):
    """A lock against other processes that would make the same folder; it ends with the process, its file stays."""
    path = folder.with_name(f".{folder.name}.lock")
    path.touch()  # told here if it cannot be made: the lock would wait for its end
    lock = FileLock(path)
    try:
        return lock.acquire(timeout=1)  # whoever finds it made holds it for a moment, which is not worth a word
    except Timeout:
        print(f"another process prepares {folder}: waiting for it", file=sys.stderr)
        return lock.acquire()


def _is_made(folder, wanted):
    if is_prepared(folder):
        made = read_manifest(folder)["input"]
        different = [name for name, value in wanted.items() if made.get(name) != value]
        if different:
            raise UserError(
                f"{str(folder)!r} was prepared from other input or with other settings ({', '.join(different)}); "
                "give another folder, or remove that one"
            )
        return True
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{str(folder)!r} is there already, and nothing is overwritten; give another folder")
    return False


def _is_complete(building, wanted):
    """Whether a call was killed between its last file and the folder's name."""
    return (building / MANIFEST).is_file() and json.loads((building / MANIFEST).read_text())["input"] == wanted


def _remove(building):
    """What says what the folder is goes first: a kill meanwhile leaves nothing that passes for whole."""
    for name in (MANIFEST, STATE):
        (building / name).unlink(missing_ok=True)
    shutil.rmtree(building)


def _clear(building):
    for folder in ("parts", "spill"):
        shutil.rmtree(building / folder, ignore_errors=True)
    for path in [*building.glob("*/*.lengths"), building / STATE]:
        path.unlink(missing_ok=True)


class _Build:
    """The passes over one source, in ``<folder>.building``."""

    def __init__(self, source, building: Path, wanted: dict, settings: Settings, memory: float, quiet: bool):
        self.source, self.building, self.wanted, self.settings = source, building, wanted, settings
        self.parts, self.quiet = building / "parts", quiet
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.workers = min(8, cores)
        free = min(memory, 1e4) - LEAST_MEMORY / 2
        self.engine_memory = free / 2
        # A part in work takes about 12 times its text; beside one a worker, one is read and one waits.
        self.part_bytes = int(min(PART_BYTES, 1e9 * free / 12 / (self.workers + 2)))

    def run(self) -> None:
        self._start()
        counts, rejects = self._clean()
        rows = {side: self._shards(side, counts.pop(side, 0)) for side in SIDES}
        kept = sum(rows.values())
        first = {"lines": counts.pop("lines", 0), "kept": kept, "duplicate": counts.pop("valid", 0) - kept}
        counts = first | dict(counts)
        for side in SIDES:
            if not rows[side]:
                raise BadInput(_nothing_on(side, self.source.description, kept, self.settings, counts, rejects))
        finish(self.building, self.source.description, self.wanted, counts, rejects)

    def _start(self):
        """An empty folder, or that of a killed call for the same input; its parts stay if they are small enough."""
        path, state = self.building / STATE, {}
        if path.is_file():
            state = json.loads(path.read_text())
            part_bytes = state.pop("part_bytes")
            if state == self.wanted and part_bytes <= self.part_bytes:
                self.part_bytes = part_bytes
            else:
                state = {}
        if self.building.exists() and not state:
            print(f"{self.building} was for other input or settings, or more memory: made anew", file=sys.stderr)
            _remove(self.building)
        for folder in (self.parts, *(self.building / side for side in SIDES)):
            folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(self.wanted | {"part_bytes": self.part_bytes}))

    def _clean(self) -> tuple[Counter, list]:
        """All parts; returns the sums of their counts, and the first rejects."""
        blocks = self.source.blocks()
        if self.settings.num_samples is not None:
            blocks = first_names(blocks, self.settings.num_samples, self.settings.max_length)
        pending, names = deque(), []
        with ThreadPoolExecutor(self.workers) as pool, self._bar("cleaning", " lines") as bar:
            for number, (part, done) in enumerate(_parts(blocks, self.part_bytes)):
                names.append(self.parts / f"{number:06}")
                if len(pending) > self.workers:
                    pending.popleft().result()
                if not names[-1].with_suffix(".json").is_file():
                    pending.append(pool.submit(_clean_part, part, names[-1], self.settings))
                bar.update(sum(len(block.lines) for block in part))
                bar.total = int(bar.n / done)
            for future in pending:
                future.result()
        counts, rejects = Counter(), []
        with (self.building / REJECTS).open("wb") as together:
            for name in names:
                counts.update(json.loads(name.with_suffix(".json").read_text()))
                with name.with_suffix(".rejects").open("rb") as file:
                    rejects += [json.loads(line) for _, line in zip(range(SHOWN - len(rejects)), file)]
                    file.seek(0)
                    shutil.copyfileobj(file, together)
        return counts, rejects

    def _shards(self, side: str, rows: int) -> int:
        """The shards of one side; returns the names in them."""
        import duckdb

        count, kept = -(-rows // SHARD_ROWS), 0
        limits = {"memory_limit": f"{self.engine_memory:.2f}GB", "threads": self.workers}
        with (
            duckdb.connect(config=limits | {"temp_directory": str(self.building / "spill")}) as engine,
            self._bar(f"{side}: de-duplicating, shuffling", " names", rows) as bar,
        ):
            engine.execute("SET enable_progress_bar = false")  # on stdout, where no script is run: in notebooks
            for shard in range(count):
                path = self.building / side / f"data-{shard:05}-of-{count:05}.arrow"
                if not path.is_file():
                    first, last = shard * 2**64 // count, (shard + 1) * 2**64 // count - 1
                    _write_shard(engine, self.parts, side, first, last, path)
                kept += path.with_suffix(".lengths").stat().st_size
                bar.update(rows // count)
        return kept

    def _bar(self, what, unit, total=None):
        return tqdm(desc=what, unit=unit, total=total, unit_scale=True, leave=False, disable=self.quiet)


def _parts(blocks: Iterable[Block], part_bytes: int) -> Iterator[tuple[list[Block], float]]:
    """Blocks brought together to about ``part_bytes`` of text, and the share of the source that is read."""
    part, size, done = [], 0, 1.0
    for block in blocks:
        part.append(block)
        size += block.lines.nbytes + block.numbers.nbytes + MALFORMED_BYTES * len(block.malformed)
        done = max(block.done, 1e-6)
        if size >= part_bytes:
            yield part, done
            part, size = [], 0
    if part:
        yield part, done


def _clean_part(part: list[Block], path: Path, settings: Settings) -> None:
    """``path`` with .train.parquet, .validation.parquet, .rejects, and .json, which says that the part is whole."""
    cleaner, pieces = Cleaner(settings.max_length), []
    with path.with_suffix(".rejects").open("w") as rejects:
        for block in part:
            for piece in block.pieces(PIECE_ROWS):
                pieces.append(cleaner(piece))
                rejects.writelines(json.dumps(reject._asdict()) + "\n" for reject in cleaner.rejects)
                cleaner.rejects.clear()
    names = pa.concat_arrays(pieces)
    hashes = hash_array(names)
    keys = hashing.key(settings.seed, _ORDER, hashes)
    held = on_validation_side(hashes, settings.validation_split, settings.split_seed)
    for side, mine in zip(SIDES, (~held, held)):
        rows = np.flatnonzero(mine)
        rows = rows[np.argsort(keys[rows])]
        table = pa.table({"key": keys[rows], COLUMN: names.take(pa.array(rows))})
        pq.write_table(
            table, f"{path}.{side}.parquet", row_group_size=ROW_GROUP, compression="none", use_dictionary=False
        )
        cleaner.counts[side] = len(rows)
    write_whole(path.with_suffix(".json"), json.dumps(cleaner.counts))


def _write_shard(engine, parts: Path, side: str, first: int, last: int, path: Path) -> None:
    """The names whose keys lie in [first, last], in the order of keys; their lengths, a byte each, beside them."""
    import duckdb

    pattern = f"{glob.escape(str(parts))}/*.{side}.parquet"
    query = (
        f"SELECT DISTINCT key, {COLUMN} FROM read_parquet(?) "
        f"WHERE key BETWEEN {first}::UBIGINT AND {last}::UBIGINT ORDER BY key, {COLUMN}"
    )
    try:
        rows = engine.sql(query, params=[pattern]).to_arrow_table()
    except duckdb.Error as error:  # out of memory or of disk: no fault of the input
        raise OSError(first_line(error)) from error
    names = rows[COLUMN].cast(pa.string()).combine_chunks()
    np.asarray(pc.binary_length(names)).astype(np.uint8).tofile(path.with_suffix(".lengths"))
    part = path.with_suffix(".writing")
    write_names(names, part)
    part.replace(path)


def _nothing_on(side, description, kept, settings, counts, rejects):
    listed = "\n  ".join(told_lines(counts, rejects))
    if kept == 0:
        return f"{description!r} holds no valid domain name; {listed}"
    return (
        f"{kept:,} valid, unique name(s) leave the {side} side empty at --validation_split "
        f"{settings.validation_split}; give more names; {listed}"
    )
