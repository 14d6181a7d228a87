"""Names from patterns: unknown characters are revealed one at a time, and only valid names can come of it.

A pattern is a name with ``?`` (or ``[MASK]``) for one unknown character and ``*`` for any number of them; ``*`` alone
is every name. An unknown character is a letter, a digit or a hyphen, never a dot: so it is known where labels end, and
where a hyphen may stand.

Shapes: S states (names with hidden characters), C characters, A = 37 letters, digits and the hyphen.
"""

import itertools
import math
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from .normalization_domain_canine import MAX_LABEL, NAME_CHARACTERS, InvalidDomain, normalize_domain
from .scoring_domain_canine import encode, is_usual, score_names, slots_at_once, wide

LETTERS, HYPHEN = 26, 36  # of NAME_CHARACTERS
SEARCHES, REVEALED = ("beam", "sample"), ("confidence", "random")
LEAST_TEMPERATURE = 0.001  # below it the likeliest character is drawn anyway, and numbers overflow
# A pattern's forms: one for each length and suffix.
MOST_FORMS = 10_000
# Names that are drawn of a pattern at once.
MOST_DRAWN = 4096
# Rounds of sampling in which nothing new turns up before it is taken that there is nothing more.
ROUNDS = 8
# States of a form that a beam keeps, at least. Of patterns of 4 unknown characters the 10 best names had -11.4 nats on
# average with 16 states, -10.6 with 64, -10.4 with 128; the time is in proportion.
LEAST_BEAMS = 64
# A beam is not widened beyond: so many of the likeliest names may be left out.
MOST_BEAMS = 10_000


class BadPattern(ValueError):
    """What is wrong with a pattern, with the value, and what to do."""


@dataclass
class Completion:
    """A name that fits a pattern; its score is that of ``score_names`` with ``orders=0``, whichever the objective."""

    pattern: str
    name: str
    log_probability: float
    bits_per_character: float


def expand(pattern: str, length: tuple[int, int], suffixes: Iterable[str] | str = ()) -> list[str]:
    """A pattern -> its forms: names with ``?`` for each unknown character.

    Args:
        length: fewest and most characters of a label that ``*`` stands in.
        suffixes: allowed ones: those that a pattern's end may become, or all of them behind a pattern without a dot. A
            last label ``*`` stands for any of them, ``co.uk`` too. A text has commas between them.

    Raises:
        BadPattern: no name can come of it.
    """
    text = pattern.strip().lower().replace("[mask]", "?").removesuffix(".")
    # Where they stand side by side it makes no difference in which order.
    text = re.sub(r"[?*]*\*[?*]*", lambda found: "?" * found[0].count("?") + "*", text)
    if isinstance(suffixes, str):
        suffixes = filter(str.strip, suffixes.split(","))
    suffixes = [_suffix(suffix) for suffix in suffixes]
    if "." not in text:
        wholes = [f"{text}.{suffix}" for suffix in suffixes or ["com"]]
    elif suffixes:
        wholes = [whole for suffix in suffixes for whole in _with_suffix(text.split("."), suffix.split("."))]
        if not wholes:
            raise BadPattern(f"{pattern!r} ends in none of the suffixes {', '.join(suffixes)}")
    elif "*" in text.rsplit(".", 1)[1]:
        raise BadPattern(f"{pattern!r}: say which suffixes * may stand for")
    else:
        wholes = [text]
    forms = []
    for whole in wholes:
        if not whole.isascii():
            raise BadPattern(f"{whole!r} is not ASCII: write its Unicode labels in their xn-- form")
        most = MOST_FORMS + 1
        labels = [list(itertools.islice(_lengths(pattern, label, *length), most)) for label in whole.split(".")]
        for form in itertools.product(*labels):
            forms.append(".".join(form))
            if len(forms) > MOST_FORMS:
                raise BadPattern(f"{pattern!r} has more than {MOST_FORMS:,} forms: fewer *, or a narrower length")
    reasons = {form: _reason(form) for form in forms}
    forms = [form for form in reasons if reasons[form] is None]
    if not forms:
        raise BadPattern(f"{pattern!r} cannot become a domain name: {min(reasons.values()).replace('_', ' ')}")
    return forms


def _suffix(text):
    try:
        return normalize_domain(f"x.{text.strip().removeprefix('.')}").removeprefix("x.")
    except InvalidDomain as error:
        raise BadPattern(f"{text!r} is no suffix: {error.reason.replace('_', ' ')}") from error


def _with_suffix(labels, suffix):
    """The labels of a pattern that end in a suffix's, if they can."""
    head, tail = labels[: -len(suffix)], labels[-len(suffix) :]
    forms = [re.escape(label).replace(r"\?", ".").replace(r"\*", ".*") for label in tail]
    if head and all(map(re.fullmatch, forms, suffix)):
        yield ".".join(head + suffix)
    if labels[-1] == "*" and len(suffix) > 1:
        yield ".".join(labels[:-1] + suffix)


def _reason(form):
    """Why no name can come of a form: a stand-in letter is valid wherever an unknown character is."""
    try:
        normalize_domain(form.replace("?", "x"))
    except InvalidDomain as error:
        return error.reason
    return None


def _lengths(pattern, label, least, most):
    """A label with ``*`` -> the forms of each length in the range."""
    stars = label.count("*")
    if not stars:
        yield label
        return
    known = len(label) - stars
    if known > most:
        raise BadPattern(f"{pattern!r}: {label!r} is to have {most} characters at most, and has {known} already")
    pieces = label.split("*")
    for unknown in range(max(least - known, 0), most - known + 1):
        # All ways to deal out the unknown characters; where stars stand side by side they are the same.
        for bars in itertools.combinations(range(unknown + stars - 1), stars - 1):
            ends = (-1, *bars, unknown + stars - 1)
            counts = [end - start - 1 for start, end in itertools.pairwise(ends)]
            yield pieces[0] + "".join("?" * count + piece for count, piece in zip(counts, pieces[1:]))


class _States:
    """Names in the making, of one length and with as many unknown characters, on the model's device.

    Args:
        forms: (S,) forms.
        turns: (S, C) when each character is revealed, the highest first; None for the surest first.
    """

    def __init__(self, model, forms: list[str], turns: list[list[int]] | None):
        self.model, device = model, model.device
        self.ids = encode([form.replace("?", "x") for form in forms], device)
        self.open = torch.tensor([[character == "?" for character in form] for form in forms], device=device)  # (S, C)
        self.ids[:, 1:-1].masked_fill_(self.open, model.config.mask_code_point)
        self.allowed, self.third = (each.to(device) for each in _rules(forms))
        self.codes = torch.tensor([ord(character) for character in NAME_CHARACTERS], device=device)
        self.turns = None if turns is None else torch.tensor(turns, device=device)

    def take(self, states: torch.Tensor) -> None:
        for name in ("ids", "open", "allowed", "third", "turns"):
            if (each := getattr(self, name)) is not None:
                setattr(self, name, each[states])

    def names(self) -> list[str]:
        return [bytes(row).decode() for row in self.ids[:, 1:-1].tolist()]

    def choices(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The character that each state reveals next (S,), and log-probabilities of what it may be (S, A)."""
        if self.turns is not None:
            at = self.turns.masked_fill(~self.open, -1).argmax(1)
            return at, self._predict(at[:, None])[:, 0]
        every = self._predict()
        at = every.amax(-1).masked_fill(~self.open, -torch.inf).argmax(1)
        return at, every[torch.arange(len(at), device=at.device), at]

    def _predict(self, at=None):
        """Log-probabilities (S, K, A) at characters (S, K), by default at all, of what is allowed there."""
        most = max(1, slots_at_once(self.ids.device) // self.ids.shape[1])
        parts = torch.arange(len(self.ids), device=self.ids.device).split(most)
        found = torch.cat([self._logits(rows, None if at is None else at[rows]) for rows in parts])
        allowed = self.allowed.clone()
        hyphens = self.ids[:, 1:-1] == ord("-")
        beside = (self.third & hyphens.roll(-1, 1)) | (self.third & hyphens).roll(1, 1)
        allowed[..., HYPHEN] &= ~beside
        if at is not None:
            allowed = allowed.gather(1, at[..., None].expand(-1, -1, len(NAME_CHARACTERS)))
        return found.masked_fill(~allowed, -torch.inf).log_softmax(-1)

    def _logits(self, rows, at):
        ids = self.ids[rows]
        logits = self.model(
            input_ids=ids, masked_positions=None if at is None else at + 1, ascii_only=is_usual(self.model)
        ).logits
        return (logits[:, 1:-1] if at is None else logits)[..., self.codes].float()

    def reveal(self, at: torch.Tensor, choice: torch.Tensor) -> None:
        self.ids.scatter_(1, at[:, None] + 1, self.codes[choice][:, None])
        self.open.scatter_(1, at[:, None], False)


def _rules(forms):
    """What characters may become (S, C, A), and which is the third of four or more in its label (S, C).

    No hyphen at a label's ends; none as third and fourth both, such labels are reserved (RFC 5891, 4.2.3.1); letters
    alone in the last label.
    """
    allowed = torch.ones(len(forms), len(forms[0]), len(NAME_CHARACTERS), dtype=torch.bool)
    third = torch.zeros(len(forms), len(forms[0]), dtype=torch.bool)
    for row, form in enumerate(forms):
        start = 0
        for label in form.split("."):
            end = start + len(label)
            allowed[row, [start, end - 1], HYPHEN] = False
            if len(label) > 3:
                third[row, start + 2] = True
            start = end + 1
        allowed[row, form.rindex(".") + 1 :, LETTERS:] = False
    return allowed, third


def _alike(forms: list[str]) -> list[list[int]]:
    """Forms of one length and with as many unknown characters, by their index."""
    groups = {}
    for index, form in enumerate(forms):
        groups.setdefault((len(form), form.count("?")), []).append(index)
    return list(groups.values())


def _shuffled(count, chance):
    return chance.sample(range(count), count)


def _groups(model, forms, order, chances):
    """States of forms that are alike, and which forms they are."""
    turns = [_shuffled(len(form), chance) for form, chance in zip(forms, chances)] if order == "random" else None
    for group in _alike(forms):
        yield group, _States(model, [forms[i] for i in group], turns and [turns[i] for i in group])


@torch.inference_mode()
def sample(
    model, forms: list[str], order: str, temperature: float, top_k: int | None, chances: list[random.Random]
) -> list[str]:
    """A name for each form (F,), drawn character by character from its own of the chances (F,)."""
    draws = [[chance.random() for _ in range(form.count("?"))] for form, chance in zip(forms, chances)]
    names = [""] * len(forms)
    for group, states in _groups(model, forms, order, chances):
        for step in range(forms[group[0]].count("?")):
            at, found = states.choices()
            if top_k is not None:
                least = found.topk(min(top_k, len(NAME_CHARACTERS))).values[:, -1:]
                found = found.masked_fill(found < least, -torch.inf)
            # A draw of its own for each row, which torch.multinomial has not: a name depends on no other of the batch.
            ends = (found / temperature).softmax(-1).cpu().double().cumsum(-1)
            drawn = torch.tensor([[draws[index][step]] for index in group], dtype=torch.float64) * ends[:, -1:]
            states.reveal(at, torch.searchsorted(ends, drawn, right=True)[:, 0].to(at.device))
        for index, name in zip(group, states.names()):
            names[index] = name
    return names


@torch.inference_mode()
def beam_search(model, forms: list[str], order: str, beams: int, chances: list[random.Random]) -> list[list[str]]:
    """For each form (F,) the names whose characters were likeliest when they were revealed, at most ``beams``.

    All names of a form are revealed in one order, if that is ``random``, from its own of the chances (F,).
    """
    found: list[list[str]] = [[] for _ in forms]
    for group, states in _groups(model, forms, order, chances):
        width = 1
        totals = torch.zeros(len(group), 1, dtype=wide(model.device), device=model.device)  # (F, W)
        for _ in range(forms[group[0]].count("?")):
            at, gains = states.choices()
            gains, letters = gains.topk(min(beams, len(NAME_CHARACTERS)))  # (F W, b)
            branches = gains.shape[1]
            reached = (totals[..., None] + gains.view(len(group), width, branches)).flatten(1)  # (F, W b)
            # There is one way to a name: what is revealed next goes by the state alone.
            totals, which = reached.topk(min(beams, reached.shape[1]))
            parents = which // branches + torch.arange(len(group), device=at.device)[:, None] * width
            width = totals.shape[1]
            chosen = letters.view(len(group), -1).gather(1, which).flatten()
            states.take(parents.flatten())
            states.reveal(at[parents.flatten()], chosen)
        names = iter(states.names())
        for index, row in zip(group, totals.tolist()):
            found[index] = [name for total, name in zip(row, names) if total > -torch.inf]
    return found


def check_options(
    count: int, length: tuple[int, int], search: str, order: str, temperature: float, top_k: int | None
) -> None:
    """Raises ValueError for what ``complete`` cannot take, and says what it can."""
    if not (isinstance(length, tuple | list) and len(length) == 2 and 1 <= length[0] <= length[1] <= MAX_LABEL):
        raise ValueError(f"length must be the least and the most, from 1 to {MAX_LABEL}, as (4, 12), not {length!r}")
    for name, value in (("count", count), ("top_k", top_k)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    if not LEAST_TEMPERATURE <= temperature < math.inf:
        raise ValueError(f"temperature must be {LEAST_TEMPERATURE} or more, not {temperature:g}")
    for name, value, known in (("search", search, SEARCHES), ("order", order, REVEALED)):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}")
    if search != "sample" and (temperature != 1 or top_k is not None):
        raise ValueError("temperature and top_k are for drawing: take search sample")


def complete(
    model,
    patterns: list[str],
    count: int = 10,
    length: tuple[int, int] = (4, 12),
    suffixes: Iterable[str] | str = (),
    search: str = "beam",
    order: str = "confidence",
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
    exclude: Iterable[str] = (),
) -> list[list[Completion]]:
    """Names for each pattern, the best first by bits per character; no name twice, none that is in ``exclude``.

    What a pattern becomes depends on no other one.

    Args:
        model: DomainCanineForMaskedLM in evaluation mode.
        patterns: as of the module.
        count: names for each pattern; there may be fewer.
        length, suffixes: as of ``expand``.
        search: ``beam`` looks for what is likeliest, the wider the higher ``count``; ``sample`` draws, each form of a
            pattern as often as the others.
        order: ``confidence`` reveals the surest character first, ``random`` any.
        temperature, top_k: of ``sample``; below 1 it prefers what is likelier, and only the ``top_k`` likeliest count.
        seed: of draws and random orders.
        exclude: names as ``normalize_domain`` makes them.

    Raises:
        BadPattern: no name can come of one.
        ValueError: an option will not do.
    """
    check_options(count, length, search, order, temperature, top_k)
    suffixes = suffixes if isinstance(suffixes, str) else [*suffixes]
    forms = [expand(pattern, length, suffixes) for pattern in patterns]
    chances = [random.Random(f"{seed} {pattern}") for pattern in patterns]
    exclude = frozenset(exclude)
    if search == "beam":
        names = _beams(model, forms, order, count, chances, exclude)
    else:
        names = _samples(model, forms, order, temperature, top_k, count, chances, exclude)
    every = sorted({name for found in names for name in found})
    # The bound of an any_order model ranks worse: 2.9% of hidden names were among the best three, by this 6.7%.
    scores = {score.name: score for score in score_names(model, every, orders=0)}
    completed = []
    for pattern, found in zip(patterns, names):
        ranked = sorted((scores[name] for name in found), key=lambda score: (score.bits_per_character, score.name))
        completed.append(
            [Completion(pattern, each.name, each.log_probability, each.bits_per_character) for each in ranked[:count]]
        )
    return completed


def _beams(model, forms, order, count, chances, exclude):
    """Names, a set for each pattern, of a beam that is widened while too few are left of it and it has found no end."""
    names, open_ = [set() for _ in forms], range(len(forms))
    width = min(max(LEAST_BEAMS, 2 * count), MOST_BEAMS)
    while open_:
        flat = [(i, form) for i in open_ for form in forms[i]]
        found = beam_search(model, [form for _, form in flat], order, width, [chances[i] for i, _ in flat])
        more = set()
        for (i, _), each in zip(flat, found):
            names[i].update(each)
            if len(each) == width < MOST_BEAMS:
                more.add(i)
        open_ = [i for i in open_ if i in more and len(names[i] - exclude) < count]
        width = min(4 * width, MOST_BEAMS)
    return [each - exclude for each in names]


def _samples(model, forms, order, temperature, top_k, count, chances, exclude):
    names, idle = [set() for _ in forms], [0] * len(forms)
    while open_ := [i for i in range(len(forms)) if len(names[i]) < count and idle[i] < ROUNDS]:
        wanted = [(i, form) for i in open_ for form in _spread(forms[i], min(count, MOST_DRAWN), chances[i])]
        mine = [chances[i] for i, _ in wanted]
        drawn = sample(model, [form for _, form in wanted], order, temperature, top_k, mine)
        before = [len(each) for each in names]
        for (i, _), name in zip(wanted, drawn):
            if name not in exclude and len(names[i]) < count:  # the first ones: the best would be no draw
                names[i].add(name)
        for i in open_:
            idle[i] = idle[i] + 1 if len(names[i]) == before[i] else 0
    return names


def _spread(forms, wanted, chance):
    """So many of a pattern's forms, each as often as the others."""
    shuffled = _shuffled(len(forms), chance)
    return [forms[shuffled[i % len(forms)]] for i in range(wanted)]
