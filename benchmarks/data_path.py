"""Names a second of one worker, from memory-mapped Arrow to masked batches, against the stock way.

    python -m benchmarks.data_path --names names.txt.gz --json
    python -m benchmarks.data_path --cold

The stock way is ``CanineTokenizer``, padding to 128, and ``DataCollatorForLanguageModeling``, on the same names; the
two take turns. ``--cold`` reads names that no page of is in memory: by blocks of consecutive rows, and row by row.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from transformers import CanineTokenizer, DataCollatorForLanguageModeling

from benchmarks import synthetic
from domain_canine import readers
from domain_canine.batches import NameBatches
from domain_canine.cleaning import SPECIAL, Cleaner
from domain_canine.errors import run
from domain_canine.masking import DataCollatorForCodePointMasking
from domain_canine.sampling import BatchPlan, slots
from domain_canine.table import NameTable, spans, write_names

BATCH = 256
STOCK_LENGTH = 128
ROUNDS = 7
STOCK_NAMES = 10 * BATCH  # in a round; the stock way takes as long for them as ours for 300 times as many
ROWS, COLD_ROWS = 300_000, 16_000_000
COLD_BLOCKS = (1, 256, 1024, 4096)  # rows read together
COLD_BATCH = 512  # a window of 64 such batches is read


def real_names(path: Path) -> pa.StringArray:
    """The different names of a text file, plain or compressed."""
    clean = Cleaner(STOCK_LENGTH)
    return pa.chunked_array([clean(block) for block in readers.read(path)]).combine_chunks().unique()


def made_up_names(rows: int) -> pa.StringArray:
    return pa.chunked_array(synthetic.names(rows)).combine_chunks()


def shuffled(names: pa.StringArray) -> pa.StringArray:
    return names.take(pa.array(np.random.default_rng(0).permutation(len(names))))


def tell(found: dict, as_json: bool) -> None:
    """The figures as a table on stderr, and as an object on stdout."""
    for name, value in found.items():
        print(f"{name:<32}{value if isinstance(value, str) else f'{value:,}':>20}", file=sys.stderr)
    if as_json:
        print(json.dumps(found))


def our_round(batches: NameBatches, epoch: int) -> float:
    """Names a second over an epoch."""
    start = time.perf_counter()
    for index in range(batches.plan.steps * batches.plan.micro_steps):
        batches[epoch, index]
    return len(batches) / (time.perf_counter() - start)


def stock_batches(tokenizer, collator, names: list[str]):
    """Stock masked batches, the way that is fastest: many names a call, with the mask of special tokens made there."""
    for start in range(0, len(names), BATCH):
        read = tokenizer(
            names[start : start + BATCH], padding="max_length", truncation=True, max_length=STOCK_LENGTH,
            return_special_tokens_mask=True,
        )  # fmt: skip
        yield collator([dict(zip(read, row)) for row in zip(*read.values())])


def stock_round(stock, names: list[str]) -> float:
    start = time.perf_counter()
    for _ in stock_batches(*stock, names):
        pass
    return len(names) / (time.perf_counter() - start)


def padding_efficiency(batches: NameBatches) -> float:
    """Code points of the names, [CLS] and [SEP] included, over the slots that the model computes for an epoch."""
    computed = 0
    for index in range(batches.plan.steps):
        rows, length = batches[0, index]["input_ids"].shape
        computed += rows * int(slots(length - SPECIAL))
    return float((batches.plan.lengths.astype(np.int64) + SPECIAL).sum() / computed)


def compare(names: pa.StringArray, path: Path) -> dict[str, float]:
    """Our way and the stock way over the same names."""
    write_names(names, path)
    table, lengths = NameTable([path]), spans(names)[2].astype(np.uint8)
    collator = DataCollatorForCodePointMasking()
    batches = NameBatches(table, lengths, collator, BATCH)
    fixed = NameBatches(table, lengths, collator, BATCH, fixed_shapes=True)
    tokenizer = CanineTokenizer()
    stock = tokenizer, DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    some = names[:STOCK_NAMES].to_pylist()
    # The first call of each imports and fills what is kept.
    attended = [batch["attention_mask"].float().mean().item() for batch in stock_batches(*stock, some)]
    efficiency, efficiency_fixed = padding_efficiency(batches), padding_efficiency(fixed)
    ours, ours_fixed, theirs = [], [], []
    for epoch in range(1, ROUNDS + 1):
        ours.append(our_round(batches, epoch))
        theirs.append(stock_round(stock, some))
        ours_fixed.append(our_round(fixed, epoch))
    return {
        "names": len(names),
        "names_per_s": round(statistics.median(ours)),
        "names_per_s_fixed": round(statistics.median(ours_fixed)),
        "stock_names_per_s": round(statistics.median(theirs)),
        "ratio": round(statistics.median(np.divide(ours, theirs)), 1),
        "padding_efficiency": round(efficiency, 4),
        "padding_efficiency_fixed": round(efficiency_fixed, 4),
        "padding_efficiency_stock": round(statistics.mean(attended), 4),
    }  # fmt: skip


def cold_reads(path: Path, rows: int) -> dict[str, float]:
    """Names a second of a window that is read by blocks, from a file that no page of is in memory."""
    names = made_up_names(rows)
    write_names(names, path)
    lengths = spans(names)[2].astype(np.uint8)
    found = {}
    for block in COLD_BLOCKS:
        rounds = []
        for epoch in range(ROUNDS):
            window = BatchPlan(lengths, COLD_BATCH, block=block).window(epoch, 0)[1]
            drop_pages(path)
            table = NameTable([path])
            start = time.perf_counter()
            table.take(window.rows)
            rounds.append(len(window.rows) / (time.perf_counter() - start))
            del table
        found[f"cold_block_{block}_names_per_s"] = round(statistics.median(rounds))
    return found


def drop_pages(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data_path", description=__doc__.splitlines()[0])
    parser.add_argument("--names", type=Path, help="a text file of names, plain or compressed; default: made-up names")
    parser.add_argument("--rows", type=int, help="names to measure with; all of a file by default")
    parser.add_argument("--cold", action="store_true", help="reads from disk instead")
    parser.add_argument("--json", action="store_true", help="one JSON object as well, last on stdout")
    parsed = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "names.arrow"
        if parsed.cold:
            found = cold_reads(path, parsed.rows or COLD_ROWS)
        else:
            names = real_names(parsed.names) if parsed.names else made_up_names(parsed.rows or ROWS)
            found = compare(shuffled(names)[: parsed.rows], path)
    tell(found, parsed.json)
    return 0


if __name__ == "__main__":
    run(main)
