"""What stands between two products of a layer, each as one kernel on CUDA, forward and backward, in Triton; and the
convolution over characters.

Bias, dropout, residual and normalisation; bias and GELU. PyTorch's autocast would write the normalised states in fp32,
and again in bf16 for each product that takes them. Here they are read and written in bf16, and computed in fp32. The
gradients of biases and normalisations are summed on the way. Dropout as in ``fused_attention_domain_canine``.

Shapes: D or F width, T rows.
"""

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .fused_attention_domain_canine import power

try:  # so that transformers does not ask for it where a checkpoint's own files are loaded
    import triton
    import triton.language as tl
except ImportError:
    raise

ROWS_AT_ONCE = 2  # of a normalisation
PROGRAMS = 1056  # that share the rows of its backward pass: 8 for each multiprocessor of an H100
# Numbers that change from batch to batch: kernels are compiled once for all of them.
ANY = ["total", "programs"]


@triton.jit
def _kept(seed, rows, columns, width, dropout, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """What dropout multiplies (ROWS, WIDTH) with; a draw of four numbers is for four columns."""
    quarter = tl.arange(0, WIDTH // 4)
    drawn = rows[:, None] * (WIDTH // 4) + quarter[None, :]
    a, b, c, d = tl.rand4x(tl.load(seed), drawn)
    uniform = tl.reshape(tl.join(tl.join(a, b), tl.join(c, d)), (ROWS, WIDTH))
    return tl.where(uniform >= dropout, 1.0 / (1.0 - dropout), 0.0)


@triton.jit
def _sums(
    states_at, added_at, residual_at, seed, rows, columns, width, dropout, mask,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, ADDED: tl.constexpr, RESIDUAL: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    """The residual and the states after dropout (ROWS, WIDTH), and what dropout multiplies with."""
    where = rows.to(tl.int64)[:, None] * width + columns[None, :]
    states = tl.load(states_at + where, mask=mask, other=0.0).to(tl.float32)
    if ADDED:
        states += tl.load(added_at + columns, mask=columns < width, other=0.0).to(tl.float32)[None, :]
    kept = tl.full((ROWS, WIDTH), 1.0, tl.float32)
    if DROPOUT:
        kept = _kept(seed, rows, columns, width, dropout, ROWS, WIDTH)
    states = states * kept
    if RESIDUAL:
        states += tl.load(residual_at + where, mask=mask, other=0.0).to(tl.float32)
    return states, kept


@triton.jit(do_not_specialize=ANY[:1])
def _normalize(
    states_at, added_at, residual_at, weight_at, bias_at, seed, out_at, mean_at, scale_at,
    total, width, epsilon, dropout,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, ADDED: tl.constexpr, RESIDUAL: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    rows, columns = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    mask = (rows < total)[:, None] & (columns < width)[None, :]
    sums, _ = _sums(
        states_at, added_at, residual_at, seed, rows, columns, width, dropout, mask,
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
    total, width, dropout, programs,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, ADDED: tl.constexpr, RESIDUAL: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    program, columns = tl.program_id(0), tl.arange(0, WIDTH)
    weight = tl.load(weight_at + columns, mask=columns < width, other=0.0).to(tl.float32)[None, :]
    of_weight = tl.zeros((WIDTH,), tl.float32)
    of_bias = tl.zeros((WIDTH,), tl.float32)
    of_added = tl.zeros((WIDTH,), tl.float32)
    for first in range(program * ROWS, total, programs * ROWS):
        rows = first + tl.arange(0, ROWS)
        mask = (rows < total)[:, None] & (columns < width)[None, :]
        where = rows.to(tl.int64)[:, None] * width + columns[None, :]
        sums, kept = _sums(
            states_at, added_at, residual_at, seed, rows, columns, width, dropout, mask,
            ROWS, WIDTH, ADDED, RESIDUAL, DROPOUT,
        )  # fmt: skip
        mean = tl.load(mean_at + rows, mask=rows < total, other=0.0)[:, None]
        scale = tl.load(scale_at + rows, mask=rows < total, other=0.0)[:, None]
        normal = tl.where(mask, (sums - mean) * scale, 0.0)
        given = tl.load(given_at + where, mask=mask, other=0.0).to(tl.float32)
        of_weight += tl.sum(given * normal, 0)
        of_bias += tl.sum(given, 0)
        given = given * weight
        along = tl.sum(given * normal, 1) / width
        of_sums = scale * (given - tl.sum(given, 1)[:, None] / width - along[:, None] * normal)
        of_sums = tl.where(mask, of_sums, 0.0)
        if RESIDUAL:
            tl.store(residual_to + where, of_sums.to(residual_to.dtype.element_ty), mask=mask)
        of_states = of_sums * kept
        of_added += tl.sum(of_states, 0)
        tl.store(states_to + where, of_states.to(states_to.dtype.element_ty), mask=mask)
    into = sums_to + program * width + columns
    tl.store(into, of_weight, mask=columns < width)
    tl.store(into + programs * width, of_bias, mask=columns < width)
    tl.store(into + 2 * programs * width, of_added, mask=columns < width)


class ResidualNorm(torch.autograd.Function):
    """The normalised sum of a residual and what a linear layer made, dropout of the latter included."""

    @staticmethod
    def forward(ctx, states, added, residual, weight, bias, epsilon: float, dropout: float):
        """States (..., D), the linear layer's bias (D,) or None, residual (..., D) or None, weight and bias (D,) of the
        normalisation -> (..., D) in the precision of the states.
        """
        states, residual = states.contiguous(), None if residual is None else residual.contiguous()
        width, total = states.shape[-1], states.shape[:-1].numel()
        seed = torch.randint(2**31, (1,), device=states.device) if dropout else None
        mean, scale = torch.empty(2, total, dtype=torch.float32, device=states.device)
        out = torch.empty_like(states)
        _normalize[(triton.cdiv(total, ROWS_AT_ONCE),)](
            states, added, residual, weight, bias, seed, out, mean, scale, total, width, epsilon, dropout,
            ROWS=ROWS_AT_ONCE, WIDTH=power(width), ADDED=added is not None, RESIDUAL=residual is not None,
            DROPOUT=dropout > 0, num_warps=4,
        )  # fmt: skip
        ctx.save_for_backward(states, added, residual, weight, seed, mean, scale)
        ctx.dropout = dropout
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, given):
        states, added, residual, weight, seed, mean, scale = ctx.saved_tensors
        width, total = states.shape[-1], states.shape[:-1].numel()
        programs = _programs(total)
        of_states, of_residual = torch.empty_like(states), None if residual is None else torch.empty_like(residual)
        sums = torch.empty(3, programs, width, dtype=torch.float32, device=states.device)
        _normalize_backward[(programs,)](
            states, added, residual, weight, seed, given.contiguous(), mean, scale, of_states, of_residual, sums,
            total, width, ctx.dropout, programs,
            ROWS=1, WIDTH=power(width), ADDED=added is not None, RESIDUAL=residual is not None,
            DROPOUT=ctx.dropout > 0, num_warps=4,
        )  # fmt: skip
        of_weight, of_bias, of_added = sums.sum(1).to(weight.dtype)
        return of_states, None if added is None else of_added, of_residual, of_weight, of_bias, None, None


def _programs(rows: int) -> int:
    """That share the rows of a backward pass, each with sums of its own."""
    return min(PROGRAMS, triton.cdiv(rows, 16))


@triton.jit(do_not_specialize=ANY[:1])
def _activate(states_at, added_at, out_at, total, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = (rows < total)[:, None] & (columns < width)[None, :]
    where = rows.to(tl.int64)[:, None] * width + columns[None, :]
    states = tl.load(states_at + where, mask=mask, other=0.0).to(tl.float32)
    states += tl.load(added_at + columns, mask=columns < width, other=0.0).to(tl.float32)[None, :]
    out = states * 0.5 * (1.0 + tl.erf(states * 0.7071067811865476))
    tl.store(out_at + where, out.to(out_at.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=ANY)
def _activate_backward(
    states_at, added_at, given_at, states_to, sums_to, total, width, programs,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    program, columns = tl.program_id(0), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    added = tl.load(added_at + columns, mask=columns < width, other=0.0).to(tl.float32)[None, :]
    of_added = tl.zeros((COLUMNS,), tl.float32)
    for first in range(program * ROWS, total, programs * ROWS):
        rows = first + tl.arange(0, ROWS)
        mask = (rows < total)[:, None] & (columns < width)[None, :]
        where = rows.to(tl.int64)[:, None] * width + columns[None, :]
        states = tl.load(states_at + where, mask=mask, other=0.0).to(tl.float32) + added
        given = tl.load(given_at + where, mask=mask, other=0.0).to(tl.float32)
        # The normal distribution up to here, and its density times the state.
        up_to, density = 0.5 * (1.0 + tl.erf(states * 0.7071067811865476)), tl.exp(-0.5 * states * states)
        of_states = given * (up_to + states * density * 0.3989422804014327)
        of_added += tl.sum(of_states, 0)
        tl.store(states_to + where, of_states.to(states_to.dtype.element_ty), mask=mask)
    tl.store(sums_to + program * width + columns, of_added, mask=columns < width)


class BiasGelu(torch.autograd.Function):
    """GELU, the exact one, of what a linear layer made and its bias."""

    @staticmethod
    def forward(ctx, states, added):
        """States (..., F), bias (F,) -> (..., F)."""
        states = states.contiguous()
        width, total = states.shape[-1], states.shape[:-1].numel()
        out, columns = torch.empty_like(states), min(1024, power(width))
        _activate[(triton.cdiv(total, 4), triton.cdiv(width, columns))](
            states, added, out, total, width, ROWS=4, COLUMNS=columns, num_warps=8
        )
        ctx.save_for_backward(states, added)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, given):
        states, added = ctx.saved_tensors
        width, total = states.shape[-1], states.shape[:-1].numel()
        of_states, columns, programs = torch.empty_like(states), min(1024, power(width)), _programs(total)
        sums = torch.empty(programs, width, dtype=torch.float32, device=states.device)
        _activate_backward[(programs, triton.cdiv(width, columns))](
            states, added, given.contiguous(), of_states, sums, total, width, programs,
            ROWS=2, COLUMNS=columns, num_warps=8,
        )  # fmt: skip
        return of_states, sums.sum(0).to(added.dtype)


class WindowProducts(torch.autograd.Function):
    """A convolution along names, as a product for each of its taps over the same memory, one row further on each time.

    cuDNN would lay states and gradients out anew, and back. Rows between names are computed for nothing.
    """

    @staticmethod
    def forward(ctx, states, weights, left: int):
        """States (B, S, D), weights (W, D, V), zeros to the left -> (B, S, V)."""
        names, length, _ = states.shape
        taps = len(weights)
        padded = F.pad(states, (0, 0, left, taps - 1 - left))
        rows = padded.flatten(0, 1)
        count = len(rows) - taps + 1
        out = rows.new_empty(len(rows), weights.shape[2])
        torch.mm(rows[:count], weights[0], out=out[:count])
        for tap in range(1, taps):
            out[:count].addmm_(rows[tap : tap + count], weights[tap])
        ctx.save_for_backward(rows, weights)
        ctx.left, ctx.length = left, length
        return out.unflatten(0, (names, -1))[:, :length]

    @staticmethod
    @once_differentiable
    def backward(ctx, given):
        rows, weights = ctx.saved_tensors
        taps = len(weights)
        count = len(rows) - taps + 1
        given = F.pad(given, (0, 0, 0, taps - 1)).flatten(0, 1)[:count]
        of_rows, of_weights = torch.zeros_like(rows), torch.empty_like(weights)
        for tap in range(taps):
            of_rows[tap : tap + count].addmm_(given, weights[tap].t())
            torch.mm(rows[tap : tap + count].t(), given, out=of_weights[tap])
        of_states = of_rows.unflatten(0, (-1, ctx.length + taps - 1))[:, ctx.left : ctx.left + ctx.length]
        return of_states, of_weights, None
