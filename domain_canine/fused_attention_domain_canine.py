"""Attention among few positions on CUDA, forward and backward, in Triton.

Names are short: 6 molecules or 20 characters, where kernels for attention work on tiles of 64 or 128 positions a name
and head. Here a tile takes as many names as it has room for, each of which attends within itself; and queries, keys and
values are read where one product has left them, their gradients written so. Dropout is drawn in the kernels from a seed
on the device, and again in the backward pass: by Philox (Salmon et al. 2011), as PyTorch's.

Shapes: B names, N keys, Q queries, D width, H heads, E = D / H.
"""

import torch
from torch.autograd.function import once_differentiable

try:  # so that transformers does not ask for it where a checkpoint's own files are loaded
    import triton
    import triton.language as tl
except ImportError:
    raise

LONGEST = 64  # keys of a name; a tile holds all of them
TILE = 32  # keys of a tile, where a name has no more
# Numbers that change from batch to batch: kernels are compiled once for all of them, at a second each.
ANY = ["names", "queries", "keys", "names_at_once", "bias_name"]


@triton.jit
def _places(first, per_name, names_at_once, names, SIZE: tl.constexpr):
    """Of the positions of a tile: the name, the position in it, and whether there is one."""
    place = tl.arange(0, SIZE)
    name = place // per_name
    known = (name < names_at_once) & (first + name < names)
    return first + name, place - name * per_name, known


@triton.jit
def _rows(pointer, name, at, known, name_stride, at_stride, head, E: tl.constexpr):
    """Where the states of a head stand, (SIZE, E), and which there are, (SIZE, 1)."""
    places = name.to(tl.int64)[:, None] * name_stride + at[:, None] * at_stride + head * E + tl.arange(0, E)[None, :]
    return pointer + places, known[:, None]


@triton.jit
def _read(pointer, name, at, known, name_stride, at_stride, head, E: tl.constexpr):
    where, mask = _rows(pointer, name, at, known, name_stride, at_stride, head, E)
    return tl.load(where, mask=mask, other=0.0)


@triton.jit
def _tile(
    query_at, key_at, value_at, bias, seed, names, queries, keys, names_at_once, heads,
    query_name, query_row, key_name, key_row, bias_name, scale, dropout,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, E: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    """What both passes begin with: where the queries and keys of a tile stand, their states (QUERIES or KEYS, E), the
    softmax (QUERIES, KEYS), and what dropout multiplies it with.
    """
    first, head = tl.program_id(0) * names_at_once, tl.program_id(1)
    name, at, known = _places(first, queries, names_at_once, names, QUERIES)
    other, place, there = _places(first, keys, names_at_once, names, KEYS)
    query = _read(query_at, name, at, known, query_name, query_row, head, E)
    key = _read(key_at, other, place, there, key_name, key_row, head, E)
    value = _read(value_at, other, place, there, key_name, key_row, head, E)
    added = tl.load(bias + other.to(tl.int64) * bias_name + place, mask=there, other=float("-inf")).to(tl.float32)
    scores = tl.dot(query, tl.trans(key)) * scale + added[None, :]
    scores = tl.where((name[:, None] == other[None, :]) & known[:, None], scores, float("-inf"))
    most = tl.max(scores, 1)
    weights = tl.exp(scores - tl.where(most == float("-inf"), 0.0, most)[:, None])
    total = tl.sum(weights, 1)
    weights = weights / tl.where(total == 0.0, 1.0, total)[:, None]
    kept = tl.full((QUERIES, KEYS), 1.0, tl.float32)
    if DROPOUT:
        drawn = ((name * heads + head) * queries + at)[:, None] * keys + place[None, :]
        kept = tl.where(tl.rand(tl.load(seed), drawn) >= dropout, 1.0 / (1.0 - dropout), 0.0)
    return head, name, at, known, other, place, there, query, key, value, weights, kept


@triton.jit(do_not_specialize=ANY)
def _attend(
    query_at, key_at, value_at, bias, seed, out_at, names, queries, keys, names_at_once, heads,
    query_name, query_row, key_name, key_row, bias_name, scale, dropout,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, E: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    head, name, at, known, _, _, _, _, _, value, weights, kept = _tile(
        query_at, key_at, value_at, bias, seed, names, queries, keys, names_at_once, heads,
        query_name, query_row, key_name, key_row, bias_name, scale, dropout, QUERIES, KEYS, E, DROPOUT,
    )  # fmt: skip
    out = tl.dot((weights * kept).to(value.dtype), value)
    where, mask = _rows(out_at, name, at, known, queries * heads * E, heads * E, head, E)
    tl.store(where, out.to(value.dtype), mask=mask)


@triton.jit(do_not_specialize=ANY)
def _attend_backward(
    query_at, key_at, value_at, bias, seed, given_at, query_to, key_to, value_to, names, queries, keys, names_at_once,
    heads, query_name, query_row, key_name, key_row, bias_name, scale, dropout,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, E: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    head, name, at, known, other, place, there, query, key, value, weights, kept = _tile(
        query_at, key_at, value_at, bias, seed, names, queries, keys, names_at_once, heads,
        query_name, query_row, key_name, key_row, bias_name, scale, dropout, QUERIES, KEYS, E, DROPOUT,
    )  # fmt: skip
    given = _read(given_at, name, at, known, queries * heads * E, heads * E, head, E)
    of_value = tl.dot(tl.trans((weights * kept).to(given.dtype)), given)
    of_weights = tl.dot(given, tl.trans(value)) * kept
    of_scores = weights * (of_weights - tl.sum(weights * of_weights, 1)[:, None]) * scale
    of_scores = of_scores.to(query.dtype)
    where, mask = _rows(query_to, name, at, known, query_name, query_row, head, E)
    tl.store(where, tl.dot(of_scores, key).to(query.dtype), mask=mask)
    where, mask = _rows(key_to, other, place, there, key_name, key_row, head, E)
    tl.store(where, tl.dot(tl.trans(of_scores), query).to(query.dtype), mask=mask)
    where, mask = _rows(value_to, other, place, there, key_name, key_row, head, E)
    tl.store(where, of_value.to(query.dtype), mask=mask)


def power(size: int) -> int:
    """What a tile of Triton's holds so many in."""
    return max(16, triton.next_power_of_2(size))


class Attention(torch.autograd.Function):
    """Softmax attention within each name, dropout of its weights included."""

    @staticmethod
    def takes(queries: torch.Size, states: torch.Size, heads: int) -> bool:
        """Whether queries (B, Q, D) and states (B, N, D) fit a tile, and heads are of a width that tiles can have."""
        size = states[-1] // heads
        return 0 < queries[1] <= LONGEST and states[1] <= LONGEST and 16 <= size <= 128 and size & size - 1 == 0

    @staticmethod
    def forward(ctx, queries, states, bias, heads: int, dropout: float):
        """Queries (B, Q, D), or None; states (B, N, 2 D) keys and values, or with the queries before them (B, N, 3 D);
        bias (B, 1, 1, N) -> (B, Q, D).
        """
        names, keys, width = states.shape
        parts = 2 if queries is not None else 3
        width //= parts
        states = states.contiguous()
        queries = states[..., :width] if queries is None else queries.contiguous()
        seed = torch.randint(2**31, (1,), device=states.device) if dropout else None
        out = states.new_empty(names, queries.shape[1], width)
        ctx.save_for_backward(queries, states, bias, seed)
        ctx.heads, ctx.dropout, ctx.parts = heads, dropout, parts
        _launch(_attend, queries, states, bias, seed, [out], heads, dropout, width)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, given):
        queries, states, bias, seed = ctx.saved_tensors
        width = given.shape[-1]
        of_states = torch.empty_like(states)
        of_queries = of_states[..., :width] if ctx.parts == 3 else torch.empty_like(queries)
        made = [given.contiguous(), of_queries, of_states[..., -2 * width :], of_states[..., -width:]]
        _launch(_attend_backward, queries, states, bias, seed, made, ctx.heads, ctx.dropout, width)
        return (None if ctx.parts == 3 else of_queries), of_states, None, None, None


def _launch(kernel, queries, states, bias, seed, made, heads, dropout, width):
    (names, asked, _), keys = queries.shape, states.shape[1]
    # One name a tile leaves most of it empty if few of its positions ask.
    tile = TILE if keys <= TILE // 2 or asked == keys <= TILE else LONGEST
    at_once = max(1, tile // max(keys, asked))
    kernel[(triton.cdiv(names, at_once), heads)](
        queries, states[..., -2 * width :], states[..., -width:], bias, seed, *made, names, asked, keys, at_once, heads,
        queries.stride(0), queries.stride(1), states.stride(0), states.stride(1), bias.stride(0),
        (width // heads) ** -0.5, dropout,
        QUERIES=power(at_once * asked), KEYS=power(at_once * keys), E=width // heads, DROPOUT=dropout > 0,
        num_warps=4 if tile == TILE else 8,  # with fewer the backward pass is out of registers
    )  # fmt: skip
