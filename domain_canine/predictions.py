"""What a classifier says of names: batches of like lengths, the order kept."""

import csv
import io
import json
import sys
from pathlib import Path

import numpy as np
import torch

from .classification import LabelFigures, class_report, class_shares, told_report
from .errors import UserError
from .labelled import Labelled
from .manifest import write_whole
from .modeling_domain_canine import DomainCanineForSequenceClassification
from .pretrained import load_model
from .scoring_domain_canine import by_length, encode
from .tokenization_domain_canine import PAD


@torch.inference_mode()
def classify_names(model, names: list[str]) -> np.ndarray:
    """Logits (N, num_labels) float32 of normalised names, in their order; of a regression the numbers (N, 1).

    Args:
        model: DomainCanineForSequenceClassification in evaluation mode.
    """
    logits = np.empty((len(names), model.config.num_labels), np.float32)
    for group in by_length(names, model.device):
        ids = encode([names[index] for index in group], model.device)
        logits[group] = model(input_ids=ids, attention_mask=ids != PAD, ascii_only=True).logits.float().cpu().numpy()
    return logits


def write_report(args, side: Labelled, kind: LabelFigures) -> None:
    """Of the weights in the run folder: what they say of each validation name, into a csv; figures of each class,
    into ``eval_results.json`` and on stderr.

    Raises:
        UserError: they cannot be written.
    """
    run = Path(args.output_dir)
    torch.backends.fp32_precision = "none"  # as where `classify` computes: thresholds are for what it will tell
    model = load_model(str(run), trained=True, kind=DomainCanineForSequenceClassification).to(args.device).eval()
    names = side.names.to_pylist()
    outputs = classify_names(model, names)
    table, report = io.StringIO(), None
    writer = csv.writer(table, lineterminator="\n")
    if kind.classes is None:
        writer.writerow(["name", "label", "predicted"])
        writer.writerows(zip(names, side.labels.tolist(), outputs[:, 0].tolist()))
    else:
        writer.writerow(["name", "label", "predicted", *(f"p_{name}" for name in kind.classes)])
        for name, label, best, row in zip(names, side.labels, outputs.argmax(1), class_shares(outputs).tolist()):
            writer.writerow([name, kind.classes[label], kind.classes[best], *row])
        report = class_report(kind.classes, kind.positive, outputs, side.labels)
    try:
        write_whole(run / "validation_predictions.csv", table.getvalue())
        if report is not None:
            path = run / "eval_results.json"
            write_whole(path, json.dumps(json.loads(path.read_text()) | report, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"the model is safe in {str(run)!r}, what it says of the names is not: {error}") from error
    for line in told_report(kind.classes, report) if report else []:
        print(line, file=sys.stderr)
