"""Counted operations of a training step: what a perfect machine would need time for.

Matrix products alone are counted, as multiply-adds, 2 operations each; a step takes three times the forward pass (the
gradients by the inputs and by the weights cost as much again each). D width, F feed-forward, N layers, V classes; a
batch has B rows of S slots, M = S / 4 molecules, K masked positions.

    first layer        a slot          4 D^2 + 2 D F + 2 S D
    down-sampling      a molecule      4 D^2
    deep stack         N (M + 1)       2 D^2                          (keys and values)
                       N (M + 1) - 1   2 D^2 + 2 D F + 2 (M + 1) D    (queries, of the last layer without [CLS])
    up-sampling        a slot          4 D^2                          (the characters)
                       a molecule      7 D^2                          (the molecules, 16 D^2 if repeated)
    final layer        a slot          2 D^2                          (keys and values)
                       a position      2 D^2 + 2 D F + 2 S D          (queries, output, feed-forward)
    head               a position      D^2 + D V
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CanineConfig

from domain_canine.cleaning import SPECIAL
from domain_canine.sampling import slots


def multiply_adds(config: CanineConfig, rows: float, length: float, masked: float, classes: int) -> float:
    """Of one forward pass over ``rows`` names of ``length`` slots and ``masked`` masked positions each."""
    d, f, molecules = config.hidden_size, config.intermediate_size, length / config.downsampling_rate
    a_slot = 4 * d * d + 2 * d * f + 2 * min(length, config.local_transformer_stride) * d + 4 * d * d + 2 * d * d
    tokens = config.num_hidden_layers * (molecules + 1)
    deep = tokens * 2 * d * d + (tokens - 1) * (2 * d * d + 2 * d * f + 2 * (molecules + 1) * d)
    a_position = 2 * d * d + 2 * d * f + 2 * length * d + d * d + d * classes
    return rows * (length * a_slot + molecules * 11 * d * d + deep + masked * a_position)


def of_batch(config: CanineConfig, batch: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Operations of a training step on one of our batches: as it is computed, and of its real code points alone."""
    rows, length = batch["input_ids"].shape
    computed_slots = int(slots(length - SPECIAL))
    classes = config.vocab_size
    computed = multiply_adds(config, rows, computed_slots, batch["masked_positions"].shape[1], classes)
    real = batch["attention_mask"].sum().item() / rows
    targets = (batch["labels"] >= 0).sum().item() / rows
    return 6 * computed, 6 * multiply_adds(config, rows, real, targets, classes)


class Launches(TorchDispatchMode):
    """Counts the operators that PyTorch runs while it is entered, each a kernel or a few, and a wait of the GPU's where
    the processor is slow to start it. Views and empty tensors are none.
    """

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator.__name__
        self.count += not (operator.is_view or name.startswith(("detach", "empty", "new_empty", "_unsafe_view")))
        return operator(*args, **(kwargs or {}))
