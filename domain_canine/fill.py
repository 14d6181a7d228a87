"""Fill in masked characters, one at a time, the surest first."""

import re
from dataclasses import dataclass

import numpy as np
import torch

from .batches import frame
from .errors import UserError
from .normalization_domain_canine import NAME_CHARACTERS, InvalidDomain, is_domain, normalize_domain

# A stand-in for a masked character while a pattern is checked: a letter is valid wherever a character is.
_PLACEHOLDER = "x"
_MASK = re.compile(r"\[MASK\]|\?")
CHARACTERS = NAME_CHARACTERS + "."


@dataclass
class Filled:
    """A pattern, the best name for it, and for each masked character the likeliest fillings when it was revealed.

    ``steps`` are (position in the name, [(character, probability), ...]) in the order of revealing.
    """

    pattern: str
    name: str
    steps: list[tuple[int, list[tuple[str, float]]]]


def parse_pattern(pattern: str) -> tuple[str, list[int]]:
    """``exam?le.com`` or ``exam[MASK]le.com`` -> the name with stand-ins, and the masked positions.

    Raises:
        UserError: nothing is masked, or no name can come of it.
    """
    text, positions = "", []
    # The white space and the dot that normalize_domain would drop, so that positions stay.
    for i, piece in enumerate(_MASK.split(pattern.strip().removesuffix("."))):
        if i:
            positions.append(len(text))
            text += _PLACEHOLDER
        text += piece
    if not positions:
        raise UserError(f"{pattern!r} has nothing to fill; write ? or [MASK] for each unknown character")
    try:
        name = normalize_domain(text + ".")  # it drops this one, and no other
    except InvalidDomain as error:
        raise UserError(f"{pattern!r} cannot become a domain name: {error.reason.replace('_', ' ')}") from error
    if len(name) != len(text):
        raise UserError(f"{pattern!r}: write a Unicode name in its xn-- form, so that each ? is one character")
    return name, positions


@torch.no_grad()
def fill(model, pattern: str, top_k: int = 5) -> Filled:
    """Reveal the masked characters of a pattern one by one, in order of confidence.

    Only characters are considered that leave a valid name (letters, digits; hyphens and dots where they may stand).

    Args:
        model: DomainCanineForMaskedLM in evaluation mode.
        top_k: how many candidates to report for each character.
    """
    name, open_positions = parse_pattern(pattern)
    ids, _ = frame(np.frombuffer(name.encode(), np.uint8)[None], np.array([len(name)]))
    input_ids = torch.from_numpy(ids).to(model.device)
    input_ids[0, [position + 1 for position in open_positions]] = model.config.mask_code_point  # behind [CLS]
    code_points = torch.tensor([ord(letter) for letter in CHARACTERS], device=model.device)
    steps = []
    while open_positions:
        positions = torch.tensor([open_positions], device=model.device) + 1
        logits = model(input_ids=input_ids, masked_positions=positions).logits[0]
        # With a dot behind, which is dropped: a name that ended in one itself would not be valid then.
        valid = [
            [is_domain(name[:at] + letter + name[at + 1 :] + ".") for letter in CHARACTERS] for at in open_positions
        ]
        valid = torch.tensor(valid, device=model.device)
        probabilities = logits.float().softmax(-1)[:, code_points] * valid
        row = int(probabilities.amax(-1).argmax())
        best = probabilities[row].topk(min(top_k, int(valid[row].sum())))
        candidates = [(CHARACTERS[i], value) for i, value in zip(best.indices.tolist(), best.values.tolist())]
        at = open_positions.pop(row)
        steps.append((at, candidates))
        name = name[:at] + candidates[0][0] + name[at + 1 :]
        input_ids[0, at + 1] = ord(candidates[0][0])
    return Filled(pattern, name, steps)
