"""What only a GPU shows of a step: that it waits for nothing, its memory, and compiled kernels replayed as graphs."""

import pytest
import torch
from conftest import SMALL
from small_runs import make_trainer
from transformers import TrainerCallback

from benchmarks.train_step import make_batches, on, our_side
from domain_canine.configuration_domain_canine import DomainCanineConfig
from domain_canine.sample import sample_names

pytestmark = pytest.mark.gpu
NAMES = sample_names(20_000)


def without_dropout() -> DomainCanineConfig:
    return DomainCanineConfig(**SMALL, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def test_a_step_does_not_wait_for_the_device():
    side, batches = our_side(DomainCanineConfig(**SMALL), "cuda"), on("cuda", make_batches(NAMES, 64, 8, False)[0])
    for batch in batches:
        side.step(batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches:
            side.step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


class WaitsForNothing(TrainerCallback):
    """An operation that waits for the device is an error between these steps."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 3:
            torch.cuda.set_sync_debug_mode("error")

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 8:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_step_of_the_trainer_does_not_wait_for_the_device(tmp_path, accumulation):
    trainer = make_trainer(
        tmp_path, use_cpu=False, bf16=True, dataloader_num_workers=1, per_device_train_batch_size=8, logging_steps=1000,
        gradient_accumulation_steps=accumulation, max_steps=9, save_strategy="no", eval_strategy="no",
    )  # fmt: skip
    trainer.add_callback(WaitsForNothing())
    try:
        trainer.train()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.state.global_step == 9


def test_peak_memory_of_256_names_is_below_8_gb():
    side, batches = our_side(DomainCanineConfig(), "cuda"), on("cuda", make_batches(NAMES, 256, 8, False)[0])
    torch.cuda.reset_peak_memory_stats()
    for batch in batches:
        side.step(batch)
    assert torch.cuda.max_memory_allocated() < 8e9


@pytest.mark.slow
def test_cuda_graphs_give_the_losses_of_the_eager_model():
    names = [name for name in NAMES if len(name) < 21]
    batches = on("cuda", make_batches(names, 64, 12, True)[0])
    graphs = our_side(without_dropout(), "cuda", compiled=True, mode="reduce-overhead")
    eager = our_side(without_dropout(), "cuda")
    for batch in batches * 3:
        assert graphs.step(batch).item() == pytest.approx(eager.step(batch).item(), rel=2e-2)
