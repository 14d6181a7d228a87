"""Weights of a graph in 8 bits, and what that costs in accuracy.

Matrix products run in integers, the inputs rounded as they come (dynamic quantization). The convolution stays as it is:
in integers the small model was slower (867 names/s instead of 1,084, one thread) and further from fp32.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from .masking import DataCollatorForCodePointMasking
from .metrics import SUMS, figures, masked_sums, suffix_positions
from .onnx_graphs import Embed, FillMask, Graph, open_session, run
from .scoring_domain_canine import encode
from .tokenization_domain_canine import PAD

BATCH = 32


def quantize(path: Path, target: Path) -> None:
    """Write the graph at ``path`` with matrices and look-up tables of int8."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with TemporaryDirectory(dir=target.parent) as beside:
        # Matrices that the graph computes from weights become weights: others are not quantized.
        folded = Path(beside) / path.name
        quant_pre_process(path, folded, skip_symbolic_shape=True)
        # A scale for each column costs no time (small model), and a sixth less of the accuracy.
        kinds = ["MatMul", "Gemm", "Gather"]
        quantize_dynamic(folded, target, op_types_to_quantize=kinds, per_channel=True, weight_type=QuantType.QInt8)


def cost(graph: Graph, exact: Path, rounded: Path, names: list[str]) -> str:
    """What the same names say of both files, in figures of the graph's task."""
    sessions = open_session(exact), open_session(rounded)
    if isinstance(graph, FillMask):
        return _fill_mask(graph.model.config, sessions, names)
    ids = [(*_batch(group), group) for group in like_lengths(names, 4 if graph.rows else BATCH)]
    outputs = [[run(session, *given)[-1] for *given, _ in ids] for session in sessions]
    before, after = (torch.from_numpy(np.concatenate(each)).double() for each in outputs)
    if graph.rows:
        characters = torch.tensor([len(name) for *_, group in ids for name in group])
        bits = ((after - before) / math.log(2) / characters).abs()
        return f"bits per character differ by {bits.mean():.4f} in the mean, {bits.max():.4f} at most"
    if isinstance(graph, Embed):
        cosine = torch.nn.functional.cosine_similarity(before, after)
        return f"cosine between both {cosine.mean():.5f} in the mean, {cosine.min():.5f} at least"
    return _labels(graph.model.config, before, after)


def _labels(config, before, after):
    """Logits (N, labels) of both."""
    if config.num_labels == 1:
        error = (after - before).abs()
        return f"values differ by {error.mean():.4g} in the mean, {error.max():.4g} at most"
    several = config.problem_type == "multi_label_classification"
    probabilities = [each.sigmoid() if several else each.softmax(-1) for each in (before, after)]
    guesses = [each > 0.5 if several else each.argmax(-1) for each in probabilities]
    same = (guesses[0] == guesses[1]).double().mean()
    worst = (probabilities[0] - probabilities[1]).abs().max()
    return f"{same:.2%} of the predictions are the same, probabilities differ by {worst:.4f} at most"


def _fill_mask(config, sessions, names):
    """Masked characters of the evaluation: 15%, masks only."""
    collator = DataCollatorForCodePointMasking(mask_code_point=config.mask_code_point, vocab_size=config.vocab_size)
    collator = collator.for_evaluation()
    sums = torch.zeros(2, len(SUMS), dtype=torch.float64)
    for group in like_lengths(names, BATCH):
        ids, mask = _batch(group)
        batch = collator([{"input_ids": row[row != PAD]} for row in ids])
        positions = batch["masked_positions"]
        for total, session in zip(sums, sessions):
            logits = torch.from_numpy(run(session, batch["input_ids"], mask)[0])
            logits = logits.gather(1, positions[..., None].expand(-1, -1, logits.shape[-1]))
            total += masked_sums(logits, batch["labels"], suffix_positions(batch))
    before, after = map(figures, sums)
    return (
        f"perplexity of a masked character {before['perplexity']:.3f} -> {after['perplexity']:.3f}, "
        f"accuracy {before['accuracy']:.2%} -> {after['accuracy']:.2%}"
    )


def like_lengths(names: list[str], size: int) -> Iterator[list[str]]:
    """So many names at once, like lengths together."""
    names = sorted(names, key=len)
    return (names[start : start + size] for start in range(0, len(names), size))


def _batch(names):
    ids = encode(names, torch.device("cpu"))
    return ids, (ids != PAD).long()
