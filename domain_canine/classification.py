"""Figures of a classifier or regression over held-out names."""

import numpy as np
import torch
from accelerate.utils import gather_object

from .errors import UserError
from .metrics import wide

# Share of the negatives that may be taken for positives: what an analyst can look through.
RATES = (0.001, 0.01)


def import_sklearn() -> None:
    """
    Raises:
        UserError: it is not installed.
    """
    try:
        import sklearn.metrics  # noqa: F401
    except ImportError as error:
        raise UserError("the figures of a classifier need scikit-learn: pip install scikit-learn") from error


class LabelFigures:
    """What ``MaskedFigures`` is for masked characters: here of names with labels.

    Args:
        classes: in the order of their indices; None for a regression.
        positive: index of the class whose recall is told, if there are two.
    """

    def __init__(self, classes: list[str] | None, positive: int = 1):
        self.classes, self.positive = classes, positive

    def begin(self, device: torch.device) -> None:
        self._sums = torch.zeros(2, dtype=wide(device), device=device)
        self._outputs: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, model, batch: dict[str, torch.Tensor]) -> None:
        outputs = model(**batch, num_items_in_batch=1)
        weights = batch["loss_weights"]
        self._sums += torch.stack([outputs.loss.detach(), weights.sum()])
        real = (weights > 0).cpu()  # an empty name stands where a process had none
        logits, labels = outputs.logits.float().cpu()[real], batch["labels"].cpu()[real]
        self._outputs.append((logits.numpy(), labels.numpy()))

    def figures(self, accelerator) -> dict[str, float]:
        nats, weight = accelerator.reduce(self._sums, "sum").tolist()
        parts = gather_object(self._outputs) if accelerator.num_processes > 1 else self._outputs
        logits, labels = (np.concatenate(each) for each in zip(*parts))
        figures = {"loss": nats / weight, "names": len(labels)}
        if self.classes is None:
            return figures | regression_figures(logits[:, 0], labels)
        return figures | class_figures(logits, labels, self.positive)

    def of_loss(self, loss: float) -> dict[str, float]:
        return {}

    def line(self, metrics: dict[str, float]) -> str:
        shown = [name for name in SHOWN if f"eval_{name}" in metrics]
        return ", ".join(f"{name.replace('_', ' ')} {metrics[f'eval_{name}']:.4f}" for name in shown)


# In a line; all of them are in eval_results.json.
SHOWN = ("accuracy", "macro_f1", "auc", *(f"recall_at_fpr_{rate}" for rate in RATES), "rmse", "mae", "r2", "spearman")


def class_figures(logits: np.ndarray, labels: np.ndarray, positive: int = 1) -> dict[str, float]:
    """Logits (N, C) and class indices (N,) -> accuracy, macro-F1, AUC; of two classes recall at few false positives.

    The AUC of several classes is the mean of each against the rest, of those that occur.
    """
    from sklearn.metrics import f1_score, roc_auc_score

    guessed, classes = logits.argmax(1), logits.shape[1]
    found = {
        "accuracy": float((guessed == labels).mean()),
        "macro_f1": float(f1_score(labels, guessed, average="macro")),
    }
    margins = [_margin(logits, each) for each in range(classes)]
    there = [each for each in range(classes) if 0 < (labels == each).sum() < len(labels)]
    if there:
        found["auc"] = float(np.mean([roc_auc_score(labels == each, margins[each]) for each in there]))
    if classes == 2 and len(there) == 2:
        for rate in RATES:
            found[f"recall_at_fpr_{rate}"] = recall_at(rate, margins[positive], labels == positive)[0]
    return found


def _margin(logits, of):
    """How much likelier a class is than the others together (N,): log-odds, which a softmax would round off at 1."""
    rest = np.delete(logits, of, axis=1)
    most = rest.max(1, keepdims=True)
    return logits[:, of] - (most[:, 0] + np.log(np.exp(rest - most).sum(1)))


def recall_at(rate: float, scores: np.ndarray, positives: np.ndarray) -> tuple[float, float]:
    """Share of the positives found, and the score from which on, where at most ``rate`` of the negatives are taken."""
    from sklearn.metrics import roc_curve

    false, true, scores = roc_curve(positives, scores, drop_intermediate=False)
    at = np.flatnonzero(false <= rate)[-1]
    return float(true[at]), float(scores[at])


def regression_figures(guessed: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Numbers (N,) and (N,) -> root mean square and mean absolute error, R2, Spearman's rank correlation."""
    from scipy.stats import spearmanr

    errors = guessed.astype(np.float64) - labels
    spread = ((labels - labels.mean()) ** 2).sum()
    found = {"rmse": float(np.sqrt((errors**2).mean())), "mae": float(np.abs(errors).mean())}
    if spread > 0:
        found["r2"] = float(1 - (errors**2).sum() / spread)
        if np.ptp(guessed) > 0:
            found["spearman"] = float(spearmanr(guessed, labels).statistic)
    return found


def class_report(classes: list[str], positive: int, logits: np.ndarray, labels: np.ndarray) -> dict:
    """What is told of final weights alone: precision, recall, F1 and number of each class, the confusion matrix (rows
    are true labels), and of two classes the probability from which on a rate of false positives is kept to.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    every = list(range(len(classes)))
    guessed = logits.argmax(1)
    figures = precision_recall_fscore_support(labels, guessed, labels=every, zero_division=0)
    names = ("precision", "recall", "f1", "names")
    report = {
        "classes": {each: dict(zip(names, map(float, row))) for each, row in zip(classes, zip(*figures))},
        "confusion_matrix": confusion_matrix(labels, guessed, labels=every).tolist(),
    }
    positives = labels == positive
    if len(classes) == 2 and 0 < positives.sum() < len(labels):
        margins = _margin(logits, positive)
        report["thresholds"] = {
            str(rate): float(1 / (1 + np.exp(-recall_at(rate, margins, positives)[1]))) for rate in RATES
        }
    return report


def told_report(classes: list[str], report: dict) -> list[str]:
    """The report as lines of text; of many classes without the matrix."""
    width = max(map(len, classes))
    lines = [f"{'':>{width}}  precision  recall      F1   names"]
    for name, row in report["classes"].items():
        lines.append(
            f"{name:>{width}}  {row['precision']:9.4f}  {row['recall']:6.4f}  {row['f1']:6.4f}  {row['names']:6,.0f}"
        )
    if len(classes) <= 8:
        lines.append(f"{'':>{width}}  taken for: {', '.join(classes)}")
        for name, row in zip(classes, report["confusion_matrix"]):
            lines.append(f"{name:>{width}}  {'  '.join(f'{count:6,}' for count in row)}")
    for rate, least in report.get("thresholds", {}).items():
        lines.append(f"probability from which on {float(rate):.1%} of the others are taken too: {least:.4f}")
    return lines
