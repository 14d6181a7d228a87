"""A layer of the Transformer on CUDA as one operation, forward and backward.

Its products are PyTorch's; between them are the kernels of ``fused_attention_domain_canine`` and
``fused_domain_canine``. Taken one by one, each product would have its weights converted from fp32 and their gradient
back by kernels of its own, and the gradients that reach a state by two ways would be added by another. Here one kernel
converts all weights, products leave gradients of weights in the weights' precision, and add those of states to what is
there. For few names a batch, when each kernel is little more than its start, that counts.

Shapes: B names, N states, Q queries, D width, F width of the feed-forward.
"""

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .fused_attention_domain_canine import Attention, attend, attend_backward, seeds
from .fused_domain_canine import activate, activate_backward, normalize, normalize_backward, programs

# Among the parameters, each with its bias after it.
QUERY, KEY, VALUE, OUT, NORM, WIDE, NARROW, LAST_NORM = range(0, 16, 2)


class Layer(torch.autograd.Function):
    """Attention and feed-forward, each with bias, dropout, residual and normalisation after it (post-norm, as BERT)."""

    takes = staticmethod(Attention.takes)

    @staticmethod
    def forward(ctx, queries, states, bias, heads: int, epsilons, dropouts, *parameters):
        """Queries (B, Q, D), or None for all states (B, N, D), both in the precision of products -> (B, Q, D).

        Args:
            bias: of the attention, (B, 1, 1, N).
            epsilons: of both normalisations.
            dropouts: of attention, after it, and after the feed-forward.
            parameters: weight and bias of query, key, value, the linear layer after attention, its normalisation, both
                linear layers of the feed-forward, its normalisation.
        """
        own, states = queries is None, states.contiguous()
        queries, width = states if own else queries.contiguous(), states.shape[-1]
        joined, out, wide, narrow, joined_bias = _converted(parameters, states.dtype)
        drawn = seeds(3, states).split(1) if any(dropouts) else (None, None, None)
        asked = None if own else F.linear(queries, joined[:width], joined_bias[:width])
        made = F.linear(states, joined if own else joined[width:], joined_bias if own else joined_bias[width:])
        context = attend(asked, made, bias, drawn[0], heads, dropouts[0])
        added = F.linear(context, out)
        between, *moments = normalize(
            added, parameters[OUT + 1], queries, *parameters[NORM : NORM + 2], drawn[1], epsilons[0], dropouts[1]
        )
        inner = F.linear(between, wide)
        activated = activate(inner, parameters[WIDE + 1])
        last = F.linear(activated, narrow)
        result, *last_moments = normalize(
            last, parameters[NARROW + 1], between, *parameters[LAST_NORM:], drawn[2], epsilons[1], dropouts[2]
        )
        ctx.save_for_backward(
            queries, states, bias, *drawn, joined, out, wide, narrow, asked, made, context, added, *moments, between,
            inner, activated, last, *last_moments,
            *(parameters[i] for i in (OUT + 1, NORM, WIDE + 1, NARROW + 1, LAST_NORM)),
        )  # fmt: skip
        ctx.own, ctx.heads, ctx.dropouts, ctx.kinds = own, heads, dropouts, [each.dtype for each in parameters]
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx, given):
        (
            queries, states, bias, seed, first_seed, last_seed, joined, out, wide, narrow, asked, made, context, added,
            mean, scale, between, inner, activated, last, last_mean, last_scale, out_bias, norm, wide_bias, narrow_bias,
            last_norm,
        ) = ctx.saved_tensors  # fmt: skip
        width, (attention_dropout, dropout, last_dropout) = given.shape[-1], ctx.dropouts
        found, wanted, kinds = [None] * len(ctx.kinds), ctx.needs_input_grad[-len(ctx.kinds) :], ctx.kinds
        sums = torch.empty(programs(len(mean)), 6 * width + inner.shape[-1], dtype=torch.float32, device=given.device)
        of_norm, of_last_norm, of_wide_bias = sums.split([3 * width, 3 * width, inner.shape[-1]], 1)

        def of_weights(given, states, *places):
            """Gradients of the weights of these parameters, which were joined."""
            if any(wanted[i] for i in places):
                joint = product(given.flatten(0, -2).t(), states.flatten(0, -2), kinds[places[0]])
                for i, part in zip(places, joint.chunk(len(places))):
                    found[i] = part

        of_last, of_between = normalize_backward(
            given.contiguous(), last, narrow_bias, between, last_norm, last_seed, last_mean, last_scale, last_dropout,
            of_last_norm,
        )  # fmt: skip
        of_weights(of_last, activated, NARROW)
        of_inner = activate_backward(of_last @ narrow, inner, wide_bias, of_wide_bias)
        of_weights(of_inner, between, WIDE)
        _add(of_between, of_inner, wide)
        of_added, of_queries = normalize_backward(
            of_between, added, out_bias, queries, norm, first_seed, mean, scale, dropout, of_norm
        )
        of_weights(of_added, context, OUT)
        of_asked, of_made, of_biases = attend_backward(
            of_added @ out, asked, made, bias, seed, ctx.heads, attention_dropout
        )
        if ctx.own:
            of_weights(of_made, states, QUERY, KEY, VALUE)
            _add(of_queries, of_made, joined)
            of_both = None, of_queries
        else:
            of_weights(of_asked, queries, QUERY)
            of_weights(of_made, states, KEY, VALUE)
            _add(of_queries, of_asked, joined[:width])
            of_both = of_queries, of_made @ joined[width:]
        of_vectors = [*of_biases.sum(0).split(width), *sums.sum(0).split([width] * 6 + [inner.shape[-1]])]
        places = (
            QUERY + 1, KEY + 1, VALUE + 1, NORM, NORM + 1, OUT + 1, LAST_NORM, LAST_NORM + 1, NARROW + 1, WIDE + 1,
        )  # fmt: skip
        for i, vector in zip(places, of_vectors):
            found[i] = vector.to(kinds[i]) if wanted[i] else None
        return *of_both, None, None, None, None, *found


def _converted(parameters, dtype):
    """In the precision of products: weights of query, key and value in one, the three others, the former's biases."""
    used = [parameters[i] for i in (QUERY, KEY, VALUE, OUT, WIDE, NARROW, QUERY + 1, KEY + 1, VALUE + 1)]
    sizes = [each.numel() for each in used]
    every = torch.empty(sum(sizes), dtype=dtype, device=used[0].device)
    parts = [part.view(each.shape) for part, each in zip(every.split(sizes), used)]
    torch._foreach_copy_(parts, [each.detach() for each in used])
    return every[: sum(sizes[:3])].view(-1, used[0].shape[1]), *parts[3:6], every[sum(sizes[:6]) :]


def product(a, b, dtype):
    """A product, which is summed in fp32 and not rounded to the precision of what it is made of."""
    if a.dtype == dtype:
        return a @ b
    return torch.mm(a, b, out_dtype=dtype) if a.is_cuda else a.to(dtype) @ b.to(dtype)


def _add(to, a, b) -> None:
    """A product, added to what is there."""
    to.flatten(0, -2).addmm_(a.flatten(0, -2), b)
