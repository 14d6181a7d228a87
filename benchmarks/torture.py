"""A run that is killed again and again, against one that never was: the same weights, and no checkpoint lost.

    python -m benchmarks.torture --kills 50 --seed 0 --json
    python -m benchmarks.torture --kills 5 --dataset names.txt --streaming --json

The launch command trains a very small model with dropout. Of five kills (SIGKILL to the whole process group) two are
aimed at the writing of a checkpoint, one each at an evaluation, at steps and at the start, in random order and at
random moments. After each the checkpoints are looked at, and the same command goes on with --resume_from_checkpoint.
Exit status 1 if anything differs or is lost.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.data_path import tell
from benchmarks.launched import SMALLEST, Launched
from domain_canine.checkpoints import WRITING, damage, step_of, whole_checkpoints
from domain_canine.errors import UserError, run

AIMS = ("writing", "writing", "evaluation", "steps", "start")
STEPS = 60  # a kill: twice what a life gains, so that the run doesn't end before its last kill
KEPT = 3  # checkpoints; the command's default
FLAGS = [
    *SMALLEST, "--dataset", "sample", "--num_samples", 2000, "--batch_size", 16, "--gradient_accumulation_steps", 1,
    "--learning_rate", "1e-3", "--warmup_steps", 10, "--dataloader_num_workers", 1,
    # Entries of the log and checkpoints fall apart; the best and the newest, too, for accuracy goes up and down.
    "--logging_steps", 7, "--save_steps", 20, "--eval_strategy", "steps", "--eval_steps", 60,
    "--per_device_eval_batch_size", 4, "--metric_for_best_model", "accuracy", "--early_stopping_patience", 1000,
]  # fmt: skip
# A thread suits a step of 10 ms best. Nothing is asked of a network.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
TRAINS, EVALUATES, EVALUATED = "steps/s]", "evaluating:   0%", "validation loss"  # the command's words
WRITE_S, EVALUATION_S = 0.03, 0.3  # how long these take
LIMIT_S = 300  # of a life that is to be killed, start and all; of a whole run ten times as long


class Life(Launched):
    """The command from one start to its end; it takes down which checkpoints it has seen, and what is written."""

    def __init__(self, folder: Path, flags: list, device: str):
        self.run, self.began = folder / "run", time.time()
        self.found = {path.name for path in named(self.run)}
        self.seen, self.written = set(), set()
        flags = [*flags, "--output_dir", self.run]
        self.resumes = bool(whole_checkpoints(self.run))
        if self.resumes:
            flags.append("--resume_from_checkpoint")
        elif self.run.exists():  # a kill before the first checkpoint: the command starts afresh
            print("no checkpoint yet: started afresh", file=sys.stderr)
        config = "cpu" if device == "cpu" else "single_gpu"
        super().__init__(flags, folder / "said.txt", config, **ENVIRONMENT)

    def look(self) -> None:
        """Which checkpoints have a name, and which were begun in this life: beside, or in their place."""
        with_name = {path.name for path in named(self.run)}
        self.seen |= with_name
        self.written |= {entry for entry in self.half_written() if "." not in entry} | (with_name - self.found)

    def half_written(self) -> set[str]:
        """What lies in the folder for writing and is of this life: a killed one's is left there until the next save."""
        return {path.name for path in named(self.run / WRITING) if changed(path) > self.began}

    def until(self, come, limit: float = LIMIT_S) -> bool:
        """Wait for something; whether it came before the end."""
        while self.ended() is None:
            self.look()
            if come():
                return True
            if self.seconds() > limit:
                self.kill()
                raise UserError(f"not within {limit} s:\n{self.text()[-3000:]}")
            time.sleep(0.001)
        return False

    def pause(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        return self.until(lambda: time.monotonic() >= end)

    def trains(self) -> bool:
        return TRAINS in self.text()

    def phase(self) -> str:
        """Where it was when it ended."""
        said = self.text()
        if self.half_written():
            return "writing"
        if TRAINS not in said:
            return "start"
        return "evaluation" if said.count(EVALUATES) > said.count(EVALUATED) else "steps"


def named(folder: Path) -> list[Path]:
    """The checkpoints in a folder, which may go at any moment."""
    try:
        return [folder / name for name in os.listdir(folder) if name.startswith("checkpoint-")]
    except FileNotFoundError:
        return []


def changed(path: Path) -> float:
    try:
        return path.stat().st_ctime
    except FileNotFoundError:
        return 0.0


def live(life: Life, aim: str, pace: dict[str, float], chance: random.Random) -> bool:
    """Kill at a random moment of the kind that is aimed at; False if the run had ended."""
    if aim == "start":
        due = life.pause(chance.uniform(0, pace["start"]))
    elif aim == "steps":
        after = chance.uniform(0, pace["steps"])
        due = life.until(life.trains) and life.pause(after)
    elif aim == "evaluation":
        after = chance.uniform(0, EVALUATION_S)
        due = life.until(lambda: EVALUATES in life.text()) and life.pause(after)
    else:
        count = chance.randint(1, 3)
        for _ in range(4):  # another one where it was written meanwhile
            due = life.until(lambda count=count: len(life.written) >= count) and life.pause(chance.uniform(0, WRITE_S))
            if not due or life.half_written():
                break
            count = len(life.written) + 1
    if due:
        life.kill()
    elif life.ended() != 0:
        raise life.failure()
    return due


def losses(folder: Path, seen: set[str]) -> tuple[list[str], list[str]]:
    """Checkpoints that had a name and are gone, other than by rotation; and those that have one and are not whole."""
    broken = [path.name for path in named(folder) if damage(path, digests=True)]
    whole = [path for path in whole_checkpoints(folder) if path.name not in broken]
    best = state_of(whole[-1])["best_global_step"] if whole else None
    steps = [step_of(path) for path in whole]
    lost = []
    for name in seen - {path.name for path in whole}:
        step = step_of(Path(name))
        if sum(newer > step for newer in steps) < KEPT or step == best:
            lost.append(name)
    return lost, broken


def state_of(checkpoint: Path) -> dict:
    return json.loads((checkpoint / "trainer_state.json").read_text())


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The final weights, those of the last checkpoint, and its moments."""
    last = whole_checkpoints(folder)[-1]
    found = {f"final {name}": value for name, value in load_file(folder / "model.safetensors").items()}
    found |= {f"last {name}": value for name, value in load_file(last / "model.safetensors").items()}
    states = torch.load(last / "optimizer.pt", weights_only=True, map_location="cpu")["state"]
    return found | {f"{number} {name}": value for number, state in states.items() for name, value in state.items()}


def values(folder: Path) -> dict:
    """Every figure of the log and the best one, without what the clock says."""
    state = state_of(whole_checkpoints(folder)[-1])
    found = {name: state[name] for name in ("global_step", "best_metric", "best_global_step", "stateful_callbacks")}
    for entry in state["log_history"]:
        kind = "eval" if "eval_loss" in entry else "train"
        timed = ("runtime", "per_second")
        found |= {(kind, entry["step"], name): value for name, value in entry.items() if not name.endswith(timed)}
    return found | {"entries": len(state["log_history"])}


def same(one, other) -> bool:
    """To the bit."""
    if torch.is_tensor(one) and torch.is_tensor(other):
        return one.dtype == other.dtype and one.shape == other.shape and bytes_of(one) == bytes_of(other)
    return type(one) is type(other) and one == other


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def differences(one: dict, other: dict) -> list:
    return [name for name in one.keys() | other.keys() if not same(one.get(name), other.get(name))]


def undisturbed(folder: Path, flags: list, device: str) -> dict[str, float]:
    """A whole run; how long its start and so many steps take."""
    folder.mkdir()
    with Life(folder, flags, device) as life:
        life.until(life.trains)
        start = life.seconds()
        life.wait(10 * LIMIT_S)
    steps = state_of(whole_checkpoints(life.run)[-1])["global_step"]
    return {"start": start, "steps": (life.seconds() - start) * STEPS / steps}


def torture(kills: int, seed: int, folder: Path, flags: list, device: str = "cpu") -> dict:
    began, chance, phases = time.monotonic(), random.Random(seed), Counter()
    flags = [*FLAGS, "--max_steps", STEPS * kills, *flags]
    pace = undisturbed(folder / "never", flags, device)
    print(f"never killed: {pace['start']:.1f} s of start, {pace['steps']:.1f} s for {STEPS} steps", file=sys.stderr)
    (folder / "killed").mkdir()
    lost, broken, seen, resumes, aims = [], [], set(), 0, []
    for number in range(1, kills + 1):
        aims = aims or chance.sample(AIMS, len(AIMS))
        aim = aims.pop()
        with Life(folder / "killed", flags, device) as life:
            killed = live(life, aim, pace, chance)
        if not killed:
            print("the run ended before its last kill", file=sys.stderr)
            break
        phases[phase := life.phase()] += 1
        resumes += life.resumes
        gone, half = losses(life.run, seen | life.seen)
        lost, broken = lost + gone, broken + half
        seen = {path.name for path in whole_checkpoints(life.run)}
        newest = max(map(step_of, map(Path, seen)), default=0)
        told = f"; LOST {gone}, BROKEN {half}" if gone or half else ""
        print(f"kill {number} after {life.seconds():.1f} s: {phase}, newest step {newest}{told}", file=sys.stderr)
    with Life(folder / "killed", flags, device) as life:
        life.until(lambda: False, 10 * LIMIT_S)
        life.wait()
    gone, half = losses(life.run, seen | life.seen)
    weights = [tensors(folder / each / "run") for each in ("never", "killed")]
    figures = [values(folder / each / "run") for each in ("never", "killed")]
    for name in differences(*weights) + differences(*figures):
        print(f"different: {name}", file=sys.stderr)
    return {
        "kills": phases.total(), "different_tensors": len(differences(*weights)),
        "lost_checkpoints": len(lost + gone), "half_written_checkpoints": len(broken + half),
        "different_values": len(differences(*figures)), "tensors": len(weights[0]), "values": len(figures[0]),
        "steps": figures[0]["global_step"], "resumes": resumes + life.resumes,
        "kills_in_start": phases["start"], "kills_in_steps": phases["steps"],
        "kills_in_evaluation": phases["evaluation"], "kills_while_writing": phases["writing"],
        "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.torture", description=__doc__.splitlines()[0],
        epilog="Further flags are the training command's, --dataset for example.",
    )  # fmt: skip
    parser.add_argument("--kills", type=int, default=50, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills (default: %(default)s)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="cuda needs --full_determinism")
    parser.add_argument("--folder", type=Path, help="a new one for both runs; default: a temporary one")
    parser.add_argument("--json", action="store_true", help="one JSON object as well, last on stdout")
    parsed, flags = parser.parse_known_args(arguments)
    folder = parsed.folder or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    try:
        found = torture(parsed.kills, parsed.seed, folder, flags, parsed.device)
    finally:
        if not parsed.folder:
            shutil.rmtree(folder, ignore_errors=True)
    tell(found, parsed.json)
    wrong = ("different_tensors", "different_values", "lost_checkpoints", "half_written_checkpoints")
    return int(any(found[name] for name in wrong) or found["kills"] < parsed.kills)


if __name__ == "__main__":
    run(main)
