"""The convolution over characters and repeated molecules on CUDA, as products that are added up in one place.

cuDNN would lay states and gradients out anew, and back; and parts that are made one by one, padded and added take as
long as their products. Here a tap is a product of all rows with those some rows further on, names in a row. At its ends
a name would see another: there what was before is put back, and the weights' gradient is less those pairs'.

Shapes: B names, S characters, M = S / rate molecules, D width.
"""

import torch
from torch.autograd.function import once_differentiable

from .fused_layer_domain_canine import product


class Projection(torch.autograd.Function):
    """The sum over taps of a product with characters, and over molecules near by of one with them."""

    @staticmethod
    def forward(ctx, characters, molecules, taps, shifts, places, *weights):
        """Characters (B, S, D), molecules (B, M, D), taps (width, D, D) as of a product from the left -> (B, S, D), all
        of one precision.

        Args:
            shifts: how many characters further on each tap sees.
            places: of each weight the shift in molecules and the first of the molecule's characters that it is for;
                the first of them is of the molecule itself, and for all characters.
            weights: (n D, D) for n characters in a row.
        """
        (names, length, width), count = characters.shape, molecules.shape[1]
        rows, few = characters.flatten(0, 1), molecules.flatten(0, 1)
        out = few @ weights[0].t()
        for (shift, first), weight in zip(places[1:], weights[1:]):
            part = out[:, first * width : first * width + len(weight)]
            _add(part, few, weight.t(), shift, count)
        out = out.view(-1, width)
        for shift, tap in zip(shifts, taps):
            _add(out, rows, tap, shift, length)
        ctx.save_for_backward(characters, molecules, taps, *weights)
        ctx.shifts, ctx.places = shifts, places
        return out.view(names, length, width)

    @staticmethod
    @once_differentiable
    def backward(ctx, given):
        characters, molecules, taps, *weights = ctx.saved_tensors
        (_, length, width), count = characters.shape, molecules.shape[1]
        rows, few, given = characters.flatten(0, 1), molecules.flatten(0, 1), given.contiguous().view(-1, width)
        of_taps, of_rows = torch.empty_like(taps), given @ taps[ctx.shifts.index(0)].t()
        for i, (shift, tap) in enumerate(zip(ctx.shifts, taps)):
            of_taps[i] = _of_weight(rows, given, shift, length)
            if shift:
                _add(of_rows, given, tap.t(), -shift, length)
        given = given.view(len(few), -1)
        of_few, of_weights = given @ weights[0], [given.t() @ few]
        for (shift, first), weight in zip(ctx.places[1:], weights[1:]):
            part = given[:, first * width : first * width + len(weight)]
            of_weights.append(_of_weight(few, part, shift, count).t())
            _add(of_few, part, weight, -shift, count)
        of_both = of_rows.view_as(characters), of_few.view_as(molecules)
        return *of_both, of_taps, None, None, *of_weights


def _add(out, states, weight, shift: int, length: int) -> None:
    """Each row of ``out`` gets the row of states so many further on, times the weight, if it is of the same name."""
    count = len(out) - abs(shift)
    to, of = (out[:count], states[shift:]) if shift >= 0 else (out[-shift:], states[:count])
    others = slice(-shift) if shift < 0 else slice(length - shift, None)  # of a name: the rows that see another
    ends = out.unflatten(0, (-1, length))[:, others]
    before = ends.clone()
    to.addmm_(of, weight)
    ends.copy_(before)


def _of_weight(states, given, shift: int, length: int):
    """The gradient of a weight by which each row has seen the one so many further on: less the pairs of two names."""
    if not shift:
        return states.t() @ given
    if shift < 0:
        return _of_weight(given, states, -shift, length).t()
    exact = torch.promote_types(states.dtype, torch.float32)
    found = product(states[shift:].t(), given[:-shift], exact)
    states, given = states.unflatten(0, (-1, length)), given.unflatten(0, (-1, length))
    others = states[1:, :shift].flatten(0, 1).t(), given[:-1, length - shift :].flatten(0, 1)
    return found.sub_(product(*others, exact)).to(states.dtype)
