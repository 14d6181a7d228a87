"""Which characters of a name are masked, and with what.

Every choice is a hash of (seed, epoch, name, position), so that batches may be cut in any way and a name is masked
the same. The batch it makes: ``input_ids`` and ``attention_mask`` (B, L), ``masked_positions`` and ``labels``
(B, K), and for the objective ``any_order`` also ``loss_weights`` (B,).
"""

from dataclasses import dataclass

import numpy as np
import torch

from . import hashing
from .modeling_domain_canine import IGNORED
from .tokenization_domain_canine import CLS, MASK, PAD, SEP

# Every evaluation of every run asks the same question, whatever its own masking, seed and epoch.
EVALUATION_FRACTION, EVALUATION_SEED, EVALUATION_EPOCH = 0.15, 0, 2**32
# What random replacements are drawn from: the characters of registered names.
NAME_CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789-"

# One number for each kind of draw, so that no two draws share their bits.
_COUNT, _ORDER, _OFFSET, _KIND, _CHARACTER = range(5)


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
        return self.collate(padded, lengths, hashing.hash_names(padded, lengths), self.epoch)

    def collate(self, ids: np.ndarray, lengths: np.ndarray, names: np.ndarray, epoch: int) -> dict[str, torch.Tensor]:
        """Mask a padded batch.

        Args:
            ids: (B, L) code points, with whatever special ones; not changed.
            lengths: (B,) real code points of each row.
            names: (B,) index (or hash) of each name, which its draws come from.
            epoch: which its draws come from, too.
        """
        real = np.arange(ids.shape[1]) < lengths[:, None]
        special = (ids == PAD) | (ids == CLS) | (ids == SEP) | (ids == self.mask_code_point)
        maskable = real & ~special & (ids < self.vocab_size)
        count = maskable.sum(1)
        row_key = hashing.key(self.seed, epoch, names)
        chosen = self._how_many(row_key, count)
        positions = self._which(row_key, maskable, chosen, self._most(int(count.max(initial=0))))

        target = np.arange(positions.shape[1]) < chosen[:, None]
        truth = np.take_along_axis(ids, positions, axis=1)
        masked = ids.copy()
        masked[np.nonzero(target)[0], positions[target]] = self._with_what(row_key, positions, truth)[target]
        batch = {
            "input_ids": torch.from_numpy(masked),
            "attention_mask": torch.from_numpy(real.astype(np.int64)),
            "masked_positions": torch.from_numpy(positions),
            "labels": torch.from_numpy(np.where(target, truth, IGNORED)),
        }
        if self.objective == "any_order":
            batch["loss_weights"] = torch.from_numpy((count / np.maximum(chosen, 1)).astype(np.float32))
        return batch

    def _most(self, characters: int) -> int:
        """A bound on the masked characters of a name, so that K depends on the length alone."""
        if self.objective == "any_order":
            return max(1, characters)
        return min(max(1, characters), int(self.fraction * characters) + 1)

    def _how_many(self, row_key, count):
        u = hashing.unit(hashing.key(row_key, _COUNT))
        if self.objective == "any_order":
            return np.minimum(count, 1 + np.floor(u * count).astype(np.int64))
        return np.minimum(count, np.maximum(1, np.floor(self.fraction * count + u).astype(np.int64)))

    def _which(self, row_key, maskable, chosen, most):
        """Positions (B, K) of the masked characters in ascending order; what lies beyond ``chosen`` is 0."""
        length = maskable.shape[1]
        if self.span_length > 1 and self.objective == "mlm":
            # Blocks of span_length, shifted by a random offset, are masked whole until the count is reached; the
            # last one in part. Characters of a block share a draw, and the stable sort keeps them together.
            offset = hashing.key(row_key, _OFFSET) % np.uint64(self.span_length)
            block = (np.arange(length, dtype=np.uint64) + offset[:, None]) // np.uint64(self.span_length)
        else:
            block = np.arange(length, dtype=np.uint64)[None]
        draw = hashing.key(row_key[:, None], _ORDER, block) >> np.uint64(1)
        draw = np.where(maskable, draw, np.uint64(2**64 - 1))
        order = np.argsort(draw, axis=1, kind="stable")[:, :most]
        beyond = np.arange(order.shape[1]) >= chosen[:, None]
        positions = np.sort(np.where(beyond, length, order), axis=1)
        return np.where(beyond, 0, positions)

    def _with_what(self, row_key, positions, truth):
        """What stands at the masked positions: the mask, a random character, or the true one."""
        if self.objective == "any_order" or self.mask_replace_prob == 1:
            return np.full_like(truth, self.mask_code_point)
        character_key = hashing.key(row_key[:, None], _KIND, positions)
        kind = hashing.unit(character_key)
        drawn = hashing.key(character_key, _CHARACTER) % np.uint64(len(NAME_CHARACTERS))
        alphabet = np.frombuffer(NAME_CHARACTERS.encode("ascii"), dtype=np.uint8).astype(truth.dtype)
        random = alphabet[drawn.astype(np.int64)]
        replaced = np.where(kind < self.mask_replace_prob + self.random_replace_prob, random, truth)
        return np.where(kind < self.mask_replace_prob, self.mask_code_point, replaced)
