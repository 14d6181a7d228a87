"""The order of an epoch over many names: memory, time to jump into it, names ordered a second.

    python -m benchmarks.sampler --rows 255000000 --json

The lengths, a byte a name, are made up and lie in a file that is mapped into memory. Beside it, what
``torch.utils.data.RandomSampler`` holds, which orders without grouping by length: measured at 5 million rows, and
scaled.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
from torch.utils.data import RandomSampler

from domain_canine.errors import run
from domain_canine.sampling import WINDOW, BatchPlan

GLOBAL_BATCH = 512
CHUNK = 1 << 22  # lengths made at once
WINDOWS, ROUNDS = 200, 5  # windows walked in a round: 6.5 million names
RANDOM_SAMPLER_ROWS = 5_000_000
MB = 1e6


def write_lengths(path: Path, rows: int) -> None:
    """Lengths like those of registered names: 4 to 77, 16 in the mean."""
    random = np.random.default_rng(0)
    with path.open("wb") as file:
        for start in range(0, rows, CHUNK):
            drawn = 4 + random.gamma(3.0, 4.0, min(CHUNK, rows - start))
            file.write(np.minimum(drawn, 77).astype(np.uint8).tobytes())


def anonymous_memory() -> float:
    """Bytes of this process that no file stands behind."""
    status = Path("/proc/self/status").read_text()
    return float(status.partition("RssAnon:")[2].split()[0]) * 1024


def memory(lengths: np.ndarray) -> float:
    """Bytes that a plan and two windows take: those that stay, or those in passing where they are more."""
    before = anonymous_memory()
    tracemalloc.start()
    plan = BatchPlan(lengths, GLOBAL_BATCH)
    plan.window(0, 0), plan.window(1, plan.steps // 2)
    passing = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return max(anonymous_memory() - before, passing)


def jump(lengths: np.ndarray, epoch: int) -> float:
    """Seconds until the rows of an epoch's middle step are known, nothing having been made before."""
    start = time.perf_counter()
    plan = BatchPlan(lengths, GLOBAL_BATCH)
    plan.rows(epoch, plan.steps // 2)
    return time.perf_counter() - start


def walk(lengths: np.ndarray, epoch: int) -> float:
    """Names ordered a second, window by window."""
    plan = BatchPlan(lengths, GLOBAL_BATCH)
    starts = range(0, plan.steps, WINDOW)[:WINDOWS]
    begun = time.perf_counter()
    names = sum(len(plan.window(epoch, start)[1].rows) for start in starts)
    return names / (time.perf_counter() - begun)


def random_sampler_memory(rows: int) -> float:
    """Bytes that RandomSampler holds within an epoch of so many rows."""
    before = anonymous_memory()
    order = iter(RandomSampler(range(RANDOM_SAMPLER_ROWS)))
    next(order)
    return (anonymous_memory() - before) / RANDOM_SAMPLER_ROWS * rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sampler", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=255_000_000)
    parser.add_argument("--json", action="store_true", help="one JSON object as well, last on stdout")
    parsed = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lengths"
        write_lengths(path, parsed.rows)
        lengths = np.memmap(path, np.uint8, "r")
        found = {
            "rows": parsed.rows,
            "memory_mb": round(memory(lengths) / MB, 1),
            "jump_s": round(statistics.median(jump(lengths, epoch) for epoch in range(ROUNDS)), 4),
            "names_per_s": round(statistics.median(walk(lengths, epoch) for epoch in range(ROUNDS))),
        }
    found["random_sampler_mb"] = round(random_sampler_memory(parsed.rows) / MB, 1)

    print(f"{parsed.rows:,} names, global batch {GLOBAL_BATCH}, windows of {WINDOW} batches", file=sys.stderr)
    print(f"memory above import, the map apart  {found['memory_mb']:>14,.1f} MB", file=sys.stderr)
    print(
        f"  RandomSampler ({RANDOM_SAMPLER_ROWS:,} rows, scaled) {found['random_sampler_mb']:>10,.1f} MB",
        file=sys.stderr,
    )
    print(f"jump to the middle of an epoch      {found['jump_s']:>14.4f} s", file=sys.stderr)
    print(f"ordered with length grouping        {found['names_per_s']:>14,} names/s", file=sys.stderr)
    if parsed.json:
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    run(main)
