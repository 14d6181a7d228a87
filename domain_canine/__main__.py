"""``python -m domain_canine``."""

from .cli import entry

entry()
