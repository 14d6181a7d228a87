"""Which characters of a name are masked, and with what.

Every choice is a hash of (seed, epoch, name) and its place, so that batches may be cut in any way and a name is masked
the same. The batch it makes: ``input_ids`` and ``attention_mask`` (B, L), ``masked_positions`` and ``labels``
(B, K), ``ascii_only`` (a bool, which spares the model look-ups), and for the objective ``any_order`` also
``loss_weights`` (B,).
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from . import hashing
from .layers_domain_canine import ASCII, SPECIAL, SPECIAL_END
from .modeling_domain_canine import IGNORED
from .normalization_domain_canine import NAME_CHARACTERS
from .tokenization_domain_canine import CLS, MASK, PAD, SEP

# Every evaluation of every run asks the same question, whatever its own masking, seed and epoch.
EVALUATION_FRACTION, EVALUATION_SEED, EVALUATION_EPOCH = 0.15, 0, 2**32
# What random replacements are drawn from.
_ALPHABET = np.array([ord(character) for character in NAME_CHARACTERS])

# One number for each kind of draw, so that no two draws share their bits.
_COUNT, _ORDER, _OFFSET, _KIND, _CHARACTER = hashing.mix(np.arange(5))
_NOTHING = np.iinfo(np.int32).max


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

    def __call__(self, features: list[dict]) -> dict[str, torch.Tensor | bool]:
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
        columns = np.argsort(~maskable, axis=1, kind="stable")
        masked = self.mask(ids.astype(np.int32), maskable.sum(1), self.draws(names, epoch), columns=columns)
        return as_batch(masked, lengths, ascii_only=bool(_is_usual(masked["input_ids"]).all()))

    @property
    def keeps_ascii(self) -> bool:
        """Whether names of ASCII are so, to the model, when they are masked."""
        return bool(_is_usual(np.array(self.mask_code_point)))

    def draws(self, names: np.ndarray, epoch: int) -> np.ndarray:
        """What all draws for these names (B,) begin with: (4, B) uint64, a row for each kind."""
        name_key = hashing.key(hashing.key(self.seed, epoch, names))
        return hashing.mix(name_key ^ np.array([[_COUNT], [_ORDER], [_OFFSET], [_KIND]]))

    def mask(
        self,
        ids: np.ndarray,
        count: np.ndarray,
        draws: np.ndarray,
        most: int | None = None,
        columns: np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        """Mask names whose draws are made: all of a batch but the attention mask.

        Args:
            ids: (B, L) int32, changed.
            count: (B,) how many characters of each may be masked.
            draws: (4, B) as ``draws`` makes them.
            most: K; by default what the batch needs at most.
            columns: (B, W) where those characters stand, in order; by default behind [CLS], from 1 on.
        """
        count_draw, order_draw, offset_draw, kind_draw = draws
        most = self.most(int(count.max(initial=0))) if most is None else most
        chosen = self._how_many(count_draw, count)
        target = below(most).take(chosen, axis=0)
        numbers = np.where(target, self._which(order_draw, offset_draw, count, chosen, most), 0)
        positions = numbers + 1 if columns is None else np.take_along_axis(columns, numbers.astype(np.int64), axis=1)
        positions = positions.astype(np.int32) * target

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

    def _which(self, order_draw, offset_draw, count, chosen, most):
        """Numbers (B, K) of the masked ones among ``count`` characters, ascending; any from ``chosen`` on."""
        if self.span_length == 1 or self.objective == "any_order":
            return _subsets(order_draw, count, chosen, most)
        # Spans are drawn as if each were one character of a name that is shorter by the rest of them, so that they do
        # not overlap; the last has what is left of the count. Then all go round by a random shift: every character is
        # as likely to be masked, and a span is cut where it meets the end.
        span, token = self.span_length, np.arange(most)
        spans = -(-chosen // span)
        begin = _subsets(order_draw, count - chosen + spans, spans, -(-most // span))
        found = begin[:, token // span] + token - token // span + _scale(offset_draw, count)[:, None]
        found %= np.maximum(count, 1)[:, None]
        found[token >= chosen[:, None]] = _NOTHING
        found.sort(axis=1)
        return found

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
    ascii_only: bool = False,
) -> dict[str, torch.Tensor | bool]:
    """Some rows of masked names as a batch, cut to K: copies, so that a worker sends no more than them."""
    batch = {
        "input_ids": masked["input_ids"][rows].astype(np.int64),
        "masked_positions": masked["masked_positions"][rows, :most].astype(np.int64),
        "labels": masked["labels"][rows, :most].astype(np.int64),
    }
    batch["attention_mask"] = below(batch["input_ids"].shape[1]).take(lengths[rows], axis=0).astype(np.int64)
    if "loss_weights" in masked:
        batch["loss_weights"] = masked["loss_weights"][rows].copy()
    return {name: torch.from_numpy(values) for name, values in batch.items()} | {"ascii_only": ascii_only}


def _is_usual(code_points: np.ndarray) -> np.ndarray:
    """Which code points the model knows by its small table."""
    return (code_points < ASCII) | (code_points >= SPECIAL) & (code_points < SPECIAL_END)


def _subsets(draws: np.ndarray, size: np.ndarray, chosen: np.ndarray, most: int) -> np.ndarray:
    """``chosen`` of the numbers below ``size``, every subset as likely, for each name (B,) -> (B, most), ascending.

    What lies beyond ``chosen`` is no number. The j-th is drawn from the first ``size - chosen + j + 1`` numbers, and is
    the last of these if it was drawn before (Floyd's sampling, Bentley and Floyd 1987): one draw a masked character.
    With a draw for every character, and the smallest taken, batches are made at 2.7 M names/s instead of 4.1 M.
    """
    j = np.arange(most)[:, None]
    last = (size - chosen + j).astype(np.int32)
    found = _scale(hashing.mix(draws ^ _keys(most)[:, None]), last + 1).astype(np.int32)
    for i in range(1, most):
        np.copyto(found[i], last[i], where=(found[:i] == found[i]).any(0))
    found[j >= chosen] = _NOTHING
    return np.sort(found.T.copy(), axis=1)


def _scale(draws, size):
    """uint64 -> int64 in [0, size), size below 2**32."""
    return ((draws >> np.uint64(32)) * size.astype(np.uint64) >> np.uint64(32)).astype(np.int64)


@lru_cache
def below(width: int) -> np.ndarray:
    """(width + 1, width) bool: row n is True in its first n columns. To take rows is 10 times as fast as to compare."""
    return np.tri(width + 1, width, -1, dtype=bool)


@lru_cache
def _keys(count: int) -> np.ndarray:
    """What ``hashing.key`` makes of the numbers below ``count``."""
    return hashing.mix(np.arange(count))
