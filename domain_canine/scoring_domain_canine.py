"""How likely a model finds names, character by character.

Two measures, both in nats of log-probability, and both sums over a name's characters:

- pseudo-log-likelihood (Salazar et al. 2020, arXiv:1910.14659), for models trained with ``mlm``: each character is
  masked alone and predicted from all others. It ranks names well and is no probability: the terms see each other.
- a bound on the log-likelihood, for models trained with ``any_order``: a name is revealed one character at a time, in
  orders drawn by a seed. At each step all hidden characters are predicted, and their mean stands for the one that is
  next (Hoogeboom et al. 2022, arXiv:2110.02037); so a few orders are enough.

Shapes: N names, R rows (a row is a name with something hidden), L code points with [CLS] and [SEP], V classes.
"""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from .layers_domain_canine import ASCII, SPECIAL, SPECIAL_END
from .tokenization_domain_canine import CLS, PAD, SEP

# Character slots computed at once: on a CPU what its caches hold (of 2,048 to 32,768 the small model was quickest here,
# by 28% over the most), elsewhere enough to keep the device busy.
SLOTS_ON_CPU, SLOTS = 4096, 32_768
# Orders that a bound is the mean of.
ORDERS = 4


@dataclass
class NameScore:
    """A name's score.

    Args:
        name: as it was given.
        characters: log-probability of each character, in nats.
    """

    name: str
    characters: list[float]

    @property
    def log_probability(self) -> float:
        """In nats."""
        return math.fsum(self.characters)

    @property
    def bits_per_character(self) -> float:
        """The lower, the likelier; comparable between names of different lengths."""
        return -self.log_probability / math.log(2) / len(self.characters)


@torch.inference_mode()
def score_names(model, names: list[str], orders: int | None = None, seed: int = 0) -> list[NameScore]:
    """Score names, in their order; a name's score depends on no other name.

    Args:
        model: DomainCanineForMaskedLM in evaluation mode.
        names: as ``normalize_domain`` makes them.
        orders: how many orders of revealing to average over; 0 for the pseudo-log-likelihood. By default 0 for a model
            that was trained with ``mlm``, ORDERS for one trained with ``any_order``.
        seed: of the orders.
    """
    if orders is None:
        orders = ORDERS if model.config.objective == "any_order" else 0
    scores: list[NameScore | None] = [None] * len(names)
    for group in by_length(names, model.device, lambda length: length * max(orders, 1)):
        mine = [names[index] for index in group]
        totals = _any_order(model, mine, orders, seed) if orders else _one_by_one(model, mine)
        for index, name, row in zip(group, mine, totals.tolist()):
            scores[index] = NameScore(name, row[: len(name)])
    return scores


def wide(device: torch.device) -> torch.dtype:
    """What sums are kept in: Apple's GPUs have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def slots(characters):
    """What the model computes for names of so many: [CLS], [SEP], two more, in whole molecules."""
    return (characters + 7) // 4 * 4


def slots_at_once(device: torch.device) -> int:
    return SLOTS_ON_CPU if device.type == "cpu" else SLOTS


def by_length(
    names: list[str], device: torch.device, rows: Callable[[int], int] = lambda length: 1
) -> Iterator[list[int]]:
    """Indices of names of like lengths, longest first, as many at once as ``slots_at_once`` have room for.

    Args:
        device: where they are computed.
        rows: the length of a name -> how many rows it takes.
    """
    order, start = sorted(range(len(names)), key=lambda index: -len(names[index])), 0
    while start < len(order):
        length = len(names[order[start]])
        end = start + max(1, slots_at_once(device) // (slots(length) * rows(length)))
        yield order[start:end]
        start = end


def encode(names: list[str], device: torch.device) -> torch.Tensor:
    """Names -> their code points with [CLS] and [SEP] (N, L), L the longest one's."""
    longest = max(map(len, names))
    text = "".join(f"{chr(CLS)}{name}{chr(SEP)}".ljust(longest + 2, chr(PAD)) for name in names)
    ids = torch.frombuffer(bytearray(text.encode("utf-32-le")), dtype=torch.int32)
    return ids.view(len(names), -1).long().to(device)


def is_usual(model) -> bool:
    """Whether the mask is among the code points that the model looks up sooner, as the characters of names are."""
    mask = model.config.mask_code_point
    return mask < ASCII or SPECIAL <= mask < SPECIAL_END


def log_probabilities(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Logits (R, K, V) and code points (R, K) -> their log-probability (R, K), ``wide``: it is to be summed."""
    logits = logits.float()
    return (logits.gather(2, truth[..., None])[..., 0] - logits.logsumexp(-1)).to(wide(logits.device))


def each_alone(model, names: list[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each character of some names masked alone, a row (R) for each.

    Returns:
        Which name (R,), which of its characters (R,), its code point (R,), and the logits (R, V).
    """
    ids = encode(names, model.device)
    lengths = torch.tensor([len(name) for name in names], device=model.device)
    of = torch.repeat_interleave(lengths)
    at = torch.arange(len(of), device=of.device) - (lengths.cumsum(0) - lengths)[of]
    rows, positions = ids[of], at[:, None] + 1
    truth = rows.gather(1, positions)
    rows.scatter_(1, positions, model.config.mask_code_point)
    logits = [logits[:, 0] for _, logits in _in_parts(model, rows, positions)]
    return of, at, truth[:, 0], torch.cat(logits)


def _in_parts(model, rows, positions=None):
    """Which rows, and their logits at some positions or at all; as many at once as ``slots_at_once`` have room for.

    Those of one long name may be more.
    """
    for part in torch.arange(len(rows)).split(max(1, slots_at_once(rows.device) // rows.shape[1])):
        part = slice(int(part[0]), int(part[-1]) + 1)
        ids, at = rows[part], None if positions is None else positions[part]
        yield part, model(
            input_ids=ids, attention_mask=ids != PAD, masked_positions=at, ascii_only=is_usual(model)
        ).logits  # fmt: skip


def _one_by_one(model, names):
    """Log-probability of each character (N, C), all others seen."""
    of, at, truth, logits = each_alone(model, names)
    found = log_probabilities(logits[:, None], truth[:, None])[:, 0]
    return found.new_zeros(len(names), max(map(len, names))).index_put((of, at), found)


def _any_order(model, names, orders, seed):
    """Each character's share of the bound (N, C)."""
    ids = encode(names, model.device)
    width = ids.shape[1] - 2
    lengths = torch.tensor([len(name) for name in names], device=model.device)
    # When each character is revealed (N, orders, C), by the name alone.
    turns = [[_turns(name, seed, number, width) for number in range(orders)] for name in names]
    turns = torch.tensor(turns, device=model.device)
    of, order = (each.flatten() for each in torch.meshgrid(
        torch.arange(len(names), device=ids.device), torch.arange(orders, device=ids.device), indexing="ij"
    ))  # fmt: skip
    rows_each = lengths[of]
    pick = torch.repeat_interleave(rows_each)
    step = torch.arange(len(pick), device=ids.device) - (rows_each.cumsum(0) - rows_each)[pick]  # (R,) so many revealed
    of, order = of[pick], order[pick]
    hidden = turns[of, order] >= step[:, None]  # (R, C)
    hidden &= torch.arange(width, device=ids.device) < lengths[of, None]
    truth, rows = ids[of, 1:-1], ids[of]
    rows[:, 1:-1] = rows[:, 1:-1].masked_fill(hidden, model.config.mask_code_point)
    truth = truth.masked_fill(~hidden, 0)  # a [SEP] is no class
    found = [log_probabilities(logits[:, 1:-1], truth[part]) for part, logits in _in_parts(model, rows)]
    share = torch.cat(found) * hidden / hidden.sum(1, keepdim=True)
    return share.new_zeros(len(names), width).index_add(0, of, share) / orders


def _turns(name, seed, number, width):
    """When each character is revealed: a permutation of the name's, and 0 beyond."""
    turns = list(range(len(name)))
    random.Random(f"{seed} {number} {name}").shuffle(turns)
    return turns + [0] * (width - len(name))
