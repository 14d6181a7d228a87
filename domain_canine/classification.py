"""Figures of a classifier or regression over held-out names."""

import math

import numpy as np
import torch
from accelerate.utils import gather_object

from .errors import UserError
from .scoring_domain_canine import wide

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
        return {"loss": nats / weight, "names": len(labels)} | self.of_outputs(logits, labels)

    def of_outputs(self, outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Outputs (N, C) or (N, 1), labels (N,) -> all figures but the loss."""
        if self.classes is None:
            return regression_figures(outputs[:, 0], labels)
        return class_figures(outputs, labels, self.positive)

    def insist_on(self, figure: str, labels: np.ndarray) -> None:
        """
        Raises:
            UserError: these labels (N,) have no such figure.
        """
        there = ["loss", *self.of_outputs(np.zeros((len(labels), len(self.classes or [0]))), labels)]
        if figure not in there:
            raise UserError(
                f"--metric_for_best_model {figure}: the names for validation do not have it, with the labels that they "
                f"have; take {', '.join(there)}"
            )

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

    guessed, margins = logits.argmax(1), _margins(logits)
    classes = logits.shape[1]
    found = {
        "accuracy": float((guessed == labels).mean()),
        "macro_f1": float(f1_score(labels, guessed, average="macro")),
    }
    there = [each for each in range(classes) if 0 < (labels == each).sum() < len(labels)]
    if there:
        found["auc"] = float(np.mean([roc_auc_score(labels == each, margins[:, each]) for each in there]))
    if classes == 2 and len(there) == 2:
        for rate in RATES:
            found[f"recall_at_fpr_{rate}"] = recall_at(rate, margins[:, positive], labels == positive)[0]
    return found


def _margins(logits):
    """How much likelier each class is than the others together (N, C): log-odds, where a softmax is rounded to 1."""
    logits = logits.astype(np.float64)
    shares = np.exp(logits - logits.max(1, keepdims=True))
    best = np.arange(logits.shape[1]) == logits.argmax(1)[:, None]
    rest = np.where(best, 0, shares).sum(1, keepdims=True)  # no difference of nearly equal numbers
    return logits - logits.max(1, keepdims=True) - np.log(np.where(best, rest, 1 + rest - shares))


def class_shares(logits: np.ndarray) -> np.ndarray:
    """Logits (N, C) -> probabilities (N, C), float64: in float32 they are 1 from log-odds of 17 on."""
    return torch.from_numpy(logits).double().softmax(-1).numpy()


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
    if np.ptp(labels) > 0:
        found["r2"] = float(1 - (errors**2).sum() / spread)
        found["spearman"] = float(spearmanr(guessed, labels).statistic) if np.ptp(guessed) > 0 else 0.0
    return found


def class_report(classes: list[str], positive: int, logits: np.ndarray, labels: np.ndarray) -> dict:
    """What is told of final weights alone: precision, recall, F1 and number of each class, the confusion matrix (rows
    are true labels), and of two classes the probability of the one to be found from which on a rate of false positives
    is kept to; None if that takes more than certainty.
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
        # Of the probabilities themselves, as ``classify`` tells them: where they are rounded, so is the rate.
        least = {rate: recall_at(rate, class_shares(logits)[:, positive], positives)[1] for rate in RATES}
        report["positive"] = classes[positive]
        report["thresholds"] = {str(rate): share if math.isfinite(share) else None for rate, share in least.items()}
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
        told = "none" if least is None else repr(least)
        lines.append(
            f"probability of {report['positive']} from which on {float(rate):.1%} of the others are taken too: {told}"
        )
    return lines
