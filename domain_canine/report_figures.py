"""What a model knows of names, character by character: each is masked alone and predicted from all others.

Shapes: N names, C characters of all of them.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from .scoring_domain_canine import by_length, each_alone, log_probabilities

LN2 = math.log(2)


@dataclass
class Characters:
    """Every character of N names.

    Args:
        names: (N,) the names.
        of, at: (C,) which name, and which of its characters.
        nats: (C,) minus the log-probability of the character.
        rank: (C,) how many classes are likelier than it: 0 where the model is right.
    """

    names: list[str]
    of: np.ndarray
    at: np.ndarray
    nats: np.ndarray
    rank: np.ndarray

    def rows(self, keys: Iterable) -> list["Row"]:
        """Figures of the characters with the same key, (C,) keys, in order of the keys."""
        keys, which = np.unique(np.asarray(keys), return_inverse=True)
        counts = np.bincount(which)
        hits, top5 = (np.bincount(which, self.rank < most) / counts for most in (1, 5))
        bits = np.bincount(which, self.nats) / counts / LN2
        return [Row(*row) for row in zip(keys.tolist(), counts.tolist(), hits.tolist(), top5.tolist(), bits.tolist())]

    def from_start(self) -> list["Row"]:
        """By the place in the name, the first character's being 1."""
        return self.rows(self.at + 1)

    def from_end(self) -> list["Row"]:
        """By the place from the end, the last character's being 1."""
        return self.rows(np.array([len(name) for name in self.names])[self.of] - self.at)

    def by_character(self) -> list["Row"]:
        """The most frequent first."""
        text = np.array([self.names[of][at] for of, at in zip(self.of, self.at)])
        return sorted(self.rows(text), key=lambda row: -row.count)

    def by_part(self) -> list["Row"]:
        """Of the name, of the suffix (the last dot and what follows), of both."""
        dots = np.array([name.rindex(".") for name in self.names])[self.of]
        parts = np.where(self.at < dots, "name", "suffix")
        return self.rows(parts) + self.rows(np.full(len(parts), "both"))

    def of_names(self) -> list["NameBits"]:
        """The most surprising first, by bits per character."""
        bounds = np.searchsorted(self.of, np.arange(1, len(self.names)))
        each = [NameBits(name, (nats / LN2).tolist()) for name, nats in zip(self.names, np.split(self.nats, bounds))]
        return sorted(each, key=lambda name: -name.mean)


@dataclass
class Row:
    """Figures of ``count`` characters: shares of them that the model finds first, and among its first five."""

    key: str | int
    count: int
    accuracy: float
    top5: float
    bits: float

    @property
    def perplexity(self) -> float:
        return 2**self.bits


@dataclass
class NameBits:
    """A name, and how surprising each of its characters is."""

    name: str
    bits: list[float]

    @property
    def mean(self) -> float:
        """Bits per character."""
        return math.fsum(self.bits) / len(self.bits)


@torch.inference_mode()
def look_at(model, names: list[str]) -> Characters:
    """Mask each character of N > 0 names alone; a bar tells of it on a terminal.

    Args:
        model: DomainCanineForMaskedLM in evaluation mode.
        names: as ``normalize_domain`` makes them.
    """
    found = []
    with tqdm(total=len(names), unit=" names", desc="looking at names", disable=None) as bar:
        for group in by_length(names, model.device, lambda length: length):
            of, at, truth, logits = each_alone(model, [names[index] for index in group])
            nats = -log_probabilities(logits[:, None], truth[:, None])[:, 0]
            rank = (logits > logits.gather(1, truth[:, None])).sum(1)
            of = torch.tensor(group)[of.cpu()]
            found.append([each.cpu().numpy() for each in (of, at, nats, rank)])
            bar.update(len(group))
    of, at, nats, rank = (np.concatenate(each) for each in zip(*found))
    back = np.lexsort((at, of))
    return Characters(names, of[back], at[back], nats[back], rank[back])
