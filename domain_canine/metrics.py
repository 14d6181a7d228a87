"""Exact figures of a masked language model: sums over masked characters first, one division last."""

import math

import torch

from .masking import IGNORED
from .scoring_domain_canine import wide

DOT = ord(".")
LN2 = math.log(2)
# What is summed. The weights are 1, or n / k of the any_order objective; the suffix is the last dot and what follows.
SUMS = ("nats", "weight", "name_nats", "name_weight", "suffix_nats", "suffix_weight", "targets", "top1", "top5")


class MaskedFigures:
    """An evaluation of masked characters: batches in, figures out. The trainer knows no other thing of it."""

    def begin(self, device: torch.device) -> None:
        """A new evaluation, of a model on this device."""
        self._sums = torch.zeros(len(SUMS), dtype=wide(device), device=device)

    def add(self, model, batch: dict[str, torch.Tensor]) -> None:
        """A batch, on the device."""
        weights = batch.pop("loss_weights", None)
        suffix = suffix_positions(batch)
        labels = batch.pop("labels")
        self._sums += masked_sums(model(**batch).logits, labels, suffix, weights)

    def figures(self, accelerator) -> dict[str, float]:
        """Of the batches of all processes."""
        return figures(accelerator.reduce(self._sums, "sum"))

    def of_loss(self, loss: float) -> dict[str, float]:
        """What a loss means in other units, for the log."""
        return {"perplexity": perplexity(loss)}

    def line(self, metrics: dict[str, float]) -> str:
        """An evaluation's figures in a line."""
        whole, name, suffix = (told_perplexity(metrics[f"eval_perplexity{part}"]) for part in ("", "_name", "_suffix"))
        return (
            f"perplexity {whole} (name {name}, suffix {suffix}), "
            f"{metrics['eval_bits_per_character']:.3f} bits per character, "
            f"accuracy {metrics['eval_accuracy']:.1%}, top 5 {metrics['eval_accuracy_top5']:.1%}"
        )


def masked_sums(logits: torch.Tensor, labels: torch.Tensor, suffix: torch.Tensor, weights: torch.Tensor | None = None):
    """The SUMS of a batch.

    Args:
        logits: (B, K, V).
        labels: (B, K), -100 where there is no target.
        suffix: (B, K) bool, whether a target belongs to the suffix.
        weights: (B,) of each name, 1 by default.

    Returns:
        (9,) float64 tensor (float32 where the device has no float64) on the logits' device.
    """
    target = labels != IGNORED
    nats = torch.nn.functional.cross_entropy(
        logits.float().transpose(1, 2), labels, ignore_index=IGNORED, reduction="none"
    )
    best = logits.topk(min(5, logits.shape[-1]), dim=-1).indices == labels[..., None]
    weight = target.to(nats.dtype) if weights is None else target * weights[:, None].to(nats.dtype)
    nats = nats * weight
    name, suffix = target & ~suffix, target & suffix
    sums = (
        nats,
        weight,
        nats * name,
        weight * name,
        nats * suffix,
        weight * suffix,
        target,
        best[..., 0],
        best.any(-1),
    )
    return torch.stack([each.sum(dtype=wide(logits.device)) for each in sums])


def suffix_positions(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """(B, K) bool: which masked positions lie at or behind the name's last dot, masked dots included."""
    ids, positions, labels = batch["input_ids"], batch["masked_positions"], batch["labels"]
    dots = ids == DOT
    hidden = torch.zeros_like(ids).scatter_add_(1, positions, (labels == DOT).long()) > 0
    columns = torch.arange(ids.shape[1], device=ids.device)
    last = ((dots | hidden) * columns).amax(1, keepdim=True)
    return positions >= last


def figures(sums: torch.Tensor) -> dict[str, float]:
    """The SUMS of an evaluation -> its figures.

    ``loss`` is in nats per masked character, ``bits_per_character`` in bits; perplexities are of all masked
    characters, of those before the last dot (``name``) and of the rest (``suffix``); accuracies of all.
    """
    of = dict(zip(SUMS, sums.tolist()))

    def per(total, count):
        return of[total] / of[count] if of[count] else float("nan")

    loss = per("nats", "weight")
    return {
        "loss": loss,
        "perplexity": perplexity(loss),
        "perplexity_name": perplexity(per("name_nats", "name_weight")),
        "perplexity_suffix": perplexity(per("suffix_nats", "suffix_weight")),
        "bits_per_character": loss / LN2,
        "accuracy": per("top1", "targets"),
        "accuracy_top5": per("top5", "targets"),
        "masked_characters": int(of["targets"]),
    }


def perplexity(nats: float) -> float:
    return math.exp(nats) if nats < 700 else float("inf")


def told_perplexity(value: float) -> str:
    """With three decimals; that of a run that has diverged in few digits, too."""
    return f"{value:.3f}" if value < 1e6 else f"{value:.3g}"
