"""Character-level language models of domain names: CANINE, continued on registered names.

What is here is imported when it is asked for: PyTorch and transformers take seconds and 0.3 GB or more, and names are
prepared without.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "DataCollatorForCodePointMasking": "masking",
    "DomainCanineConfig": "configuration_domain_canine",
    "DomainCanineForMaskedLM": "modeling_domain_canine",
    "DomainCanineForSequenceClassification": "modeling_domain_canine",
    "DomainCanineModel": "modeling_domain_canine",
    "DomainCanineTokenizer": "tokenization_domain_canine",
    "InvalidDomain": "normalization_domain_canine",
    "normalize_domain": "normalization_domain_canine",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
