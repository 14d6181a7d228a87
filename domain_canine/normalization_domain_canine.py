"""Clean domain names: one line of text in, one A-label name out, or the reason why not.

The rules are those of registered names (RFC 1034 §3.5 and RFC 1123 §2.1 for letters, digits and hyphens and for
the limits of 63 and 253; RFC 5890 for A-labels; UTS 46 for Unicode input). Labels that are ASCII already bypass
IDNA: registered names such as ``r3---sn-4g5.com`` and ``xn--53h.com`` are real, yet IDNA-invalid.

This file travels inside every checkpoint and needs the standard library only; ``idna`` is asked for when a name
with a non-ASCII label is seen.
"""

import re

MAX_NAME = 253
MAX_LABEL = 63
NAME_CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789-"  # of labels

# Every reason an InvalidDomain can carry.
REASONS = (
    "empty",
    "one_label",
    "bad_character",
    "bad_label",
    "too_long",
    "ip_address",
    "url",
    "undecodable",
)

_EDGE, _INNER = "[a-z0-9]", "[a-z0-9-]"  # of a label
_LABEL = rf"{_EDGE}(?:{_INNER}{{0,{MAX_LABEL - 2}}}{_EDGE})?"
# The common case in one match: what it accepts is a valid name already. The look-ahead wants a letter or a hyphen
# in the last label; a last label of digits alone is an address or a mistake.
_CLEAN = re.compile(rf"(?:{_LABEL}\.)+(?={_INNER}*[a-z-]){_LABEL}", re.ASCII)
# The same for engines without look-ahead, of trimmed lower-case text of at most MAX_LABEL characters: a part of what
# is valid, nearly all of it. The last character is a letter, but for a trailing dot.
PLAIN = rf"^(?:{_EDGE}(?:{_INNER}*{_EDGE})?\.)+(?:{_EDGE}{_INNER}*)?[a-z]\.?$"
_BAD_CHARACTER = re.compile(r"[^a-z0-9.-]", re.ASCII)
_IPV4 = re.compile(r"\d{1,3}(?:\.\d{1,3}){3}", re.ASCII)
_IPV6 = re.compile(r"\[?[0-9a-f]*:[0-9a-f:.]*\]?", re.ASCII)
# White space, all of it below U+3001, and the byte order mark, which str.strip() would leave in place.
_TRIMMED = "".join(character for character in map(chr, range(0x3001)) if character.isspace()) + "\ufeff"
# UTS 46 reads the ideographic full stops as dots.
_DOTS = re.compile("[\u3002\uff0e\uff61]")


class InvalidDomain(ValueError):
    """A text that is not a domain name; ``reason`` is one of REASONS."""

    def __init__(self, text: str, reason: str):
        super().__init__(f"{text!r} is not a domain name: {reason.replace('_', ' ')}")
        self.text = text
        self.reason = reason

    def __reduce__(self):
        return type(self), (self.text, self.reason)


def normalize_domain(text: str) -> str:
    """The A-label form of a domain name: lower case, ASCII, no trailing dot.

    Trims white space and a byte order mark, drops one trailing dot, lower-cases, and turns Unicode labels into
    ``xn--`` labels by UTS 46. Idempotent: a normalised name is returned as it is.

    Raises:
        InvalidDomain: for everything else, with a reason of REASONS.
    """
    name = text.lower() if text.isascii() else text
    if _CLEAN.fullmatch(name) and len(name) <= MAX_NAME:
        return name
    name = text.strip(_TRIMMED)
    if not name:
        raise InvalidDomain(text, "empty")
    # A byte that was no UTF-8 arrives as a lone surrogate (PEP 383) or as U+FFFD.
    if any("\ud800" <= character <= "\udfff" or character == "\ufffd" for character in name):
        raise InvalidDomain(text, "undecodable")
    if "/" in name:
        raise InvalidDomain(text, "url")
    if not name.isascii():
        name = _to_ascii(text, _DOTS.sub(".", name))
    name = name.lower()
    name = name.removesuffix(".")
    if _IPV4.fullmatch(name) or _IPV6.fullmatch(name) and name.count(":") > 1:
        raise InvalidDomain(text, "ip_address")
    if _BAD_CHARACTER.search(name):
        raise InvalidDomain(text, "bad_character")
    labels = name.split(".")
    if len(labels) < 2:
        raise InvalidDomain(text, "one_label")
    if len(name) > MAX_NAME or any(len(label) > MAX_LABEL for label in labels):
        raise InvalidDomain(text, "too_long")
    if not _CLEAN.fullmatch(name):
        raise InvalidDomain(text, "bad_label")
    return name


def is_domain(text: str) -> bool:
    """Whether ``normalize_domain`` makes a name of it."""
    try:
        normalize_domain(text)
    except InvalidDomain:
        return False
    return True


def _to_ascii(text: str, name: str) -> str:
    """Non-ASCII labels by UTS 46 (non-transitional), the ASCII ones as they are."""
    try:
        import idna
    except ImportError as error:
        raise ImportError("names with non-ASCII labels need the package idna: pip install idna") from error
    labels = []
    for label in name.split("."):
        if not label.isascii():
            try:
                label = idna.encode(label, uts46=True).decode("ascii")
            except idna.IDNAError as error:
                long = "too long" in str(error)
                raise InvalidDomain(text, "too_long" if long else "bad_character") from error
            except UnicodeError as error:
                raise InvalidDomain(text, "bad_character") from error
        labels.append(label)
    return ".".join(labels)
