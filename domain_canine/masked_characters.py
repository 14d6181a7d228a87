"""The figures of masked characters for the library evaluate: ``evaluate.load("domain_canine/masked_characters.py")``.

A file of its own, because ``evaluate.load`` copies the script that it runs, and nothing else needs ``evaluate``.
"""

import datasets
import evaluate
import numpy as np
import torch

from domain_canine.metrics import figures, masked_sums


class MaskedCharacters(evaluate.Metric):
    """Predictions are the logits of one masked character each, references the true code points (-100: no target)."""

    def _info(self):
        return evaluate.MetricInfo(
            description="Loss, perplexity, bits per character and accuracy over masked characters, from exact sums.",
            citation="",
            inputs_description="predictions: (N, V) logits; references: (N,) code points",
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("float32")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references):
        logits = torch.from_numpy(np.asarray(predictions, dtype=np.float32))[:, None]
        labels = torch.from_numpy(np.asarray(references, dtype=np.int64))[:, None]
        told = figures(masked_sums(logits, labels, suffix=torch.zeros_like(labels, dtype=torch.bool)))
        # A single character does not tell where its name's suffix begins.
        return {name: value for name, value in told.items() if name not in ("perplexity_name", "perplexity_suffix")}
