"""The fused kernels of CUDA: what they compute, by Triton's interpreter; and where they are not used."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import kernels as kernels_benchmark
from domain_canine import layers_domain_canine as layers
from domain_canine import molecules_domain_canine as molecules
from domain_canine.errors import UserError
from domain_canine.kernels_domain_canine import kernels

TESTS = Path(__file__).parent


def test_they_compute_what_they_stand_for():
    """In a process of its own: Triton is told to interpret before it is imported."""
    pytest.importorskip("triton", reason="Triton comes with PyTorch for CUDA")
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", TESTS / "fused_on_cpu.py"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.endswith("all alike\n"), done.stderr


def test_the_benchmark_of_kernels_wants_a_gpu():
    with pytest.raises(UserError, match="no GPU"):
        kernels_benchmark.main([])


def test_a_cpu_has_none():
    with torch.autocast("cpu", torch.bfloat16):
        assert kernels(torch.ones(2, 3)) is None


@pytest.mark.parametrize("part", ["dense", "dropout", "LayerNorm", "intermediate", "activation", "weight"])
def test_what_is_watched_replaced_or_quantised_is_called_itself(config, monkeypatch, part):
    """A kernel would pass over it."""
    layer, called = layers.DomainCanineLayer(config).train(), []

    class Refused:
        @staticmethod
        def apply(states, *given):
            raise AssertionError(f"a kernel of {given[0].shape}")

    class Quantised(nn.Parameter):
        pass

    residual = layer.output
    if part == "weight":
        residual.dense.weight = Quantised(residual.dense.weight.detach())
    else:
        watched = {"intermediate": layer.intermediate["dense"], "activation": layer.activation}
        (watched.get(part) or getattr(residual, part)).register_forward_hook(lambda *given: called.append(part))
    monkeypatch.setattr(layers, "kernels", lambda states: SimpleNamespace(ResidualNorm=Refused, BiasGelu=Refused))
    states = torch.randn(2, 3, config.hidden_size)
    wide = torch.randn(2, 3, config.intermediate_size)
    if part in ("intermediate", "activation"):
        layer._wide(states)
    else:
        residual(wide, states)
    assert called == ([] if part == "weight" else [part])
    with pytest.raises(AssertionError, match="a kernel of"):
        layer.attention["output"](states, states)


class NotTaken:
    """A kernel that does what PyTorch does."""

    takes = staticmethod(lambda *given: False)

    @staticmethod
    def apply(states, added, residual=None, weight=None, bias=None, epsilon=None, dropout=0.0):
        if residual is None:
            return F.gelu(states + added)
        return F.layer_norm(F.dropout(states + added, dropout) + residual, states.shape[-1:], weight, bias, epsilon)


@pytest.mark.parametrize("part", [
    "attention.self", "attention.self.value", "attention.output", "attention.output.dropout", "intermediate.dense",
    "activation", "output", "output.LayerNorm",
])  # fmt: skip
def test_a_layer_is_one_operation_unless_a_part_of_it_is_watched(config, monkeypatch, part):
    layer, called = layers.DomainCanineLayer(config).train(), []
    operation = SimpleNamespace(takes=lambda *given: True, apply=lambda queries, states, *given: states + 1)
    there = SimpleNamespace(Layer=operation, **dict.fromkeys(("Attention", "BiasGelu", "ResidualNorm"), NotTaken))
    monkeypatch.setattr(layers, "kernels", lambda states: there)
    states, bias = torch.randn(2, 3, config.hidden_size), torch.zeros(2, 1, 1, 3)
    assert torch.equal(layer(states, bias)[0], states + 1)
    layer.get_submodule(part).register_forward_hook(lambda *given: called.append(part))
    assert not torch.equal(layer(states, bias)[0], states + 1) and called == [part]


def test_characters_are_projected_in_the_precision_of_products(config, monkeypatch):
    """Adapters have their layers normalised by PyTorch, which leaves fp32 under autocast."""
    seen = []

    class Projection:
        @staticmethod
        def apply(*given):
            seen.extend(each.dtype for each in given if torch.is_tensor(each))
            return given[0]

    same = SimpleNamespace(apply=lambda states, *given: states)
    there = SimpleNamespace(Projection=Projection, BiasGelu=same, ResidualNorm=same)
    monkeypatch.setattr(layers, "kernels", lambda states: there)
    monkeypatch.setattr(molecules, "kernels", lambda states: there)
    with torch.autocast("cpu", torch.bfloat16):
        molecules.MoleculesToCharacters(config)(
            torch.randn(2, 8, config.hidden_size), torch.randn(2, 2, config.hidden_size)
        )
    assert len(seen) == 6 and set(seen) == {torch.bfloat16}


@pytest.mark.parametrize("rate, width", [(4, 4), (4, 3), (2, 4), (4, 5)])
def test_the_products_of_the_projection_are_a_convolution(config, rate, width):
    """No name sees its neighbour."""
    pytest.importorskip("triton", reason="Triton comes with PyTorch for CUDA")
    from domain_canine.fused_projection_domain_canine import Projection

    config.downsampling_rate, config.upsampling_kernel_size = rate, width
    torch.manual_seed(0)
    projection = molecules.MoleculesToCharacters(config).double().eval()
    found = []
    for there in (None, SimpleNamespace(Projection=Projection)):
        torch.manual_seed(1)
        given = [
            torch.randn(3, count, config.hidden_size, dtype=torch.float64, requires_grad=True)
            for count in (3 * rate, 3)
        ]
        of_characters, of_molecules = projection.conv.weight.chunk(2, dim=1)
        summed = projection._summed(of_molecules)
        if there:
            states = projection._products(there, *given, of_characters, summed) + projection.conv.bias
        else:
            states = F.conv1d(F.pad(given[0].mT, projection.padding), of_characters, projection.conv.bias).mT
            states = states + projection._repeated(given[1], summed)
        moved = [*given, projection.conv.weight, projection.conv.bias]
        found.append([states, *torch.autograd.grad(states, moved, states.detach().sin())])
    for one, other in zip(*found):
        assert torch.allclose(one, other, atol=1e-10)
