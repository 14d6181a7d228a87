"""Character-level language models of domain names: CANINE, continued on registered names."""

from .configuration_domain_canine import DomainCanineConfig
from .masking import DataCollatorForCodePointMasking
from .modeling_domain_canine import DomainCanineForMaskedLM, DomainCanineForSequenceClassification, DomainCanineModel
from .normalization_domain_canine import InvalidDomain, normalize_domain
from .tokenization_domain_canine import DomainCanineTokenizer

__version__ = "0.1.0"

__all__ = [
    "DataCollatorForCodePointMasking",
    "DomainCanineConfig",
    "DomainCanineForMaskedLM",
    "DomainCanineForSequenceClassification",
    "DomainCanineModel",
    "DomainCanineTokenizer",
    "InvalidDomain",
    "normalize_domain",
]
