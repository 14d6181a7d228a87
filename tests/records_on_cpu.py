"""Steps that are replayed, without a GPU; as a script the training command with them, for test_processes.py."""

import atexit
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import run_mlm_domains  # noqa: E402
from domain_canine import memory, trainer  # noqa: E402
from domain_canine.errors import run  # noqa: E402
from domain_canine.pretrained import build_model  # noqa: E402
from domain_canine.recorded import Record, RecordedSteps  # noqa: E402
from domain_canine.training_arguments import DomainTrainingArguments  # noqa: E402

REPLAYED = []  # rows


def on_the_processor(run, batch: dict, outputs: int, parameters: list[nn.Parameter]) -> Record:
    """What a graph does: it runs on the same batch, and writes into the tensors of its record, gradients too."""
    made = tuple(torch.zeros(()) for _ in range(outputs))
    written = [parameter.grad for parameter in parameters]

    def replay():
        REPLAYED.append(len(batch["input_ids"]))
        held = [parameter.grad for parameter in parameters]
        for parameter, gradient in zip(parameters, written):
            parameter.grad = gradient
        for each, new in zip(made, run(batch)):
            each.copy_(new)
        for parameter, gradient in zip(parameters, held):
            parameter.grad = gradient

    return Record(SimpleNamespace(replay=replay), batch, made)


def record_on_the_processor(patch, largest: int, room: int = 0) -> None:
    """Have the Trainer's steps recorded; ``patch`` sets attributes.

    Args:
        largest: code points of a pass.
        room: code points that micro-steps are joined by the measure of.
    """
    patch(DomainTrainingArguments, "records_steps", True)
    patch(trainer, "largest_pass", lambda device: largest)
    patch(memory, "largest_pass", lambda device: room)
    patch(RecordedSteps, "_record", lambda self, batch: on_the_processor(self.run, batch, 3, self.parameters))


def refuse_ddp(*args, **kwargs):
    raise AssertionError("DDP's part in a backward pass cannot be recorded")


def build_another_model(*args):
    model = build_model(*args)
    for parameter in model.parameters():
        parameter.data += 0.1
    return model


if __name__ == "__main__":
    # Micro-steps of 8 names are joined to 16, and of these some take several passes.
    record_on_the_processor(setattr, 300, 4 * memory.SLOTS * 16)
    nn.parallel.DistributedDataParallel.__init__ = refuse_ddp
    if os.environ["LOCAL_RANK"] != "0":
        run_mlm_domains.build_model = build_another_model
    atexit.register(lambda: print("rows replayed:", *sorted(set(REPLAYED))))
    run(run_mlm_domains.main)
