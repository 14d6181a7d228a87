"""The fused kernels of CUDA: what they compute, by Triton's interpreter; and where they are not used."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from domain_canine import layers_domain_canine as layers
from domain_canine.layers_domain_canine import kernels

TESTS = Path(__file__).parent


def test_they_compute_what_they_stand_for():
    """In a process of its own: Triton is told to interpret before it is imported."""
    pytest.importorskip("triton", reason="Triton comes with PyTorch for CUDA")
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", TESTS / "fused_on_cpu.py"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.endswith("all alike\n"), done.stderr


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


def test_characters_are_projected_in_the_precision_of_products(config, monkeypatch):
    """Adapters have their layers normalised by PyTorch, which leaves fp32 under autocast."""
    seen = []

    class Products:
        @staticmethod
        def apply(states, weights, left):
            seen.append((states.dtype, weights.dtype))
            return states

    norm = SimpleNamespace(apply=lambda states, *given: states)
    monkeypatch.setattr(layers, "kernels", lambda states: SimpleNamespace(WindowProducts=Products, ResidualNorm=norm))
    with torch.autocast("cpu", torch.bfloat16):
        layers.MoleculesToCharacters(config)(
            torch.randn(2, 8, config.hidden_size), torch.randn(2, 2, config.hidden_size)
        )
    assert seen == [(torch.bfloat16, torch.bfloat16)]
