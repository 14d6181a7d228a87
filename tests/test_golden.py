"""The losses of a small run are those of the one on file, on any machine: what moves them was meant to."""

import json

import numpy as np
import pytest
from golden import EPOCHS, GOLDEN, curve, difference

# Two threads, AVX2 or no vector kernels move them by 3e-7 at most.
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def kept() -> dict:
    return json.loads(GOLDEN.read_text())


def test_the_losses_are_the_golden_ones(kept):
    found = difference(curve(), kept["curve"])
    assert max(found["loss"], found["grad_norm"], found["eval_loss"]) <= TOLERANCE, (found, kept["origin"])


def test_the_golden_run_learns_and_tells_where_it_comes_from(kept):
    loss, evaluations = kept["curve"]["loss"], kept["curve"]["eval_loss"]
    assert len(loss) == 5 * EPOCHS and len(evaluations) == EPOCHS
    assert np.mean(loss[-10:]) < 0.8 * np.mean(loss[:10]) and evaluations[-1] < evaluations[0]
    assert all(kept["origin"][name] for name in ("commit", "torch", "transformers", "numpy", "device"))
