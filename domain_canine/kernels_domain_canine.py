"""Whether a layer may be computed by the fused kernels of CUDA, instead of module by module."""

import warnings
from functools import cache
from types import SimpleNamespace

import torch
from torch import nn
from transformers.activations import GELUActivation


def is_plain(module: nn.Module) -> bool:
    """Whether it is what a kernel stands for: not an adapter, a quantised or pruned layer, or one that is watched."""
    stock = type(module) in (nn.Linear, nn.LayerNorm, nn.Dropout, GELUActivation)
    weight = type(getattr(module, "weight", None)) in (nn.Parameter, torch.Tensor, type(None))
    return stock and weight and not is_watched(module)


def is_watched(module: nn.Module) -> bool:
    """Whether somebody wants to see or change what it computes."""
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return any(hooks) or "forward" in vars(module) or hasattr(module, "_hf_hook")


def kernels(states: torch.Tensor):
    """Fused kernels where they compute: on the current GPU, in bf16 or fp16, not in what is compiled or exported."""
    if not states.is_cuda or torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return None
    halves = precision(states) in (torch.bfloat16, torch.float16)
    here = states.device.index == torch.cuda.current_device() and states.numel() > 0
    return _kernels() if halves and here and _takes_kernels(states.device) else None


@cache
def _takes_kernels(device: torch.device) -> bool:
    fused = _kernels()
    if not fused or torch.version.cuda is None or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    ones = torch.ones(1, 16, device=device, dtype=torch.bfloat16)
    try:
        fused.ResidualNorm.apply(ones, None, None, ones[0], ones[0], 1e-12, 0.0)
    except Exception as error:  # Triton wants a C compiler and Python's headers, which small images lack
        warnings.warn(f"layers run without fused kernels, which Triton cannot build: {error}", stacklevel=2)
        return False
    return True


@cache
def _kernels():
    try:
        from .fused_attention_domain_canine import Attention
        from .fused_domain_canine import BiasGelu, ResidualNorm
        from .fused_layer_domain_canine import Layer
        from .fused_projection_domain_canine import Projection
    except ImportError:  # no Triton, which comes with PyTorch for CUDA on Linux
        return None
    return SimpleNamespace(
        Attention=Attention, BiasGelu=BiasGelu, Layer=Layer, Projection=Projection, ResidualNorm=ResidualNorm
    )


def precision(states: torch.Tensor) -> torch.dtype:
    """What a product of these states is computed in, autocast or not."""
    kind = states.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind) and states.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return states.dtype
