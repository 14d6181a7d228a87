"""Memory and open files of a long run of the launch command.

    python -m benchmarks.soak --steps 20000 --json

A very small model, with saves and evaluations on the way. The resident memory of the training process and of its
workers, and the open files of the first, are sampled twice a second. After a warm-up of a fifth of the steps the
medians of the first and of the last tenth of the samples are compared: a save lies in few of them, and samples of an
evaluation, which has workers of its own, are left out.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.data_path import tell
from benchmarks.launched import SMALLEST, Launched
from domain_canine.checkpoints import step_of, whole_checkpoints
from domain_canine.errors import UserError, run

FLAGS = [
    *SMALLEST, "--dataset", "sample", "--num_samples", 4000, "--batch_size", 8, "--gradient_accumulation_steps", 1,
    "--learning_rate", "1e-3", "--dataloader_num_workers", 1, "--eval_strategy", "steps",
    "--early_stopping_patience", 0,
]  # fmt: skip
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
WARM_UP = 0.2
EVERY_S = 0.5
SAVES = 40  # and half as many evaluations


def sample(training: psutil.Process) -> dict[str, float]:
    """MB and open files of the training process, and of all its workers together, whose shared pages count again."""
    workers = training.children(recursive=True)
    return {
        "memory": training.memory_info().rss / 1e6, "files": training.num_fds(),
        "worker_memory": sum(each.memory_info().rss for each in workers) / 1e6, "workers": len(workers),
    }  # fmt: skip


def soak(steps: int, folder: Path, flags: list) -> dict[str, float]:
    every = max(1, steps // SAVES)
    flags = [*FLAGS, "--max_steps", steps, "--save_steps", every, "--eval_steps", 2 * every, *flags]
    samples, done = [], folder / "run"
    with Launched([*flags, "--output_dir", done], folder / "said.txt", **ENVIRONMENT) as launched:
        step = first = 0
        while launched.ended() is None:
            time.sleep(EVERY_S)
            step = max(map(step_of, whole_checkpoints(done)), default=0)
            if training := launched.training():
                try:
                    samples.append({"at": launched.seconds(), "step": step} | sample(training))
                except psutil.Error:  # it, or a worker, has just ended
                    continue
            if samples and step >= WARM_UP * steps and not first:
                first = len(samples)
                print(f"warm after {launched.seconds():.0f} s: {samples[-1]}", file=sys.stderr)
        launched.wait()
        seconds = launched.seconds()
    found = figures([each for each in samples[first:] if each["step"] < steps])
    return {"steps": step_of(whole_checkpoints(done)[-1]), **found, "seconds": round(seconds, 1)}


def figures(samples: list[dict[str, float]]) -> dict[str, float]:
    """Of the samples of a warm run."""
    if len(samples) < 10:
        raise UserError(f"{len(samples)} samples after the warm-up: give more --steps")
    usual = statistics.mode(each["workers"] for each in samples)
    calm = [each for each in samples if each["workers"] == usual]
    tenth = max(1, len(calm) // 10)
    ends = calm[:tenth], calm[-tenth:]
    first, last = ({name: statistics.median(each[name] for each in part) for name in part[0]} for part in ends)
    most = {name: max(each[name] for each in samples) for name in samples[0]}
    found = {
        "samples": len(samples),
        "memory_first_mb": first["memory"], "memory_last_mb": last["memory"], "memory_most_mb": most["memory"],
        "growth_mb": last["memory"] - first["memory"],
        "worker_memory_first_mb": first["worker_memory"],
        "worker_growth_mb": last["worker_memory"] - first["worker_memory"],
        "workers": usual, "workers_most": most["workers"],
        "open_files_first": first["files"], "open_files_last": last["files"], "open_files_most": most["files"],
        "steps_per_s": (samples[-1]["step"] - samples[0]["step"]) / (samples[-1]["at"] - samples[0]["at"]),
    }  # fmt: skip
    return {name: round(value, 1) for name, value in found.items()}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description=__doc__.splitlines()[0],
        epilog="Further flags are the training command's, --streaming for example.",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, default=20_000, help="(default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object as well, last on stdout")
    parsed, flags = parser.parse_known_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        tell(soak(parsed.steps, Path(folder), flags), parsed.json)
    return 0


if __name__ == "__main__":
    run(main)
