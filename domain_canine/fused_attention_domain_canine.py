"""Attention among few positions on CUDA, forward and backward, in Triton.

Names are short: 6 molecules or 20 characters, where kernels for attention work on tiles of 64 or 128 positions a name
and head. Here a tile takes as many names as it has room for, each of which attends within itself; and queries, keys and
values are read where one product has left them, their gradients written so. Dropout is drawn in the kernels from a seed
on the device, and again in the backward pass: by Philox (Salmon et al. 2011).

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
WARPS = {TILE: 4, LONGEST: 8}
# Of Philox: with 7 it passes the tests of randomness that it is known for (Salmon et al. 2011, table 2); usual are 10.
ROUNDS = tl.constexpr(7)
# Numbers that change from batch to batch: kernels are compiled once for all of them, at a second each.
ANY = ["names", "queries", "keys", "names_at_once", "bias_name", "dropped"]


@triton.jit
def kept(seed, rows, dropped, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """What dropout multiplies (ROWS, COLUMNS) with, of rows that are numbered.

    A draw of 128 bits is for eight columns: 16 bits each, which drop a share that is a multiple of 2 ** -16.
    """
    drawn = rows[:, None] * (COLUMNS // 8) + tl.arange(0, COLUMNS // 8)[None, :]
    a, b, c, d = tl.randint4x(seed, drawn, ROUNDS)
    bits = tl.join(tl.join(a, b), tl.join(c, d))
    bits = tl.reshape(tl.join(bits & 0xFFFF, (bits >> 16) & 0xFFFF), (ROWS, COLUMNS)).to(tl.int32)
    return tl.where(bits >= dropped, 65536.0 / (65536 - dropped), 0.0)


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
    query_name, query_row, key_name, key_row, bias_name, scale, dropped,
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
    factors = tl.full((QUERIES, KEYS), 1.0, tl.float32)
    if DROPOUT:
        factors = kept(tl.load(seed), (name * heads + head) * queries + at, dropped, QUERIES, KEYS)
    return head, name, at, known, other, place, there, query, key, value, weights, factors


@triton.jit(do_not_specialize=ANY)
def _attend(
    query_at, key_at, value_at, bias, seed, out_at, names, queries, keys, names_at_once, heads,
    query_name, query_row, key_name, key_row, bias_name, scale, dropped,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, E: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    head, name, at, known, _, _, _, _, _, value, weights, factors = _tile(
        query_at, key_at, value_at, bias, seed, names, queries, keys, names_at_once, heads,
        query_name, query_row, key_name, key_row, bias_name, scale, dropped, QUERIES, KEYS, E, DROPOUT,
    )  # fmt: skip
    out = tl.dot((weights * factors).to(value.dtype), value)
    where, mask = _rows(out_at, name, at, known, queries * heads * E, heads * E, head, E)
    tl.store(where, out.to(value.dtype), mask=mask)


@triton.jit(do_not_specialize=ANY)
def _attend_backward(
    query_at, key_at, value_at, bias, seed, given_at, query_to, key_to, value_to, sums_to, names, queries, keys,
    names_at_once, heads, query_name, query_row, key_name, key_row, bias_name, scale, dropped,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, E: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    head, name, at, known, other, place, there, query, key, value, weights, factors = _tile(
        query_at, key_at, value_at, bias, seed, names, queries, keys, names_at_once, heads,
        query_name, query_row, key_name, key_row, bias_name, scale, dropped, QUERIES, KEYS, E, DROPOUT,
    )  # fmt: skip
    given = _read(given_at, name, at, known, queries * heads * E, heads * E, head, E)
    of_value = tl.dot(tl.trans((weights * factors).to(given.dtype)), given)
    of_weights = tl.dot(given, tl.trans(value)) * factors
    of_scores = weights * (of_weights - tl.sum(weights * of_weights, 1)[:, None]) * scale
    of_scores = of_scores.to(query.dtype)
    of_query = tl.dot(of_scores, key)
    of_key = tl.dot(tl.trans(of_scores), query)
    where, mask = _rows(query_to, name, at, known, query_name, query_row, head, E)
    tl.store(where, of_query.to(query.dtype), mask=mask)
    where, mask = _rows(key_to, other, place, there, key_name, key_row, head, E)
    tl.store(where, of_key.to(query.dtype), mask=mask)
    where, mask = _rows(value_to, other, place, there, key_name, key_row, head, E)
    tl.store(where, of_value.to(query.dtype), mask=mask)
    into = sums_to + (tl.program_id(0).to(tl.int64) * 3 * heads + head) * E + tl.arange(0, E)
    tl.store(into, tl.sum(of_query, 0))  # of nothing are zeros, in rows and columns that are not known
    tl.store(into + heads * E, tl.sum(of_key, 0))
    tl.store(into + 2 * heads * E, tl.sum(of_value, 0))


def dropped(dropout: float) -> int:
    """Of 2 ** 16 numbers, how many a share is."""
    return round(dropout * 2**16)


def seeds(count: int, states: torch.Tensor) -> torch.Tensor:
    """Of dropout, on the device: what a CUDA graph replays draws others each time."""
    return torch.randint(2**31, (count,), device=states.device)


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
        queries, states = None if queries is None else queries.contiguous(), states.contiguous()
        seed = seeds(1, states) if dropout else None
        ctx.save_for_backward(queries, states, bias, seed)
        ctx.heads, ctx.dropout = heads, dropout
        return attend(queries, states, bias, seed, heads, dropout)

    @staticmethod
    @once_differentiable
    def backward(ctx, given):
        of_queries, of_states, _ = attend_backward(given.contiguous(), *ctx.saved_tensors, ctx.heads, ctx.dropout)
        return of_queries, of_states, None, None, None


def attend(queries, states, bias, seed, heads: int, dropout: float) -> torch.Tensor:
    """As ``Attention``, of contiguous tensors, with a seed on the device."""
    parts = _parts(queries, states)
    out = torch.empty(parts[0].shape, dtype=states.dtype, device=states.device)
    _launch(_attend, parts, bias, seed, [out], heads, dropout)
    return out


def attend_backward(given, queries, states, bias, seed, heads: int, dropout: float):
    """Gradients of queries, or None, and of states; and of queries, keys and values the sums of those over the
    positions of a tile, (tiles, 3 D) in fp32.
    """
    parts = _parts(queries, states)
    of_queries, of_states = None if queries is None else torch.empty_like(queries), torch.empty_like(states)
    tiles = triton.cdiv(len(states), _at_once(*parts[:2])[0])
    sums = torch.empty(tiles, 3 * given.shape[-1], dtype=torch.float32, device=given.device)
    _launch(_attend_backward, parts, bias, seed, [given, *_parts(of_queries, of_states), sums], heads, dropout)
    return of_queries, of_states, sums


def _parts(queries, states):
    """Queries, keys and values, (B, Q or N, D)."""
    parts = states.split(states.shape[-1] // (3 if queries is None else 2), -1)
    return parts if queries is None else (queries, *parts)


def _at_once(queries, keys):
    """Names of a tile, and warps."""
    asked, there = queries.shape[1], keys.shape[1]
    # One name a tile leaves most of it empty if few of its positions ask.
    tile = TILE if there <= TILE // 2 or asked == there <= TILE else LONGEST
    # With fewer warps the backward pass is out of registers.
    return max(1, tile // max(there, asked)), WARPS[tile]


def _launch(kernel, parts, bias, seed, made, heads, dropout):
    query, key, value = parts
    (names, asked, width), keys, (at_once, warps) = query.shape, key.shape[1], _at_once(query, key)
    kernel[(triton.cdiv(names, at_once), heads)](
        query, key, value, bias, seed, *made, names, asked, keys, at_once, heads,
        query.stride(0), query.stride(1), key.stride(0), key.stride(1), bias.stride(0),
        (width // heads) ** -0.5, dropped(dropout),
        QUERIES=power(at_once * asked), KEYS=power(at_once * keys), E=width // heads, DROPOUT=dropped(dropout) > 0,
        num_warps=warps,
    )  # fmt: skip
