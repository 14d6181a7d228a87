"""The golden run: a small model whose losses are kept in golden_loss.json; see test_golden.py.

    python -m tests.golden --write

Rewrite it where a change means to change the losses, and say so in docs/LOG.md.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers

HERE = Path(__file__).resolve().parent
GOLDEN = HERE / "golden_loss.json"
sys.path.insert(0, str(HERE))
EPOCHS = 16  # of 5 steps


def curve(threads: int = 1) -> dict[str, list[float]]:
    """Loss and norm of the gradient at each step, and the loss of each evaluation."""
    from small_runs import entries, make_trainer

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with tempfile.TemporaryDirectory() as folder:
            # Without dropout: builds of torch without MKL draw it otherwise.
            trainer = make_trainer(Path(folder), dropout=0.0, num_train_epochs=EPOCHS, save_strategy="no")
            trainer.train()
    finally:
        torch.set_num_threads(before)
    return {name: entries(trainer, name) for name in ("loss", "grad_norm", "eval_loss")}


def difference(one: dict, other: dict) -> dict[str, float]:
    """The largest relative difference of each curve."""
    return {name: float(np.max(np.abs(np.array(one[name]) / np.array(other[name]) - 1))) for name in other}


def origin() -> dict[str, str]:
    """What has written the curve."""
    commit = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=12"]
    return {
        "commit": subprocess.run(commit, capture_output=True, text=True).stdout.strip(),
        "torch": torch.__version__, "transformers": transformers.__version__, "numpy": np.__version__,
        "python": platform.python_version(), "device": f"cpu: {processor()}, {torch.backends.cpu.get_cpu_capability()}",
    }  # fmt: skip


def processor() -> str:
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"write {GOLDEN.name} anew")
    parsed = parser.parse_args()
    now = curve()
    if GOLDEN.exists():
        print(f"largest relative differences: {difference(now, json.loads(GOLDEN.read_text())['curve'])}")
    if parsed.write:
        GOLDEN.write_text(json.dumps({"origin": origin(), "curve": now}, indent=1) + "\n")


if __name__ == "__main__":
    main()
