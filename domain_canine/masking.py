"""Which characters of a name are masked, and with what.

Every choice is a hash of (seed, epoch, name, position), so that batches may be cut in any way and a name is masked
the same. The batch it makes: ``input_ids`` and ``attention_mask`` (B, L), ``masked_positions`` and ``labels``
(B, K), and for the objective ``any_order`` also ``loss_weights`` (B,).
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from . import hashing
from .modeling_domain_canine import IGNORED
from .tokenization_domain_canine import CLS, MASK, PAD, SEP

# Every evaluation of every run asks the same question, whatever its own masking, seed and epoch.
EVALUATION_FRACTION, EVALUATION_SEED, EVALUATION_EPOCH = 0.15, 0, 2**32
# What random replacements are drawn from: the characters of registered names.
NAME_CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789-"
_ALPHABET = np.array([ord(character) for character in NAME_CHARACTERS])

# One number for each kind of draw, so that no two draws share their bits.
_COUNT, _ORDER, _OFFSET, _KIND, _CHARACTER = hashing.mix(np.arange(5))


@dataclass
class DataCollatorForCodePointMasking:
    """Masks characters of names for masked language modelling.

    Args:
        fraction: share of the characters to mask. A name of n characters gets ``max(1, floor(fraction n + u))`` of
            them, u uniform in [0, 1).
        mask_replace_prob, random_replace_prob: a masked character becomes the mask, or a random character of names,
            with these probabilities, and is left as it is otherwise (0.8 and 0.1 as BERT, 1.0 and 0.0 for masks only).
        span_length: characters are masked in runs of this length, 1 for single characters.
        objective: ``mlm``; or ``any_order``, where the number of masked characters k is uniform over 1 .. n, all
            become the mask, and the name's loss is weighted by n / k: the expected sum of the weighted nats bounds
            -log p(name) over all orders of revealing one character at a time (Uria et al. 2014, arXiv:1310.1757;
            Hoogeboom et al. 2022, arXiv:2110.02037). ``fraction`` and ``span_length`` do not matter then.
        vocab_size: code points from here on are no class of the head and never masked.
        seed: of all draws.
        epoch: of the draws of ``__call__``; count it up for fresh masks.
    """

    fraction: float = 0.15
    mask_replace_prob: float = 0.8
    random_replace_prob: float = 0.1
    span_length: int = 1
    objective: str = "mlm"
    mask_code_point: int = MASK
    vocab_size: int = 128
    seed: int = 42
    epoch: int = 0

    def __post_init__(self):
        if not 0 < self.fraction <= 1:
            raise ValueError(f"the masked fraction must lie in (0, 1], not {self.fraction}")
        if min(self.mask_replace_prob, self.random_replace_prob) < 0 or (
            self.mask_replace_prob + self.random_replace_prob > 1
        ):
            raise ValueError(
                "mask_replace_prob and random_replace_prob must be at least 0 and at most 1 together, not "
                f"{self.mask_replace_prob} and {self.random_replace_prob}"
            )
        if self.span_length < 1:
            raise ValueError(f"span_length must be at least 1, not {self.span_length}")

    def for_evaluation(self) -> "DataCollatorForCodePointMasking":
        """15% of the characters, all of them masked for good, from a fixed seed: what a user of ``fill-mask`` sees."""
        return DataCollatorForCodePointMasking(
            fraction=EVALUATION_FRACTION,
            mask_replace_prob=1.0,
            random_replace_prob=0.0,
            objective=self.objective,
            mask_code_point=self.mask_code_point,
            vocab_size=self.vocab_size,
            seed=EVALUATION_SEED,
            epoch=EVALUATION_EPOCH,
        )

    def __call__(self, features: list[dict]) -> dict[str, torch.Tensor]:
        """Collate tokenizer outputs (``input_ids`` with [CLS] and [SEP]; other keys are ignored).

        A name's own hash stands for its index, as with streams: equal names are masked alike within an epoch.
        """
        ids = [np.asarray(feature["input_ids"], dtype=np.int64) for feature in features]
        lengths = np.array([len(row) for row in ids])
        padded = np.full((len(ids), lengths.max()), PAD, dtype=np.int64)
        padded[np.arange(padded.shape[1]) < lengths[:, None]] = np.concatenate(ids)
        starts = np.arange(len(ids)) * padded.shape[1]
        return self.collate(padded, lengths, hashing.hash_names(padded.ravel(), starts, lengths), self.epoch)

    def collate(self, ids: np.ndarray, lengths: np.ndarray, names: np.ndarray, epoch: int) -> dict[str, torch.Tensor]:
        """Mask a padded batch.

        Args:
            ids: (B, L) code points, with whatever special ones; not changed.
            lengths: (B,) real code points of each row.
            names: (B,) index (or hash) of each name, which its draws come from.
            epoch: which its draws come from, too.
        """
        real = below(ids.shape[1]).take(lengths, axis=0)
        special = (ids == PAD) | (ids == CLS) | (ids == SEP) | (ids == self.mask_code_point)
        maskable = real & ~special & (ids < self.vocab_size)
        masked = self.mask(ids.astype(np.int32), maskable, maskable.sum(1), self.draws(names, epoch))
        return as_batch(masked, lengths)

    def draws(self, names: np.ndarray, epoch: int) -> np.ndarray:
        """What all draws for these names (B,) begin with: (4, B) uint64, a row for each kind."""
        name_key = hashing.key(hashing.key(self.seed, epoch, names))
        return hashing.mix(name_key ^ np.array([[_COUNT], [_ORDER], [_OFFSET], [_KIND]]))

    def mask(
        self,
        ids: np.ndarray,
        maskable: np.ndarray,
        count: np.ndarray,
        draws: np.ndarray,
        first: int = 0,
        most: int | None = None,
    ) -> dict[str, np.ndarray]:
        """Mask names whose draws are made: all of a batch but the attention mask.

        Args:
            ids: (B, L) int32, changed.
            maskable: (B, W) which of the W columns from ``first`` on may be masked.
            count: (B,) how many they are.
            draws: (4, B) as ``draws`` makes them.
            most: K; by default what the batch needs at most.
        """
        count_draw, order_draw, offset_draw, kind_draw = draws
        most = self.most(int(count.max(initial=0))) if most is None else most
        chosen = self._how_many(count_draw, count)
        target = below(most).take(chosen, axis=0)
        positions = self._which(order_draw, offset_draw, maskable, first, target)

        # From here on in one dimension, over the T targets alone: the slot of each in (B, K), its row, its cell.
        slot = np.flatnonzero(target)
        row, position = slot // most, positions.ravel()[slot]
        cell = row * ids.shape[1] + position
        truth = ids.ravel()[cell]
        labels = np.full(positions.shape, IGNORED, np.int32)
        labels.ravel()[slot] = truth
        ids.ravel()[cell] = self._with_what(kind_draw[row], ids.shape[1], position, truth)
        masked = {"input_ids": ids, "masked_positions": positions, "labels": labels}
        if self.objective == "any_order":
            masked["loss_weights"] = (count / np.maximum(chosen, 1)).astype(np.float32)
        return masked

    def most(self, characters: int) -> int:
        """A bound on the masked characters of a name, so that K depends on the length alone."""
        if self.objective == "any_order":
            return max(1, characters)
        return min(max(1, characters), int(self.fraction * characters) + 1)

    def _how_many(self, count_draw, count):
        u = hashing.unit(count_draw)
        if self.objective == "any_order":
            return np.minimum(count, 1 + (u * count).astype(np.int64))
        return np.minimum(count, np.maximum(1, (self.fraction * count + u).astype(np.int64)))

    def _which(self, order_draw, offset_draw, maskable, first, target):
        """Positions (B, K) of the masked characters in ascending order; where there is no ``target`` it is 0."""
        rows, width = maskable.shape
        stop, most = first + width, target.shape[1]
        if self.span_length > 1 and self.objective == "mlm":
            # Blocks of span_length, shifted by a random offset, are masked whole until the count is reached; the
            # last one in part. Characters of a block share a draw, and lie side by side in the order of the draws.
            offset = (offset_draw % np.uint64(self.span_length)).astype(np.int64)
            block = _keys(stop)[(np.arange(first, stop) + offset[:, None]) // self.span_length]
        else:
            block = _keys(stop)[None, first:].repeat(rows, axis=0)
        draw = hashing.mix(order_draw.repeat(width).reshape(rows, width) ^ block)
        # A column's place stands in the low bits of its draw, so that sorting the draws sorts the columns.
        low = np.uint64(2 ** stop.bit_length() - 1)
        draw &= ~low
        draw |= np.arange(first, stop, dtype=np.uint64)[None].repeat(rows, axis=0)
        draw[~maskable] = 2**64 - 1
        # The smallest K are a small part: to single them out before they are sorted takes half the time.
        draw.partition(min(most, width) - 1, axis=1)
        draw = draw[:, :most].copy()
        draw.sort(axis=1)
        positions = np.where(target, (draw & low).astype(np.int32), np.int32(stop))
        positions.sort(axis=1)
        return positions * target

    def _with_what(self, kind_draw, width, position, truth):
        """What stands at the masked positions (T,): the mask, a random character, or the true one."""
        if self.objective == "any_order" or self.mask_replace_prob == 1:
            return self.mask_code_point
        character_key = hashing.mix(kind_draw ^ _keys(width)[position])
        kind = hashing.unit(character_key)
        hidden = kind < self.mask_replace_prob
        shown = np.where(hidden, self.mask_code_point, truth)
        random = np.flatnonzero(~hidden & (kind < self.mask_replace_prob + self.random_replace_prob))
        drawn = hashing.mix(hashing.key(character_key[random]) ^ _CHARACTER) % np.uint64(len(_ALPHABET))
        shown[random] = _ALPHABET[drawn.astype(np.int64)]
        return shown


def as_batch(
    masked: dict[str, np.ndarray],
    lengths: np.ndarray,
    rows: slice = slice(None),
    most: int | None = None,
) -> dict[str, torch.Tensor]:
    """Some rows of masked names as a batch, cut to K: copies, so that a worker sends no more than them."""
    batch = {
        "input_ids": masked["input_ids"][rows].astype(np.int64),
        "masked_positions": masked["masked_positions"][rows, :most].astype(np.int64),
        "labels": masked["labels"][rows, :most].astype(np.int64),
    }
    batch["attention_mask"] = below(batch["input_ids"].shape[1]).take(lengths[rows], axis=0).astype(np.int64)
    if "loss_weights" in masked:
        batch["loss_weights"] = masked["loss_weights"][rows].copy()
    return {name: torch.from_numpy(values) for name, values in batch.items()}


@lru_cache
def below(width: int) -> np.ndarray:
    """(width + 1, width) bool: row n is True in its first n columns. To take rows is 10 times as fast as to compare."""
    return np.tri(width + 1, width, -1, dtype=bool)


@lru_cache
def _keys(count: int) -> np.ndarray:
    """What ``hashing.key`` makes of the numbers below ``count``."""
    return hashing.mix(np.arange(count))
