"""Held-out perplexity of masked characters: count models, and beside them a trained checkpoint.

    python -m benchmarks.quality --dataset names.txt.gz --model runs/mine

All see the same masked names: the validation side that the training command makes of the data by default, masked as
in its evaluations. What a model is worth is what it gains on counting. Arrays: N positions that are counted,
Q positions that are asked for, C characters (classes), k neighbours on each side.
"""

import argparse
import json
import sys
import time

import numpy as np
import torch

from domain_canine.arguments import DataArguments
from domain_canine.batches import NameBatches, frame
from domain_canine.corpus import Corpus, load_corpus
from domain_canine.errors import run
from domain_canine.masking import MASK, DataCollatorForCodePointMasking
from domain_canine.metrics import SUMS, figures, masked_sums, suffix_positions
from domain_canine.normalization_domain_canine import NAME_CHARACTERS
from domain_canine.prepare import Settings
from domain_canine.pretrained import load_model
from domain_canine.quiet import silence_libraries
from domain_canine.table import NameTable, characters, spans

CHARACTERS = NAME_CHARACTERS + "."
# Symbols of a context: the characters, what lies beyond a name, and a masked neighbour.
EDGE, HIDDEN = len(CHARACTERS), len(CHARACTERS) + 1
WIDEST = 3  # neighbours on each side
BATCH = 256  # names; what is masked does not depend on it
# The narrower windows weigh as much as this many times the different characters seen in a context; Witten and Bell
# say 1. On a tenth of the training names of a real list, held out: 1, 2, 3, 4, 6 give 3.55, 3.43, 3.43, 3.45, 3.52.
NARROWER = 3

_SYMBOL = np.full(MASK + 1, EDGE, dtype=np.int8)  # [CLS], [SEP] and padding are edges
_SYMBOL[[ord(character) for character in CHARACTERS]] = np.arange(len(CHARACTERS))
_SYMBOL[MASK] = HIDDEN


class CountModel:
    """P(character | its visible neighbours), interpolated over windows of its nearest neighbours.

    A window is i neighbours to the left, j to the right. Its counts are interpolated with the mean of the two windows
    that are one neighbour smaller, down to no neighbour and then the uniform distribution (Witten-Bell). Masked
    neighbours are left out of the windows: masks do not depend on the characters, so counting over whatever stands
    there is the expectation over all masks, and every position of every name counts. (Three neighbours of a real
    list: 3.4; counting two epochs of masked positions, with windows that grow on both sides at once, 5.5.)

    Args:
        targets: (N,) symbols of the characters to count.
        contexts: (N, 2k) symbols of their neighbours, as of ``neighbours``, none masked.
    """

    def __init__(self, targets: np.ndarray, contexts: np.ndarray):
        self.targets, self.contexts = targets, contexts
        self._tables = {}

    def probabilities(self, contexts: np.ndarray) -> np.ndarray:
        """Contexts (Q, 2k), masked neighbours among them -> (Q, C) float64."""
        result = np.empty((len(contexts), len(CHARACTERS)))
        hidden = contexts == HIDDEN
        for pattern in np.unique(hidden, axis=0):
            rows = np.flatnonzero((hidden == pattern).all(1))
            visible = np.flatnonzero(~pattern)
            result[rows] = self._interpolated(contexts[rows], visible[visible % 2 == 0], visible[visible % 2 == 1])
        return result

    def _interpolated(self, contexts, left, right):
        """(Q, C) of the widest window; ``left`` and ``right`` are the visible columns, the nearest first."""
        above = []
        for i in range(len(left) + 1):
            row = []
            for j in range(len(right) + 1):
                smaller = row[-1:] + above[j : j + 1] or [1 / len(CHARACTERS)]
                counts = self._counts(contexts, (*left[:i], *right[:j]))
                total, different = counts.sum(1, keepdims=True), (counts > 0).sum(1, keepdims=True)
                # A context never seen adds nothing: the smaller windows stand for it.
                reserved = np.where(total, NARROWER * different, 1)
                row.append((counts + reserved * sum(smaller) / len(smaller)) / (total + reserved))
            above = row
        return above[-1]

    def _counts(self, contexts, columns):
        """(Q, C): how often each character stands in contexts that agree in these columns."""
        if columns not in self._tables:
            codes = _codes(self.contexts, columns) + self.targets
            self._tables[columns] = np.unique(codes, return_counts=True)
        codes, counts = self._tables[columns]
        wanted = _codes(contexts, columns)[:, None] + np.arange(len(CHARACTERS))
        at = np.minimum(np.searchsorted(codes, wanted), len(codes) - 1)
        return np.where(codes[at] == wanted, counts[at], 0)


def _codes(contexts, columns):
    """(N,) int64: one number for the symbols in these columns, with room for a character."""
    code = np.zeros(len(contexts), dtype=np.int64)
    for column in columns:
        code = code * (HIDDEN + 1) + contexts[:, column]
    return code * len(CHARACTERS)


def neighbours(ids: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Framed names (B, L), masked or not -> (Q, 2 WIDEST) symbols around the positions (rows, columns).

    The nearest come first: left, right, second to the left, ... so the first 2k columns are k neighbours each side.
    """
    symbols = np.pad(_SYMBOL[ids], ((0, 0), (WIDEST, WIDEST)), constant_values=EDGE)
    offsets = [side * distance for distance in range(1, WIDEST + 1) for side in (-1, 1)]
    return symbols[rows[:, None], columns[:, None] + WIDEST + offsets]


def every_position(table: NameTable) -> tuple[np.ndarray, np.ndarray]:
    """The characters of all names (N,) and their neighbours (N, 2 WIDEST)."""
    targets, contexts = [], []
    for start in range(0, len(table), 4096):
        data, starts, lengths = spans(table.take(np.arange(start, min(start + 4096, len(table)))))
        ids, _ = frame(characters(data, starts, lengths), lengths)
        rows, columns = np.nonzero(_SYMBOL[ids] < len(CHARACTERS))
        targets.append(_SYMBOL[ids[rows, columns]])
        contexts.append(neighbours(ids, rows, columns))
    return np.concatenate(targets), np.concatenate(contexts)


def validation_batches(corpus: Corpus, **collator):
    """The batches of the training command's evaluation."""
    collator = DataCollatorForCodePointMasking(**collator)
    batches = NameBatches(corpus.validation.table, corpus.validation.lengths, collator, BATCH, evaluation=True)
    return (batches[at] for [at] in batches.sampler())


def masked_positions(batches) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The masked characters (Q,), their neighbours (Q, 2 WIDEST), and whether they belong to the suffix (Q,)."""
    targets, contexts, suffix = [], [], []
    for batch in batches:
        ids, columns, labels = (batch[name].numpy() for name in ("input_ids", "masked_positions", "labels"))
        rows, slots = np.nonzero(labels >= 0)
        targets.append(_SYMBOL[labels[rows, slots]])
        contexts.append(neighbours(ids, rows, columns[rows, slots]))
        suffix.append(suffix_positions(batch).numpy()[rows, slots])
    return np.concatenate(targets), np.concatenate(contexts), np.concatenate(suffix)


def count_figures(corpus: Corpus) -> dict[str, dict[str, float]]:
    """``count_1`` .. ``count_WIDEST`` -> the figures of ``metrics.figures``."""
    targets, contexts = every_position(corpus.train.table)
    masked, around, suffix = masked_positions(validation_batches(corpus))
    found = {}
    for k in range(1, WIDEST + 1):
        probabilities = CountModel(targets, contexts[:, : 2 * k]).probabilities(around[:, : 2 * k])
        as_batch = np.log(probabilities), masked.astype(np.int64), suffix
        found[f"count_{k}"] = figures(masked_sums(*(torch.from_numpy(each)[None] for each in as_batch)))
    return found


@torch.no_grad()
def model_figures(model, corpus: Corpus) -> dict[str, float]:
    """The same figures of a trained model, without mixed precision."""
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    sums = torch.zeros(len(SUMS), dtype=torch.float64, device=model.device)
    config = model.config
    for batch in validation_batches(corpus, mask_code_point=config.mask_code_point, vocab_size=config.vocab_size):
        batch = {name: values.to(model.device) if torch.is_tensor(values) else values for name, values in batch.items()}
        suffix = suffix_positions(batch)
        labels = batch.pop("labels")
        sums += masked_sums(model(**batch).logits, labels, suffix)
    return figures(sums)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True, help="names, as for the training command")
    parser.add_argument("--model", help="a trained checkpoint: folder or Hub id")
    parser.add_argument("--num_samples", type=int, help="the first so many valid names only")
    parser.add_argument("--json", action="store_true", help="one JSON object as well, last on stdout")
    parsed = parser.parse_args(arguments)
    silence_libraries()
    start = time.perf_counter()

    data = DataArguments(dataset=parsed.dataset, num_samples=parsed.num_samples)
    model = load_model(parsed.model, trained=True) if parsed.model else None
    settings = Settings(data.validation_split, data.split_seed, data.max_length, data.num_samples)
    corpus = load_corpus(data.dataset, settings, quiet=not sys.stderr.isatty())
    found = count_figures(corpus) | ({"model": model_figures(model, corpus)} if model else {})
    masked = found["count_1"]["masked_characters"]
    kinds = ("perplexity", "perplexity_name", "perplexity_suffix")
    told = {who: {kind: figure[kind] for kind in kinds} for who, figure in found.items()}

    print(f"{masked:,} masked characters of {len(corpus.validation.table):,} names", file=sys.stderr)
    print(f"{'perplexity':<12}{'all':>10}{'name':>10}{'suffix':>10}", file=sys.stderr)
    for who, figure in told.items():
        print(f"{who:<12}" + "".join(f"{figure[kind]:>10.3f}" for kind in kinds), file=sys.stderr)
    if parsed.json:
        counted = {"names": len(corpus.validation.table), "masked_characters": masked}
        print(json.dumps(counted | told | {"seconds": round(time.perf_counter() - start, 1)}))
    return 0


if __name__ == "__main__":
    run(main)
