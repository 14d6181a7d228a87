"""What scores are worth, and what they take.

    python -m benchmarks.scoring runs/mlm runs/any_order --dataset names.txt --validation_split 0.05 --json
    python -m benchmarks.scoring runs/mlm --memory 10000 1000000 --json

The first form scores held-out names and the same names with the characters of each label but the last shuffled: the
AUC by bits per character, and for a bound how far it moves with the orders' seed. The second runs the ``score`` command
on so many synthetic names and tells its peak memory and rows a second.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from psutil import Process, ZombieProcess

from benchmarks.launched import ROOT
from domain_canine.corpus import load_corpus
from domain_canine.errors import UserError, run
from domain_canine.prepare import Settings
from domain_canine.pretrained import load_for_use
from domain_canine.sample import sample_names
from domain_canine.scoring_domain_canine import score_names

ORDERS = (0, 1, 4, 16)


def shuffled(name: str, chance: random.Random) -> str:
    """Each label but the last with its characters in another order, hyphens at their places."""
    *labels, last = name.split(".")
    return ".".join([*(_shuffled(label, chance) for label in labels), last])


def _shuffled(label, chance):
    letters = [character for character in label if character != "-"]
    chance.shuffle(letters)
    following = iter(letters)
    return "".join(character if character == "-" else next(following) for character in label)


def bits(model, names, **options) -> np.ndarray:
    return np.array([score.bits_per_character for score in score_names(model, names, **options)])


def figures(model, names: list[str], seed: int) -> dict[str, float]:
    """AUC of real names against shuffled ones, names a second; of a bound for each number of orders."""
    from sklearn.metrics import roc_auc_score

    chance = random.Random(seed)
    others = [shuffled(name, chance) for name in names]
    pairs = [(name, other) for name, other in zip(names, others) if name != other]
    names, others = map(list, zip(*pairs))
    labels = np.repeat([0, 1], len(names))
    found = {"names": len(names)}
    for orders in ORDERS if model.config.objective == "any_order" else (0,):
        start = time.perf_counter()
        real = bits(model, names, orders=orders)
        seconds = time.perf_counter() - start
        values = np.concatenate([real, bits(model, others, orders=orders)])
        told = {
            "auc": float(roc_auc_score(labels, values)),
            "real_bits": float(real.mean()),
            "shuffled_bits": float(values[len(names) :].mean()),
            "names_per_s": len(names) / seconds,
        }
        if orders:
            told["moves"] = float(np.abs(bits(model, names, orders=orders, seed=1) - real).mean())
        found[f"orders_{orders}" if orders else "one_by_one"] = told
    return found


def memory(model: str, rows: int, folder: Path) -> dict[str, float]:
    """Peak memory of the command's process (MB), seconds, rows a second."""
    names = folder / "names.txt"
    with names.open("w") as file:
        file.writelines(f"{name}\n" for name in islice(cycle(sample_names()), rows))
    command = [sys.executable, "-m", "domain_canine", "score", model, names, "--output", folder / "scores.parquet"]
    start, peak = time.perf_counter(), 0
    with subprocess.Popen(
        [*map(str, command), "--overwrite"], cwd=ROOT, env=os.environ, stderr=subprocess.PIPE, text=True
    ) as running:
        process = Process(running.pid)
        while running.poll() is None:
            try:
                peak = max(peak, process.memory_info().rss)
            except ZombieProcess:
                break
            time.sleep(0.1)
        said = running.stderr.read()
    if running.returncode:
        raise UserError(f"score failed: {said[-1000:]}")
    seconds = time.perf_counter() - start
    return {"rows": rows, "peak_mb": peak / 1e6, "seconds": seconds, "rows_per_s": rows / seconds}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", help="trained models")
    parser.add_argument("--dataset", help="the names that they were trained on, and held-out ones")
    parser.add_argument("--validation_split", type=float, default=0.1, help="as in training (default: %(default)s)")
    parser.add_argument("--count", type=int, default=2000, help="held-out names (default: %(default)s)")
    parser.add_argument("--memory", type=int, nargs="+", metavar="ROWS", help="run the command on so many rows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one JSON object, last on stdout")
    arguments = parser.parse_args(arguments)
    found = {}
    for path in arguments.models:
        if arguments.memory:
            with tempfile.TemporaryDirectory() as folder:
                found[path] = [memory(path, rows, Path(folder)) for rows in arguments.memory]
        else:
            corpus = load_corpus(arguments.dataset, Settings(arguments.validation_split), quiet=True)
            count = min(arguments.count, len(corpus.validation.lengths))
            found[path] = figures(load_for_use(path), corpus.validation.table.names(np.arange(count)), arguments.seed)
        print(f"{path}: {json.dumps(found[path], indent=1)}", file=sys.stderr)
    if arguments.json:
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    run(main)
