"""Whole runs of a small model, to be compared."""

import os
import signal
from pathlib import Path

import numpy as np
import torch
from conftest import SMALL
from transformers import TrainerCallback

from domain_canine import DataCollatorForCodePointMasking, DomainCanineConfig, DomainCanineForMaskedLM
from domain_canine.batches import NameBatches
from domain_canine.pretrained import build_tokenizer
from domain_canine.sample import sample_names
from domain_canine.table import table_of
from domain_canine.trainer import DomainTrainer
from domain_canine.training_arguments import DomainTrainingArguments

NAMES = 150


def make_trainer(folder: Path, dropout: float = 0.1, objective: str = "mlm", stop=None, **changes) -> DomainTrainer:
    options = {
        "per_device_train_batch_size": 16, "gradient_accumulation_steps": 2, "num_train_epochs": 2, "save_steps": 1000,
        "learning_rate": 1e-3, "warmup_steps": 2, "logging_steps": 1, "disable_tqdm": True, "use_cpu": True,
        "dataloader_num_workers": 0,
    } | changes  # fmt: skip
    args = DomainTrainingArguments(output_dir=str(folder), **options)
    torch.manual_seed(5)
    config = DomainCanineConfig(**SMALL, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    config.initializer_range = 0.02
    model = DomainCanineForMaskedLM(config)
    collator = DataCollatorForCodePointMasking(objective=objective)
    names = sample_names(NAMES + 40)
    train, validation = table_of(names[:NAMES]), table_of(names[NAMES:])
    sizes = [len(name) for name in names]
    return DomainTrainer(
        model=model,
        args=args,
        train_dataset=NameBatches(
            train, np.array(sizes[:NAMES], np.uint8), collator, args.per_device_train_batch_size,
            micro_steps=args.gradient_accumulation_steps,
        ),
        eval_dataset=NameBatches(validation, np.array(sizes[NAMES:], np.uint8), collator, 16, evaluation=True),
        processing_class=build_tokenizer(model, 128),
        stop=stop,
    )  # fmt: skip


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in trainer.model.state_dict().items()}


def entries(trainer, key: str) -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def assert_equal(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different


class At(TrainerCallback):
    """Calls something at the end of a step."""

    def __init__(self, step, call):
        self.step, self.call = step, call

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.call()


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
