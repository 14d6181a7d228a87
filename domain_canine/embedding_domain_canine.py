"""Names as vectors: the mean of the final states of a name's characters.

The masked language modelling loss reads final states at characters alone, so that [CLS] and [SEP] are left out of the
mean: theirs are never trained. ``cls`` is for encoders that were fine-tuned with it.

Shapes: N names, B of them at once, L code points with [CLS] and [SEP], D width.
"""

import json
from pathlib import Path

import torch
from torch import nn

from .modeling_domain_canine import mean_of_characters
from .scoring_domain_canine import by_length, encode
from .tokenization_domain_canine import PAD

POOLINGS = ("mean", "cls")


@torch.no_grad()  # and not inference_mode: what is made of such tensors can be trained
def embed_names(model, names: list[str], pooling: str = "mean", normalize: bool = False) -> torch.Tensor:
    """Embed names, in their order; a name's embedding depends on no other name.

    Args:
        model: DomainCanineModel, or a model with a head on one, in evaluation mode.
        names: as ``normalize_domain`` makes them. Other text is taken as it is, code point by code point.
        pooling: ``mean`` of the characters' final states, or ``cls``, the final state at [CLS].
        normalize: to length 1, so that a dot product is the cosine.

    Returns:
        (N, D) float32, on the CPU.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling is {' or '.join(POOLINGS)}, not {pooling!r}")
    encoder = model.base_model
    embeddings = torch.empty(len(names), encoder.config.hidden_size)
    for group in by_length(names, encoder.device):
        mine = [names[index] for index in group]
        ids = encode(mine, encoder.device)
        states = encoder(
            input_ids=ids, attention_mask=ids != PAD, ascii_only=all(map(str.isascii, mine))
        ).last_hidden_state
        embeddings[group] = pool(states, ids != PAD, pooling).cpu()
    return nn.functional.normalize(embeddings, dim=1) if normalize else embeddings


def pool(states: torch.Tensor, attention_mask: torch.Tensor, pooling: str = "mean") -> torch.Tensor:
    """Final states (B, L, D), and which of them are real (B, L) -> embeddings (B, D), float32."""
    return states[:, 0].float() if pooling == "cls" else mean_of_characters(states.float(), attention_mask)


class CharacterPooling(nn.Module):
    """``pool`` as a module of sentence-transformers, whose own mean counts [CLS] and [SEP]."""

    def __init__(self, pooling: str = "mean"):
        super().__init__()
        self.pooling = pooling

    def forward(self, features: dict) -> dict:
        features["sentence_embedding"] = pool(features["token_embeddings"], features["attention_mask"], self.pooling)
        return features

    def save(self, folder: str, **kwargs) -> None:
        (Path(folder) / "config.json").write_text(json.dumps({"pooling": self.pooling}) + "\n")

    @classmethod
    def load(cls, folder: str) -> "CharacterPooling":
        return cls(**json.loads((Path(folder) / "config.json").read_text()))
