"""The fused kernels against float64, run by Triton's interpreter; started by test_fused.py.

    TRITON_INTERPRET=1 python tests/fused_on_cpu.py

bf16 is left to the GPU: the interpreter has no products of it.
"""

from types import SimpleNamespace

import torch
from conftest import SMALL
from torch.nn import functional as F

from benchmarks import kernels as benchmark
from benchmarks.train_step import make_batches, our_side
from domain_canine import fused_attention_domain_canine as fused_attention
from domain_canine import fused_domain_canine as fused
from domain_canine import layers_domain_canine as layers
from domain_canine import molecules_domain_canine as molecules
from domain_canine.configuration_domain_canine import DomainCanineConfig
from domain_canine.fused_attention_domain_canine import Attention
from domain_canine.fused_layer_domain_canine import product
from domain_canine.kernels_domain_canine import _kernels
from domain_canine.sample import sample_names

ALLOWED = {torch.float32: 1e-5, torch.float16: 5e-3}  # of the norm
TWO_HEADS = SMALL | {"hidden_size": 64, "num_attention_heads": 2}
# Names, queries, keys, heads, width of a head: several names a tile and one, and queries that are not the keys.
SHAPES = [
    (7, 6, 6, 3, 16), (5, 5, 6, 2, 64), (3, 20, 20, 2, 16), (4, 3, 20, 2, 16), (3, 40, 40, 2, 16), (2, 64, 64, 1, 32),
    (9, 3, 3, 2, 16), (2, 7, 40, 2, 16),
]  # fmt: skip


def same(mine, reference, *given) -> None:
    """Values and all gradients, in either precision."""
    for dtype, allowed in ALLOWED.items():
        one = [each.to(dtype, copy=True).requires_grad_() for each in given]
        other = [each.detach().double().requires_grad_() for each in one]
        outs = mine(*one), reference(*other)
        into = torch.randn_like(outs[0])
        outs[0].backward(into), outs[1].backward(into.double())
        for a, b in zip([outs[0], *(each.grad for each in one)], [outs[1], *(each.grad for each in other)]):
            assert (a.double() - b).norm() <= allowed * b.norm(), (dtype, [tuple(each.shape) for each in given])


def attention_is_that_of_pytorch() -> None:
    for names, queries, keys, heads, size in SHAPES:
        width, own = heads * size, queries == keys
        mask = torch.rand(names, keys) > 0.3
        mask[:, 0] = True

        def bias(dtype, mask=mask):
            return torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, float("-inf"))[:, None, None]

        def mine(states, asked=None, bias=bias, heads=heads):
            return Attention.apply(asked, states, bias(states.dtype), heads, 0.0)

        def reference(states, asked=None, bias=bias, heads=heads, width=width):
            parts = states.split(width, -1)
            parts = (parts[0] if asked is None else asked, *parts[-2:])
            query, key, value = (each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in parts)
            out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias(states.dtype))
            return out.transpose(1, 2).flatten(2)

        given = [torch.randn(names, keys, (3 if own else 2) * width)]
        same(mine, reference, *given, *([] if own else [torch.randn(names, queries, width)]))


def the_others_are_what_they_stand_for() -> None:
    def normed(states, added, residual, weight, bias):
        return fused.ResidualNorm.apply(states, added, residual, weight, bias, 1e-12, 0.0)

    for rows, width in ((3, 768), (4, 48), (70, 48)):
        vectors = [torch.randn(width) for _ in range(3)]
        states, residual = torch.randn(2, rows, width)
        same(
            normed, lambda x, added, r, weight, bias, width=width: F.layer_norm(x + added + r, (width,), weight, bias, 1e-12),
            states, vectors[0], residual, *vectors[1:],
        )  # fmt: skip
        same(
            lambda x, weight, bias: normed(x, None, None, weight, bias),
            lambda x, weight, bias, width=width: F.layer_norm(x, (width,), weight, bias, 1e-12), states, *vectors[1:],
        )  # fmt: skip
    for rows, width in ((17, 1100), (3, 48)):
        same(fused.BiasGelu.apply, lambda x, added: F.gelu(x + added), torch.randn(2, rows, width), torch.randn(width))


def dropout_is_drawn_alike_both_ways() -> None:
    """By differences, of one seed; and it drops the share that is asked for."""
    draws, torch.randint = torch.randint, lambda *size, **options: torch.tensor([12345])
    bias, width, step = torch.zeros(3, 1, 1, 6), 48, 1e-2
    vectors = torch.randn(3, width)
    for run, shape in (
        (lambda x: Attention.apply(None, x, bias, 2, 0.3), (3, 6, 3 * 32)),
        (lambda x: fused.ResidualNorm.apply(x, vectors[0], x.flip(0), *vectors[1:], 1e-12, 0.3), (50, width)),
    ):
        states, along = torch.randn(shape, requires_grad=True), torch.randn(shape)
        out = run(states)
        into = torch.randn_like(out)
        out.backward(into)
        with torch.no_grad():
            difference = ((run(states + step * along) - run(states - step * along)) / (2 * step) * into).sum()
        assert torch.isclose((states.grad * along).sum(), difference, rtol=1e-2), (states.grad * along).sum()
    # With the mask that was drawn, found by states of nothing but ones: values and all gradients.
    (rows, width), share = (37, 100), 0.3
    one, zero, nothing = torch.ones(width), torch.zeros(width), torch.zeros(rows, width)
    mask = (fused.ResidualNorm.apply(nothing, one, nothing, one, zero, 1e-12, share) > 0) / (1 - share)
    vectors = torch.randn(3, width)
    same(
        lambda x, added, r, weight, bias: fused.ResidualNorm.apply(x, added, r, weight, bias, 1e-12, share),
        lambda x, added, r, weight, bias: F.layer_norm((x + added) * mask + r, (width,), weight, bias, 1e-12),
        torch.randn(rows, width), vectors[0], torch.randn(rows, width), *vectors[1:],
    )  # fmt: skip
    torch.randint = draws


def dropout_drops_each_by_itself() -> None:
    """The share that is asked for; and no other with it, in other rows or columns, names, heads, queries or keys."""
    share, names, keys, heads, size = 0.3, 300, 6, 2, 16
    one, zero = torch.ones(256), torch.zeros(256)
    normed = fused.ResidualNorm.apply(torch.ones(400, 256), None, None, one, zero, 1e-12, share) > 0
    # A key's value is 1 where its number is: what comes out are the weights after dropout.
    states = torch.zeros(names, keys, 3, heads, size)
    for key in range(keys):
        states[:, key, 2, :, key] = 1
    out = Attention.apply(None, states.flatten(2), torch.zeros(names, 1, 1, keys), heads, share)
    weights = out.unflatten(-1, (heads, size))[..., :keys]
    assert torch.isclose(weights.max() * keys * (1 - share), torch.ones(()))
    for kept in (normed, weights > 0):
        assert abs(kept.float().mean() - (1 - share)) < 1e-2
        # Correlations with itself, shifted in all ways at once: none but that which is not shifted.
        power = torch.fft.fftn(kept.double() - kept.double().mean()).abs().square()
        correlations = torch.fft.ifftn(power).real.flatten()
        assert abs(correlations[1:] / correlations[0]).max() < 0.05, kept.shape


def a_layer_drops_alike_both_ways() -> None:
    """By differences, along the states and all parameters, with three seeds; its queries are all states, or some."""
    counts, draws = [], torch.randint
    torch.randint = lambda top, size, **options: counts.append(size[0]) or torch.arange(size[0]) + 12345
    config = DomainCanineConfig(**TWO_HEADS | {"hidden_dropout_prob": 0.2})
    layer, there = layers.DomainCanineLayer(config).train(), _kernels()
    layers.kernels = lambda states: there
    states, bias, step = torch.randn(5, 6, 64, requires_grad=True), torch.zeros(5, 1, 1, 6), 1e-3
    for asked in (slice(None), slice(1, 4)):

        def run(states, asked=asked):
            return layer(states, bias, None if asked == slice(None) else states[:, asked])[0]

        moved = [states, *layer.parameters()]
        out = run(states)
        into, along = torch.randn_like(out), [torch.randn_like(each) for each in moved]
        gradients = torch.autograd.grad(out, moved, into)
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                torch._foreach_add_(moved[1:], along[1:], alpha=sign * step)
                ends.append((run(states + sign * step * along[0]) * into).sum())
                torch._foreach_add_(moved[1:], along[1:], alpha=-sign * step)
        found = sum((gradient * way).sum() for gradient, way in zip(gradients, along))
        assert torch.isclose(found, (ends[0] - ends[1]) / (2 * step), rtol=1e-2), (found, ends)
        expanded = torch.ones(()).expand_as(out)  # as of a sum: not contiguous
        one, other = (torch.autograd.grad(run(states), states, each)[0] for each in (expanded, expanded.clone()))
        assert torch.equal(one, other)
        layer.requires_grad_(False)
        assert torch.allclose(torch.autograd.grad(run(states), states, into)[0], gradients[0], atol=1e-4)
        layer.requires_grad_(True)
    assert set(counts) == {3}
    torch.randint = draws


def each_dropout_of_a_layer_is_its_own() -> None:
    """And none is left where its module is not in training."""
    there = _kernels()
    layers.kernels = lambda states: there
    config = DomainCanineConfig(**TWO_HEADS)
    states, bias = torch.randn(5, 6, 64), torch.zeros(5, 1, 1, 6)
    for place in (None, 0, 1, 2):
        layer = layers.DomainCanineLayer(config).train()
        config.attention_probs_dropout_prob = 0.5 if place == 0 else 0.0
        layer.attention["output"].dropout.p, layer.output.dropout.p = (0.5 if place == i else 0.0 for i in (1, 2))
        layer.attention["output"].LayerNorm.eps = 0.1  # as are the normalisations
        one, other = layer(states, bias)[0], layer(states, bias)[0]
        assert torch.equal(one, other) == (place is None), place
        if place is None:
            layers.kernels = lambda states: None
            assert torch.allclose(layer(states, bias)[0], one, atol=1e-5)
            layers.kernels = lambda states: there
        modules = (layer.attention["self"], layer.attention["output"].dropout, layer.output.dropout)
        for module in modules if place is None else modules[place : place + 1]:
            module.eval()
        assert torch.equal(layer(states, bias)[0], layer(states, bias)[0]), place


def a_layer_takes_fp32_from_one_that_is_not_fused() -> None:
    there = _kernels()
    layers.kernels = lambda states: there
    layer = layers.DomainCanineLayer(DomainCanineConfig(**TWO_HEADS))
    states = torch.randn(5, 6, 64, requires_grad=True)
    for queries in (None, states[:, 1:4]):
        with torch.autocast("cpu", torch.float16):
            out = layer(states, torch.zeros(5, 1, 1, 6), queries)[0]
        out.float().square().sum().backward()
        assert out.dtype == torch.float16 and states.grad.isfinite().all()


def activations_may_be_checkpointed() -> None:
    """Names of 70 characters take kernels one by one, short ones a layer at once."""
    config = TWO_HEADS | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    side, there = our_side(DomainCanineConfig(**config), "cpu"), _kernels()
    layers.kernels = molecules.kernels = lambda states: there
    for name in ("a" * 66 + ".com", "short.com"):
        found, (batch,) = [], make_batches([name] * 2, 2, 1, False)[0]
        for checkpointed in (False, True):
            if checkpointed:
                side.model.gradient_checkpointing_enable()
            side.optimizer.zero_grad()
            side.loss(batch).backward()
            found.append([parameter.grad.clone() for parameter in side.model.parameters()])
        assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(*found))
        side.model.gradient_checkpointing_disable()


def products_are_not_rounded_on_the_way() -> None:
    one, other = torch.randn(2, 30, 40).half()
    found, exact = product(one, other.t(), torch.float32), one.double() @ other.t().double()
    assert found.dtype == torch.float32 and (found - exact).norm() < 1e-6 * exact.norm()


def the_benchmark_times_each_and_finds_the_best_tiling() -> None:
    made, times = benchmark.cases(6, 5, 32, 64, 2, "cpu", torch.float32), iter(range(10**6, 0, -1))
    before = fused.NORMALIZED, fused.PROGRAMS, fused_attention.TILE
    for row in benchmark.measure(made, 1e9, True, lambda run: (run(), float(next(times)))[1]):
        # Each try is faster than the one before.
        *_, last = next(case for case in made if case.name == row["kernel"]).tilings
        assert row["best"] == str(last) and row["best_us"] < row["us"] and row["floor_us"] > 0
    assert before == (fused.NORMALIZED, fused.PROGRAMS, fused_attention.TILE)


def gradients_have_no_gradients() -> None:
    """Rather than wrong ones."""
    states = torch.randn(2, 16, requires_grad=True)
    out = fused.BiasGelu.apply(states, torch.zeros(16))
    (gradient,) = torch.autograd.grad(out.sum(), states, create_graph=True)
    try:
        gradient.square().sum().backward()
    except RuntimeError:
        return
    raise AssertionError("a second derivative")


def what_does_not_fit_a_tile_is_refused() -> None:
    for queries, keys, width, heads in ((0, 6, 64, 2), (65, 6, 64, 2), (6, 65, 64, 2), (6, 6, 96, 2), (6, 6, 16, 2)):
        assert not Attention.takes(torch.Size([3, queries, width]), torch.Size([3, keys, width]), heads)
    assert Attention.takes(torch.Size([3, 64, 64]), torch.Size([3, 64, 64]), 2)


def a_model_has_the_loss_and_gradients_that_it_has_without() -> None:
    config = TWO_HEADS
    side = our_side(DomainCanineConfig(**config, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), "cpu")
    there, layer = _kernels(), _kernels().Layer
    taken = []
    there.Layer = SimpleNamespace(
        takes=layer.takes, apply=lambda *given: taken.append(given[1].dtype) or layer.apply(*given)
    )
    for batch in make_batches(sample_names(3000), 8, 3, False)[0]:
        found = []
        for kernels in (None, there):
            layers.kernels = molecules.kernels = lambda states, kernels=kernels: kernels
            side.optimizer.zero_grad()
            loss = side.loss(batch)
            loss.backward()
            found.append([loss.detach(), *(parameter.grad.clone() for parameter in side.model.parameters())])
        for one, other in zip(*found):
            assert (one - other).norm() <= 1e-4 * one.norm() + 1e-5  # the keys' bias has none
    every = 2 + config["num_hidden_layers"]
    assert taken == 3 * every * [torch.float32]
    ids, given = batch["input_ids"], {"ascii_only": True, "attention_mask": batch["attention_mask"]}
    places = torch.arange(1, ids.shape[1] + 1).expand_as(ids)
    for more in ({}, {"token_type_ids": torch.ones_like(ids)}, {"position_ids": places}):
        logits = []
        for kernels in (None, there):
            layers.kernels = molecules.kernels = lambda states, kernels=kernels: kernels
            logits.append(side.model(ids, **given, **more).logits)
        real = batch["attention_mask"] != 0
        assert (logits[0] - logits[1])[real].norm() <= 1e-4 * logits[0][real].norm(), list(more)
    taken.clear()
    with torch.autocast("cpu", torch.float16):
        half = side.loss(batch)
    half.backward()
    assert taken == every * [torch.float16] and abs(half - loss) < 1e-3 * loss


if __name__ == "__main__":
    torch.manual_seed(0)
    attention_is_that_of_pytorch()
    the_others_are_what_they_stand_for()
    dropout_is_drawn_alike_both_ways()
    dropout_drops_each_by_itself()
    a_layer_drops_alike_both_ways()
    each_dropout_of_a_layer_is_its_own()
    a_layer_takes_fp32_from_one_that_is_not_fused()
    activations_may_be_checkpointed()
    products_are_not_rounded_on_the_way()
    the_benchmark_times_each_and_finds_the_best_tiling()
    gradients_have_no_gradients()
    what_does_not_fit_a_tile_is_refused()
    a_model_has_the_loss_and_gradients_that_it_has_without()
    print("all alike")
