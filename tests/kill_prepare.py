"""Kills ``prepare`` at random moments, again and again; run by test_prepare.py as a process of its own.

The libraries are imported once; each attempt is a fork, which takes milliseconds instead of seconds.
Arguments: input, output, kills, bytes of a part, rows of a shard. Prints the number of runs that finished.
"""

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import duckdb  # noqa: F401  imported before the fork

from domain_canine import prepare as module
from domain_canine.prepare import Settings, prepare
from domain_canine.sources import open_source

source, folder, kills = open_source(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
module.PART_BYTES, module.SHARD_ROWS = int(sys.argv[4]), int(sys.argv[5])
chance = random.Random(0)
killed = finished = 0
longest = 0.0
while killed < kills:
    started = time.monotonic()
    if (child := os.fork()) == 0:
        prepare(source, folder, Settings(), quiet=True)
        os._exit(0)
    # The first run tells how long one takes.
    time.sleep(chance.uniform(0, longest)) if longest else os.waitpid(child, 0)
    if longest:
        os.kill(child, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    else:
        longest = time.monotonic() - started
    if folder.exists():
        assert (folder / "manifest.json").is_file(), "a folder without a manifest"
        finished += 1
        shutil.rmtree(folder)
prepare(source, folder, Settings(), quiet=True)
print(finished)
