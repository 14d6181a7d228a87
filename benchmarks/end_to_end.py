"""Names a second of the launch command itself, and what of the bare step's the Trainer and the data lose.

    python -m benchmarks.end_to_end --names names.txt.gz --json
    python -m benchmarks.end_to_end --size small --batch 512 --accumulation 1 --steps 20
    python -m benchmarks.end_to_end --narrow --batch 4 --steps 400

The command runs twice: once to prepare the names, and then for the time between its log entries, but for the first
ones, so that neither start nor end counts. The bare step is that of ``benchmarks.train_step`` with the very batches
that the command was timed with. A window of 64 steps has short and long names in their proportion, fewer steps may not.
On CUDA the share of the time that the first GPU is busy is told too, as nvidia-smi samples it. An evaluation is timed
by itself, in the batches that the command has for it; the hours of an epoch are those of its steps and one
evaluation.

``--narrow`` keeps a size's layers and parameters in number, but not in width: with few names a batch hardly anything is
computed, and what is left of a step on a CPU is what a GPU waits for, Python and PyTorch's calls.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.data_path import tell
from benchmarks.launched import Launched
from benchmarks.train_step import load_names, name_of, on, our_side, wait, with_items
from domain_canine.batches import NameBatches
from domain_canine.configuration_domain_canine import DomainCanineConfig
from domain_canine.corpus import load_corpus
from domain_canine.errors import UserError, run
from domain_canine.masking import DataCollatorForCodePointMasking
from domain_canine.memory import joined
from domain_canine.metrics import MaskedFigures
from domain_canine.prepare import Settings
from domain_canine.pretrained import SIZES
from domain_canine.recorded import cut, largest_pass
from domain_canine.table import table_of
from domain_canine.training_arguments import EVALUATED, EVALUATED_ON_A_GPU

CORPUS = 255_000_000  # names of the published data, of which 90% are an epoch
EVERY = {"cpu": 4, "cuda": 64}  # steps of a log entry
BEFORE = {"cpu": 1, "cuda": 3}  # entries that are not timed; on CUDA kernels are compiled and steps recorded meanwhile
STEPS = {"cpu": 64, "cuda": 512}
ROUNDS = {"cpu": 1, "cuda": 3}  # of the bare step
AT_ONCE = {"cpu": EVALUATED, "cuda": EVALUATED_ON_A_GPU}  # names of an evaluation, as by default
BATCHES = {"cpu": 4, "cuda": 32}
NARROW = {"hidden_size": 48, "intermediate_size": 48, "num_hash_buckets": 2048, "num_attention_heads": 12}
# Flags that would change what is counted here, and those that the bare step takes over.
REFUSED = ("--batch_size", "--per_device_train_batch_size", "--gradient_accumulation_steps", "--slots_per_batch")
GPU = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]  # the first that is seen
SAMPLES = ["nvidia-smi", "-i", GPU, "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200"]


class Busy:
    """Samples of the GPU's utilisation, in percent, while it is entered; none without nvidia-smi."""

    def __enter__(self):
        self.samples, self.process = [], None
        if shutil.which(SAMPLES[0]):
            self.process = subprocess.Popen(SAMPLES, stdout=subprocess.PIPE, text=True)
            threading.Thread(target=self._read, daemon=True).start()
        return self

    def _read(self):
        for line in self.process.stdout:
            self.samples.append((time.perf_counter(), float(line)))

    def __exit__(self, *error):
        if self.process:
            self.process.kill()

    def share(self, seconds: float) -> float:
        """The median over the last so many seconds but one, the end of the run."""
        end = self.samples[-1][0] - 1
        return statistics.median(busy for at, busy in self.samples if end - seconds < at < end) / 100


def launch(names: Path, folder: Path, steps: int, every: int, parsed) -> list[float]:
    """Names a second of each of the command's log entries, of so many steps."""
    run = folder / f"run-{steps}"
    arguments = [
        "--model_size", parsed.size, "--dataset", names, "--output_dir", run, "--max_steps", steps,
        "--batch_size", parsed.batch, "--gradient_accumulation_steps", parsed.accumulation, "--eval_strategy", "no",
        "--save_strategy", "no", "--warmup_steps", "1", "--logging_steps", every, *parsed.flags,
    ]  # fmt: skip
    if parsed.narrow:
        arguments += ["--config_overrides", ",".join(f"{name}={value}" for name, value in NARROW.items())]
    with Launched(arguments, folder / "said.txt", "cpu" if parsed.device == "cpu" else "single_gpu") as launched:
        launched.wait()
    entries = json.loads((run / "trainer_state.json").read_text())["log_history"]
    return [entry["names_per_second"] for entry in entries if "names_per_second" in entry]


def bare(names: Path, steps: range, parsed) -> float:
    """Names a second of the bare step, over these steps of the command."""
    compiled, recorded = "--torch_compile" in parsed.flags, "--no_cuda_graphs" not in parsed.flags
    batch, accumulation = parsed.batch, parsed.accumulation
    if parsed.device == "cuda" and recorded and not compiled:  # as the command does
        count = joined(batch, accumulation, largest_pass(torch.device("cuda")))
        batch, accumulation = batch * count, accumulation // count
    corpus = load_corpus(str(names), Settings(), quiet=True).train
    made = NameBatches(
        corpus.table, corpus.lengths, DataCollatorForCodePointMasking(), batch,
        micro_steps=accumulation, fixed_shapes=compiled or "--fixed_shapes" in parsed.flags,
    )  # fmt: skip
    micro_steps = range(steps.start * accumulation, steps.stop * accumulation)
    epoch = made.plan.steps * accumulation
    batches = on(parsed.device, with_items([made[divmod(step, epoch)] for step in micro_steps]))
    side = our_side(config_of(parsed), parsed.device, compiled, None, recorded)
    # As far as the command was when its time began: what is recorded or compiled is.
    made_ready = parsed.device == "cuda" or compiled
    side.names_per_s(batches if made_ready else batches[: 2 * accumulation], accumulation)
    rounds = range(ROUNDS[parsed.device])
    return statistics.median(side.names_per_s(batches, accumulation) for _ in rounds)


def evaluation(names: list[str], parsed) -> float:
    """Names a second of an evaluation, batches made before."""
    size = AT_ONCE[parsed.device]
    rows = names[: size * BATCHES[parsed.device]]
    made = NameBatches(
        table_of(rows), np.array([len(name) for name in rows], np.uint8), DataCollatorForCodePointMasking(), size,
        evaluation=True,
    )  # fmt: skip
    batches = on(parsed.device, [made[0, step] for step in range(made.plan.steps)])
    side, figures, rates = our_side(config_of(parsed), parsed.device), MaskedFigures(), []
    side.model.eval()
    for _ in range(1 + ROUNDS[parsed.device]):
        figures.begin(torch.device(parsed.device))
        wait(parsed.device)
        start = time.perf_counter()
        with torch.no_grad(), torch.autocast(parsed.device, torch.bfloat16, enabled=parsed.device == "cuda"):
            for batch in batches:
                for part in cut(batch, largest_pass(torch.device(parsed.device))):
                    figures.add(side.model, part)
        wait(parsed.device)
        rates.append(len(rows) / (time.perf_counter() - start))
    return statistics.median(rates[1:])


def config_of(parsed) -> DomainCanineConfig:
    return DomainCanineConfig(**SIZES[parsed.size] | (NARROW if parsed.narrow else {}))


def measure(names: list[str], parsed) -> dict:
    every, before = EVERY[parsed.device], BEFORE[parsed.device]
    entries = -(-(parsed.steps or STEPS[parsed.device]) // every)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "names.txt"
        file.write_text("\n".join(names) + "\n")
        launch(file, Path(folder), 1, 1, parsed)  # prepares the names, into the cache
        with Busy() as busy:
            rate = statistics.harmonic_mean(
                launch(file, Path(folder), every * (before + entries), every, parsed)[before:]
            )
        step = bare(file, range(every * before, every * (before + entries)), parsed)
    a_step, evaluated = parsed.batch * parsed.accumulation, evaluation(names, parsed)
    hours = [share * CORPUS / names_per_s / 3600 for share, names_per_s in ((0.9, rate), (0.1, evaluated))]
    found = {
        "size": parsed.size, "device": name_of(parsed.device), "batch": parsed.batch,
        "accumulation": parsed.accumulation, "names_per_s": round(rate, 2), "step_names_per_s": round(step, 2),
        "step_ms": round(1e3 * a_step / rate, 2), "bare_step_ms": round(1e3 * a_step / step, 2),
        "share_lost": round(1 - rate / step, 4), "evaluation_names_per_s": round(evaluated, 2),
        "epoch_hours": round(sum(hours), 2), "of_evaluation": round(hours[1] / sum(hours), 4),
    }  # fmt: skip
    if parsed.device == "cuda" and busy.samples:
        found["gpu_busy"] = busy.share(every * entries * a_step / rate)
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.end_to_end", description=__doc__.splitlines()[0],
        epilog="Further flags are the training command's, --torch_compile for example.",
    )  # fmt: skip
    parser.add_argument("--size", choices=list(SIZES), default="base")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--names", type=Path, help="a text file of names, plain or compressed; default: the sample")
    parser.add_argument("--batch", type=int, default=256, help="names a micro-step (default: %(default)s)")
    parser.add_argument("--accumulation", type=int, default=2, help="micro-steps a step (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="steps that are timed, rounded up to whole log entries of "
                        "4 on a CPU, 64 on CUDA (default: 64, 512)")  # fmt: skip
    parser.add_argument("--narrow", action="store_true", help="a model of as many layers, 48 wide")
    parser.add_argument("--json", action="store_true", help="one JSON object as well, last on stdout")
    parsed, parsed.flags = parser.parse_known_args(arguments)
    for name in set(REFUSED) & {flag.partition("=")[0] for flag in parsed.flags}:
        raise UserError(f"{name} is not for this benchmark: --batch and --accumulation say how many names a step has")
    tell(measure(load_names(parsed.names), parsed), parsed.json)
    return 0


if __name__ == "__main__":
    run(main)
