"""Several processes and machines train as one: by ``accelerate launch``, on the CPU, over gloo."""

import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from conftest import ROOT
from services import Server
from small_runs import make_trainer
from test_loading import ask_stranger

from domain_canine.batches import NameBatches
from domain_canine.corpus import load_corpus
from domain_canine.errors import UserError
from domain_canine.masking import DataCollatorForCodePointMasking
from domain_canine.metrics import figures, masked_sums, suffix_positions
from domain_canine.modeling_domain_canine import DomainCanineForMaskedLM
from domain_canine.prepare import Settings

TIMEOUT = 120  # seconds; a launch takes 8 to 15
# 323 names to train on, so that an epoch's last step, of 64 names else, has 3 for 8 shares; and 33 for validation, so
# that the last batch has one name for two processes.
NAMES, STEPS, MIDDLE = 356, 18, 9
SAME = f"""
    --model_size tiny
    --config_overrides num_hidden_layers=1,hidden_size=32,hidden_dropout_prob=0,attention_probs_dropout_prob=0
    --dataset sample --num_samples {NAMES} --epochs 3 --learning_rate 1e-3 --warmup_steps 1 --logging_steps 1
    --save_steps {MIDDLE} --save_total_limit 99 --per_device_eval_batch_size 8
""".split()
FIGURES = ["loss", "perplexity_name", "perplexity_suffix", "accuracy", "accuracy_top5", "masked_characters"]


class Launch:
    """``accelerate launch`` of the training command, started.

    Args:
        config: of accelerate_configs.
        folder: of the run.
        shares: names a process and micro-step, and micro-steps.
        flags: more of the training command.
        launcher: flags of accelerate.
    """

    numbers = itertools.count()

    def __init__(self, config, folder, shares, *flags, launcher="", script="run_mlm_domains.py", **environment):
        self.folder = Path(folder)
        name = f"{self.folder.name}-{next(self.numbers)}"
        self.out, self.err = (self.folder.parent / f"{name}.{kind}" for kind in ("out", "err"))
        command = [
            Path(sys.executable).parent / "accelerate", "launch", "--quiet",
            "--config_file", ROOT / "accelerate_configs" / f"{config}.yaml", *launcher.split(),
            ROOT / script, *SAME, "--batch_size", shares[0], "--gradient_accumulation_steps", shares[1],
            "--output_dir", self.folder, *flags,
        ]  # fmt: skip
        ours = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        ours["DOMAIN_CANINE_CACHE"] = str(self.folder.parent / "cache")
        with open(self.out, "w") as out, open(self.err, "w") as err:
            self.process = subprocess.Popen(
                list(map(str, command)), stdout=out, stderr=err, cwd=ROOT, env=os.environ | ours | environment
            )

    def told(self) -> list[str]:
        """The lines on stderr, those of progress bars left out."""
        lines = re.split(r"[\r\n]+", self.err.read_text().replace("\x1b[A", ""))
        return [line.strip() for line in lines if line.strip() and "steps/s]" not in line and "batches/s]" not in line]

    def history(self, step=STEPS) -> list[dict]:
        return json.loads((self.folder / f"checkpoint-{step}" / "trainer_state.json").read_text())["log_history"]


def finish(*launched) -> list[Launch]:
    """Wait for launches, which must end in time; of one that does not, nothing is left."""
    try:
        for each in launched:
            each.process.wait(TIMEOUT)
    finally:
        for each in launched:
            if each.process.poll() is None:
                # Workers are in sessions of their own, not in the launcher's.
                launcher = psutil.Process(each.process.pid)
                for process in (*launcher.children(recursive=True), launcher):
                    process.kill()
    for each in launched:
        assert each.process.returncode == 0, each.err.read_text()
    return list(launched)


def assert_same(found: list[dict], expected: list[dict], after=0, most=5e-6) -> None:
    """Logged figures differ by noise: the largest difference, and their mean by much less, which would show a drift."""
    for name in ("loss", "grad_norm", "learning_rate", *(f"eval_{figure}" for figure in FIGURES)):
        ours, theirs = (
            np.array([entry[name] for entry in history if name in entry and entry["step"] > after])
            for history in (found, expected)
        )
        assert len(ours) == len(theirs) > 0, name
        difference = (ours - theirs) / theirs.max()
        assert np.abs(difference).max() < most and abs(difference.mean()) < most / 10, (name, difference)


def middle_of(run: Launch, folder: Path) -> Path:
    """A run folder that ends with a checkpoint in the middle of an epoch."""
    folder.mkdir()
    shutil.copy(run.folder / "run_arguments.json", folder)
    shutil.copytree(run.folder / f"checkpoint-{MIDDLE}", folder / f"checkpoint-{MIDDLE}")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def alone(place):
    """One process, with whole steps and with accumulated ones."""
    return finish(Launch("cpu", place / "whole", (64, 1)), Launch("cpu", place / "accumulated", (8, 8)))


@pytest.fixture(scope="module")
def hub():
    """A Hub that takes everything."""
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="module")
def two(place, hub):
    """Two processes, which upload what they made."""
    flags = "--push_to_hub", "--hub_model_id", "someone/names", "--hub_token", "hf_nobodys"
    return finish(
        Launch("multi_cpu", place / "two", (8, 4), *flags, launcher="--main_process_port 0", HF_ENDPOINT=hub.url,
               HF_HUB_OFFLINE="0")
    )[0]  # fmt: skip


def test_losses_depend_neither_on_accumulation_nor_on_processes(alone, two):
    whole, *others = *alone, two
    assert any("323 to train on, 33 for validation" in line for line in whole.told())
    assert [entry["step"] for entry in whole.history() if "loss" in entry] == list(range(1, STEPS + 1))
    for other in others:
        assert_same(other.history(), whole.history())


def test_two_machines_train_as_one(place, alone):
    """With a folder for both, and without a GPU."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = f"--num_processes 2 --main_process_ip 127.0.0.1 --main_process_port {port} --machine_rank"
    first, second = finish(*(
        Launch("multi_node", place / "machines", (8, 4), "--use_cpu", launcher=f"{launcher} {rank}") for rank in (0, 1)
    ))  # fmt: skip
    assert_same(first.history(), alone[0].history())
    assert any("8 names x 4 accumulated x 2 = 64 names a step" in line for line in first.told())
    assert second.told() == []


def test_the_first_process_alone_speaks_saves_and_uploads(two, hub):
    told = two.told()
    assert len(told) == len(set(told)) and two.out.read_text() == ""
    for row in ("model", "data", "lines", "names", "objective", "device", "batch", "steps", "output", "saved"):
        assert len([line for line in told if line.split()[0] == row]) == 1, (row, told)
    assert any(line.startswith("device  2 x cpu") for line in told)
    names = {entry.name for entry in two.folder.iterdir() if entry.is_dir()}
    assert names == {f"checkpoint-{step}" for step in (6, MIDDLE, 12, STEPS)}
    assert len(json.loads((two.folder / "run_arguments.json").read_text())) == 1
    assert len([entry for entry in two.history() if "eval_loss" in entry]) == 3
    made, committed = ([body for _, path, body in hub.requests if part in path] for part in ("/create", "/commit/"))
    assert len(made) == len(committed) == 1
    files = {json.loads(line)["value"].get("path") for line in committed[0].splitlines()}
    assert {"model.safetensors", "README.md"} <= files and not any("checkpoint" in str(file) for file in files)


def test_a_run_goes_on_with_another_number_of_processes(place, alone, two):
    fewer, more = middle_of(two, place / "fewer"), middle_of(alone[1], place / "more")
    (more / "checkpoint-12").mkdir()  # of a write that was killed
    resume = "--resume_from_checkpoint"
    fewer, more = finish(
        Launch("cpu", fewer, (8, 8), resume),
        Launch("multi_cpu", more, (8, 4), resume, launcher="--main_process_port 0"),
    )
    assert_same(fewer.history(), two.history(), after=MIDDLE)
    assert_same(more.history(), alone[1].history(), after=MIDDLE)
    assert len([line for line in more.told() if "passed over" in line]) == 1


def test_steps_that_are_replayed_add_up_over_processes(place, two):
    """And are joined. Gradients travel after the last of them, not by DDP; all begin with the weights of the first."""
    launcher = "--num_processes 2 --main_process_port 0"
    [run] = finish(Launch("multi_cpu", place / "replayed", (8, 4), launcher=launcher, script="tests/records_on_cpu.py"))
    assert_same(run.history(), two.history())
    means = [json.loads((each.folder / "trainer_state.json").read_text())["log_history"][-1] for each in (run, two)]
    assert means[0]["train_loss"] == pytest.approx(means[1]["train_loss"], rel=1e-5)
    assert (
        len([line for line in run.told() if "16 names at once: a step is accumulated in 2 instead of 4" in line]) == 1
    )
    assert run.out.read_text().splitlines() == 2 * ["rows replayed: 1 4 8 16"]


# ---- FSDP


SHARDED = {"script": "tests/fsdp_on_cpu.py", "launcher": "--num_processes 2 --main_process_port 0"}


@pytest.fixture(scope="module")
def sharded(place):
    return finish(Launch("fsdp", place / "sharded", (8, 4), **SHARDED))[0]


def test_fsdp_trains_as_one_process_and_saves_for_any(alone, sharded, tmp_path):
    assert_same(sharded.history(), alone[0].history())
    checkpoint = sharded.folder / f"checkpoint-{STEPS}"
    assert (checkpoint / "pytorch_model_fsdp.bin").is_file()  # it was FSDP
    # Where neither it nor this package is: the same figures.
    assert ask_stranger(checkpoint, tmp_path)["masked"] == ["DomainCanineForMaskedLM", 0, 0]
    expected = [entry for entry in sharded.history() if "eval_loss" in entry][-1]
    found = evaluate(DomainCanineForMaskedLM.from_pretrained(checkpoint))
    assert {name: found[name] for name in FIGURES} == pytest.approx(
        {name: expected[f"eval_{name}"] for name in FIGURES}
    )


def test_fsdp_goes_on_with_its_own_and_rounds_no_figure_in_bf16(place, alone, sharded):
    resumed, bf16 = finish(
        Launch("fsdp", middle_of(sharded, place / "resumed"), (8, 4), "--resume_from_checkpoint", **SHARDED),
        Launch("fsdp", place / "bf16", (8, 4), "--bf16", "--max_steps", 2, **SHARDED),
    )
    assert_same(resumed.history(), sharded.history(), after=MIDDLE)
    # The nearest numbers of bf16 are up to 0.016 away.
    expected = [entry["loss"] for entry in alone[0].history()[:2]]
    assert [entry["loss"] for entry in bf16.history(2)[:2]] == pytest.approx(expected, abs=7e-4)


def test_fsdp_goes_on_after_an_evaluation_without_a_checkpoint(place):
    """Then other parameters stand in the modules at the start of an epoch than after its first step."""
    flags = "--save_strategy no --max_steps 8".split()
    [run] = finish(Launch("fsdp", place / "unsaved", (8, 4), *flags, **SHARDED))
    history = json.loads((run.folder / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "loss" in entry] == list(range(1, 9))
    assert [entry["step"] for entry in history if "eval_loss" in entry] == [6, 8]


def test_a_run_goes_on_with_fsdp_or_without_as_it_began(tmp_path, sharded, two):
    trainer = make_trainer(tmp_path)
    for run, trainer.is_fsdp_enabled, told in ((sharded, False, "with FSDP"), (two, True, "without FSDP")):
        with pytest.raises(UserError, match=f"started {told}; go on {told.split()[0]} accelerate_configs/fsdp.yaml"):
            trainer.train(resume_from_checkpoint=str(run.folder / f"checkpoint-{MIDDLE}"))


def evaluate(model) -> dict[str, float]:
    validation = load_corpus("sample", Settings(num_samples=NAMES), quiet=True).validation
    batches = NameBatches(
        validation.table, validation.lengths, DataCollatorForCodePointMasking(), 8, evaluation=True
    )  # fmt: skip
    sums = 0
    for index in range(batches.plan.steps):
        batch = batches[0, index]
        suffix, labels = suffix_positions(batch), batch.pop("labels")
        with torch.no_grad():
            sums = sums + masked_sums(model.eval()(**batch).logits, labels, suffix, None)
    return figures(sums)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("config", ["multi_gpu", "fsdp"])
def test_two_gpus_train_as_one_process(place, alone, config):
    """In fp32, with the noise of TF32."""
    [done] = finish(Launch(
        config, place / f"gpus-{config}", (8, 4), "--no_mixed_precision",
        launcher="--num_processes 2 --main_process_port 0", CUDA_VISIBLE_DEVICES="0,1",
    ))  # fmt: skip
    assert any(line.startswith("device  2 x ") and "cpu" not in line for line in done.told())
    assert (done.folder / f"checkpoint-{STEPS}" / "pytorch_model_fsdp.bin").exists() == (config == "fsdp")
    assert_same(done.history(), alone[0].history(), most=1e-2)
