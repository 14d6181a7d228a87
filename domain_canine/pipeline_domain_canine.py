"""Pipelines that come with a checkpoint: ``domain-score``, ``domain-complete`` and ``domain-embed``.

score = pipeline("domain-score", model="…", trust_remote_code=True)
score("example.com")
complete = pipeline("domain-complete", model="…", trust_remote_code=True)
complete("py????.com", count=5)
embed = pipeline("domain-embed", model="…", trust_remote_code=True)
embed(["example.com", "example.org"], normalize=True)
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import islice

from transformers import Pipeline

from .completion_domain_canine import complete
from .embedding_domain_canine import embed_names
from .normalization_domain_canine import InvalidDomain, normalize_domain
from .scoring_domain_canine import score_names

BLOCK = 1024  # texts at once: enough to bring like lengths together


class _OfBlocks(Pipeline):
    """A pipeline over texts, a block at a time; what a text becomes depends on no other."""

    _load_processor = _load_tokenizer = _load_image_processor = _load_feature_extractor = False
    parameters: tuple[str, ...] = ()

    def _sanitize_parameters(self, **parameters):
        unknown = set(parameters) - set(self.parameters)
        if unknown:
            raise TypeError(f"{self.task} takes {', '.join(self.parameters)}, not {', '.join(sorted(unknown))}")
        return {}, parameters, {}

    def __call__(self, inputs: str | Iterable[str], batch_size=None, num_workers=None, **parameters):
        """A text -> its result; a list -> a list; any other iterable -> an iterator that reads as it goes."""
        if isinstance(inputs, str):
            return next(self._each([inputs], parameters))
        if hasattr(inputs, "__getitem__") and not isinstance(inputs, Iterable):  # as transformers' KeyDataset
            inputs = map(inputs.__getitem__, range(len(inputs)))
        if not isinstance(inputs, Iterable):
            raise TypeError(f"{self.task} takes a text or texts, not {inputs!r}")
        results = self._each(inputs, parameters)
        return list(results) if isinstance(inputs, list | tuple) else results

    def _each(self, texts, parameters) -> Iterator:
        _, forward, _ = self._sanitize_parameters(**parameters)
        texts = iter(texts)
        while block := list(islice(texts, BLOCK)):
            if wrong := [text for text in block if not isinstance(text, str)]:
                raise TypeError(f"{self.task} takes texts, not {wrong[0]!r}")
            yield from self.run_single(block, {}, self._forward_params | forward, {})

    def preprocess(self, texts):
        return {"texts": texts}

    def postprocess(self, rows):
        return rows["rows"]


class DomainScorePipeline(_OfBlocks):
    """How likely the model finds a name: ``log_probability`` (nats), ``bits_per_character``, ``characters``.

    What is no name has None there, and a ``reason``. Parameters: ``orders`` and ``seed`` of ``score_names``.
    """

    parameters = ("orders", "seed")

    def _forward(self, inputs, **parameters):
        names = [_normalized(text) for text in inputs["texts"]]
        scores = iter(score_names(self.model, [name for name, _ in names if name], **parameters))
        return {"rows": [
            _row(text, next(scores) if name else None, reason) for text, (name, reason) in zip(inputs["texts"], names)
        ]}  # fmt: skip


class DomainCompletePipeline(_OfBlocks):
    """Names for a pattern, the best first. Parameters: those of ``complete``."""

    parameters = ("count", "length", "suffixes", "search", "order", "temperature", "top_k", "seed", "exclude")

    def _sanitize_parameters(self, **parameters):
        """Once for all blocks: names to leave out are many, and an iterator is read but once."""
        if "exclude" in parameters:
            if isinstance(exclude := parameters["exclude"], str):
                raise TypeError(f"exclude must be names, as [{exclude!r}], not a text")
            parameters["exclude"] = {name for name, _ in map(_normalized, exclude) if name}
        if not isinstance(suffixes := parameters.get("suffixes", ""), str):
            parameters["suffixes"] = [*suffixes]
        return super()._sanitize_parameters(**parameters)

    def _forward(self, inputs, **parameters):
        completed = complete(self.model, inputs["texts"], **parameters)
        return {"rows": [[asdict(each) for each in found] for found in completed]}


class DomainEmbedPipeline(_OfBlocks):
    """A name's ``embedding``, D numbers; None for what is no name, and a ``reason``.

    Parameters: ``pooling`` and ``normalize`` of ``embed_names``.
    """

    parameters = ("pooling", "normalize")

    def _forward(self, inputs, **parameters):
        names = [_normalized(text) for text in inputs["texts"]]
        embeddings = embed_names(self.model, [name for name, _ in names if name], **parameters)
        # No list of numbers yet: transformers looks at everything that is returned here, one by one.
        return {"texts": inputs["texts"], "names": names, "embeddings": embeddings}

    def postprocess(self, block):
        embeddings = iter(block["embeddings"].tolist())
        return [
            {"input": text, "name": name, "embedding": next(embeddings) if name else None, "reason": reason}
            for text, (name, reason) in zip(block["texts"], block["names"])
        ]


def _normalized(text):
    try:
        return normalize_domain(text), None
    except InvalidDomain as error:
        return None, error.reason


def _row(text, score, reason):
    return {
        "input": text,
        "name": score and score.name,
        "log_probability": score and score.log_probability,
        "bits_per_character": score and score.bits_per_character,
        "characters": score and score.characters,
        "reason": reason,
    }
