"""What stands between two products of a layer, each as one kernel on CUDA, forward and backward, in Triton.

Bias, dropout, residual and normalisation; bias and GELU. PyTorch's autocast would write the normalised states in fp32,
and again in bf16 for each product that takes them. Here they are read and written in bf16, and computed in fp32. The
gradients of biases and normalisations are summed on the way. Dropout as in ``fused_attention_domain_canine``.

Shapes: D or F width, T rows.
"""

import torch
from torch.autograd.function import once_differentiable

from .fused_attention_domain_canine import dropped, kept, power, seeds

try:  # so that transformers does not ask for it where a checkpoint's own files are loaded
    import triton
    import triton.language as tl
except ImportError:
    raise

PROGRAMS = 660  # that share the rows of a backward pass: as many as an H100 has room for at once, 5 a multiprocessor
SHARE = 4  # rows of each of them at least
# Rows and columns at once, and warps.
NORMALIZED, NORMALIZED_BACKWARD = (2, 4), (1, 4)
ACTIVATED, ACTIVATED_BACKWARD = (4, 1024, 8), (2, 1024, 8)
# Numbers that change from batch to batch: kernels are compiled once for all of them.
ANY = ["total", "dropped", "programs"]


@triton.jit
def _sums(
    states_at, added_at, residual_at, seed, rows, columns, width, dropped, mask,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, ADDED: tl.constexpr, RESIDUAL: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    """The residual and the states after dropout (ROWS, WIDTH), and what dropout multiplies with."""
    where = rows.to(tl.int64)[:, None] * width + columns[None, :]
    states = tl.load(states_at + where, mask=mask, other=0.0).to(tl.float32)
    if ADDED:
        states += tl.load(added_at + columns, mask=columns < width, other=0.0).to(tl.float32)[None, :]
    factors = tl.full((ROWS, WIDTH), 1.0, tl.float32)
    if DROPOUT:
        factors = kept(tl.load(seed), rows, dropped, ROWS, WIDTH)
    states = states * factors
    if RESIDUAL:
        states += tl.load(residual_at + where, mask=mask, other=0.0).to(tl.float32)
    return states, factors


@triton.jit(do_not_specialize=ANY[:2])
def _normalize(
    states_at, added_at, residual_at, weight_at, bias_at, seed, out_at, mean_at, scale_at,
    total, width, epsilon, dropped,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, ADDED: tl.constexpr, RESIDUAL: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    rows, columns = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    mask = (rows < total)[:, None] & (columns < width)[None, :]
    sums, _ = _sums(
        states_at, added_at, residual_at, seed, rows, columns, width, dropped, mask,
        ROWS, WIDTH, ADDED, RESIDUAL, DROPOUT,
    )  # fmt: skip
    sums = tl.where(mask, sums, 0.0)
    mean = tl.sum(sums, 1) / width
    centred = tl.where(mask, sums - mean[:, None], 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / width + epsilon)
    weight = tl.load(weight_at + columns, mask=columns < width, other=0.0).to(tl.float32)
    bias = tl.load(bias_at + columns, mask=columns < width, other=0.0).to(tl.float32)
    out = centred * scale[:, None] * weight[None, :] + bias[None, :]
    tl.store(out_at + rows.to(tl.int64)[:, None] * width + columns[None, :], out.to(out_at.dtype.element_ty), mask=mask)
    tl.store(mean_at + rows, mean, mask=rows < total)
    tl.store(scale_at + rows, scale, mask=rows < total)


@triton.jit(do_not_specialize=ANY)
def _normalize_backward(
    states_at, added_at, residual_at, weight_at, seed, given_at, mean_at, scale_at, states_to, residual_to, sums_to,
    sums_row, total, width, dropped, programs,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, ADDED: tl.constexpr, RESIDUAL: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    program, columns = tl.program_id(0), tl.arange(0, WIDTH)
    weight = tl.load(weight_at + columns, mask=columns < width, other=0.0).to(tl.float32)[None, :]
    # Sums over rows are made at the end: before, warps would wait for each other.
    of_weight = tl.zeros((ROWS, WIDTH), tl.float32)
    of_bias = tl.zeros((ROWS, WIDTH), tl.float32)
    of_added = tl.zeros((ROWS, WIDTH), tl.float32)
    for first in range(program * ROWS, total, programs * ROWS):
        rows = first + tl.arange(0, ROWS)
        mask = (rows < total)[:, None] & (columns < width)[None, :]
        where = rows.to(tl.int64)[:, None] * width + columns[None, :]
        sums, factors = _sums(
            states_at, added_at, residual_at, seed, rows, columns, width, dropped, mask,
            ROWS, WIDTH, ADDED, RESIDUAL, DROPOUT,
        )  # fmt: skip
        mean = tl.load(mean_at + rows, mask=rows < total, other=0.0)[:, None]
        scale = tl.load(scale_at + rows, mask=rows < total, other=0.0)[:, None]
        normal = tl.where(mask, (sums - mean) * scale, 0.0)
        given = tl.load(given_at + where, mask=mask, other=0.0).to(tl.float32)
        of_weight += given * normal
        of_bias += given
        given = given * weight
        along = tl.sum(given * normal, 1) / width
        of_sums = scale * (given - tl.sum(given, 1)[:, None] / width - along[:, None] * normal)
        of_sums = tl.where(mask, of_sums, 0.0)
        if RESIDUAL:
            tl.store(residual_to + where, of_sums.to(residual_to.dtype.element_ty), mask=mask)
        of_states = of_sums * factors
        of_added += of_states
        tl.store(states_to + where, of_states.to(states_to.dtype.element_ty), mask=mask)
    into = sums_to + program * sums_row + columns
    tl.store(into, tl.sum(of_weight, 0), mask=columns < width)
    tl.store(into + width, tl.sum(of_bias, 0), mask=columns < width)
    tl.store(into + 2 * width, tl.sum(of_added, 0), mask=columns < width)


def normalize(states, added, residual, weight, bias, seed, epsilon: float, dropout: float):
    """As ``ResidualNorm``, of contiguous tensors -> (..., D), and each row's mean and scale (T,)."""
    width, total, (rows, warps) = states.shape[-1], states.shape[:-1].numel(), NORMALIZED
    mean, scale = torch.empty(2, total, dtype=torch.float32, device=states.device)
    out = torch.empty_like(states)
    _normalize[(triton.cdiv(total, rows),)](
        states, added, residual, weight, bias, seed, out, mean, scale, total, width, epsilon, dropped(dropout),
        ROWS=rows, WIDTH=power(width), ADDED=added is not None, RESIDUAL=residual is not None,
        DROPOUT=dropped(dropout) > 0, num_warps=warps,
    )  # fmt: skip
    return out, mean, scale


def normalize_backward(given, states, added, residual, weight, seed, mean, scale, dropout: float, sums):
    """Gradients of states and residual, and into ``sums`` (programs, 3 D), to be added up, those of the
    normalisation's weight and bias, and of what was added.
    """
    width, total, (rows, warps) = states.shape[-1], states.shape[:-1].numel(), NORMALIZED_BACKWARD
    of_states, of_residual = torch.empty_like(states), None if residual is None else torch.empty_like(residual)
    _normalize_backward[(len(sums),)](
        states, added, residual, weight, seed, given, mean, scale, of_states, of_residual, sums, sums.stride(0),
        total, width, dropped(dropout), len(sums),
        ROWS=rows, WIDTH=power(width), ADDED=added is not None, RESIDUAL=residual is not None,
        DROPOUT=dropped(dropout) > 0, num_warps=warps,
    )  # fmt: skip
    return of_states, of_residual


def programs(rows: int) -> int:
    """That share the rows of a backward pass, each with sums of its own."""
    return min(PROGRAMS, triton.cdiv(rows, SHARE))


class ResidualNorm(torch.autograd.Function):
    """The normalised sum of a residual and what a linear layer made, dropout of the latter included."""

    @staticmethod
    def forward(ctx, states, added, residual, weight, bias, epsilon: float, dropout: float):
        """States (..., D), the linear layer's bias (D,) or None, residual (..., D) or None, weight and bias (D,) of the
        normalisation -> (..., D) in the precision of the states.
        """
        states, residual = states.contiguous(), None if residual is None else residual.contiguous()
        seed = seeds(1, states) if dropout else None
        out, mean, scale = normalize(states, added, residual, weight, bias, seed, epsilon, dropout)
        ctx.save_for_backward(states, added, residual, weight, seed, mean, scale)
        ctx.dropout = dropout
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, given):
        saved, width = ctx.saved_tensors, given.shape[-1]  # once: checkpointed activations are unpacked once
        _, added, _, weight, _, mean, _ = saved
        sums = torch.empty(programs(len(mean)), 3 * width, dtype=torch.float32, device=given.device)
        of_states, of_residual = normalize_backward(given.contiguous(), *saved, ctx.dropout, sums)
        of_weight, of_bias, of_added = sums.sum(0).to(weight.dtype).split(width)
        return of_states, None if added is None else of_added, of_residual, of_weight, of_bias, None, None


@triton.jit
def _normal(states):
    """The normal distribution up to each state, and its density there.

    By exp(-x ** 2 / 2), which the density needs anyway, and a polynomial: 7.1.26 of Abramowitz and Stegun (1964), to
    7.5e-8. An erf is two polynomials and a choice between them, beside it.
    """
    t = 1.0 / (1.0 + 0.3275911 * 0.7071067811865476 * tl.abs(states))
    exp = tl.exp(-0.5 * states * states)
    beyond = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    beyond = 0.5 * beyond * exp
    return tl.where(states < 0, beyond, 1.0 - beyond), exp * 0.3989422804014327


@triton.jit(do_not_specialize=ANY[:1])
def _activate(states_at, added_at, out_at, total, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = (rows < total)[:, None] & (columns < width)[None, :]
    where = rows.to(tl.int64)[:, None] * width + columns[None, :]
    states = tl.load(states_at + where, mask=mask, other=0.0).to(tl.float32)
    states += tl.load(added_at + columns, mask=columns < width, other=0.0).to(tl.float32)[None, :]
    up_to, _ = _normal(states)
    tl.store(out_at + where, (states * up_to).to(out_at.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=[ANY[0], ANY[2]])
def _activate_backward(
    states_at, added_at, given_at, states_to, sums_to, sums_row, total, width, programs,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    program, columns = tl.program_id(0), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    added = tl.load(added_at + columns, mask=columns < width, other=0.0).to(tl.float32)[None, :]
    of_added = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(program * ROWS, total, programs * ROWS):
        rows = first + tl.arange(0, ROWS)
        mask = (rows < total)[:, None] & (columns < width)[None, :]
        where = rows.to(tl.int64)[:, None] * width + columns[None, :]
        states = tl.load(states_at + where, mask=mask, other=0.0).to(tl.float32) + added
        given = tl.load(given_at + where, mask=mask, other=0.0).to(tl.float32)
        up_to, density = _normal(states)
        of_states = given * (up_to + states * density)
        of_added += of_states
        tl.store(states_to + where, of_states.to(states_to.dtype.element_ty), mask=mask)
    tl.store(sums_to + program * sums_row + columns, tl.sum(of_added, 0), mask=columns < width)


def activate(states, added):
    """As ``BiasGelu``, of contiguous states."""
    width, total, (rows, columns, warps) = states.shape[-1], states.shape[:-1].numel(), ACTIVATED
    out, columns = torch.empty_like(states), min(columns, power(width))
    _activate[(triton.cdiv(total, rows), triton.cdiv(width, columns))](
        states, added, out, total, width, ROWS=rows, COLUMNS=columns, num_warps=warps
    )
    return out


def activate_backward(given, states, added, sums):
    """The gradient of the states, and into ``sums`` (programs, F), to be added up, that of what was added."""
    width, total, (rows, columns, warps) = states.shape[-1], states.shape[:-1].numel(), ACTIVATED_BACKWARD
    of_states, columns = torch.empty_like(states), min(columns, power(width))
    _activate_backward[(len(sums), triton.cdiv(width, columns))](
        states, added, given, of_states, sums, sums.stride(0), total, width, len(sums),
        ROWS=rows, COLUMNS=columns, num_warps=warps,
    )  # fmt: skip
    return of_states


class BiasGelu(torch.autograd.Function):
    """GELU, the exact one, of what a linear layer made and its bias."""

    @staticmethod
    def forward(ctx, states, added):
        """States (..., F), bias (F,) -> (..., F)."""
        states = states.contiguous()
        ctx.save_for_backward(states, added)
        return activate(states, added)

    @staticmethod
    @once_differentiable
    def backward(ctx, given):
        states, added = ctx.saved_tensors
        size = programs(states.shape[:-1].numel()), states.shape[-1]
        sums = torch.empty(size, dtype=torch.float32, device=states.device)
        return activate_backward(given.contiguous(), states, added, sums), sums.sum(0).to(added.dtype)
