"""The fused kernels of CUDA: what they compute, by Triton's interpreter; and where they are not used."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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
