"""Microseconds of each fused kernel on CUDA, beside what its bytes take at the bandwidth of a large copy.

    python -m benchmarks.kernels --json
    python -m benchmarks.kernels --search

Sizes are the base model's, of 256 and 4,096 names of 5 molecules, and of 20 characters. ``--search`` tells the best of
other tilings: rows and columns at once, warps, and how many programs share a backward pass. Launches are replayed as a
CUDA graph, so that their start does not count; the first of each compiles.
"""

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from domain_canine.errors import UserError, run

SHAPES = [(256, 5), (4096, 5), (4096, 20)]  # names, positions
WIDTH, WIDE, HEADS, DROPOUT = 768, 3072, 12, 0.1
LAUNCHES, ROUNDS = 20, 7
NORMALIZED = [(1, 1), (1, 2), (1, 4), (2, 2), (2, 4), (2, 8), (4, 4), (4, 8)]
ACTIVATED = [(1, 512, 2), (1, 1024, 4), (2, 512, 4), (2, 1024, 4), (2, 1024, 8), (4, 512, 8), (4, 1024, 8), (8, 256, 8)]
TILES = [(16, 1), (16, 2), (32, 1), (32, 2), (32, 4), (64, 2), (64, 4), (64, 8)]
PROGRAMS = [132, 264, 528, 660, 1056, 2112]


class Case(NamedTuple):
    name: str
    bytes: int  # that it must move: each of its inputs read once, each output written once
    run: Callable
    tilings: list[dict]  # what else the constants of its module could be


def cases(names: int, positions: int, width=WIDTH, wide=WIDE, heads=HEADS, device="cuda", dtype=torch.bfloat16):
    """Of names that all have so many positions."""
    from domain_canine import fused_attention_domain_canine as attention
    from domain_canine import fused_domain_canine as fused

    def states(*size):
        return torch.randn(names, positions, *size, device=device, dtype=dtype)

    def sums(size):
        return torch.empty(fused.programs(names * positions), size, device=device)

    seed, bias = torch.ones(1, dtype=torch.long, device=device), torch.zeros(names, 1, 1, positions, device=device)
    added, weight, shift = torch.randn(3, width, device=device)
    linear, residual, given, inner, of_inner = states(width), states(width), states(width), states(wide), states(wide)
    made, more = states(3 * width), torch.randn(wide, device=device)
    _, mean, scale = fused.normalize(linear, added, residual, weight, shift, seed, 1e-12, DROPOUT)
    size = linear.numel() * linear.element_size()
    rows = [{"NORMALIZED": each} for each in NORMALIZED]
    tiles = [{"TILE": tile, "WARPS": {tile: warps, attention.LONGEST: warps}} for tile, warps in TILES]
    tiles = [each for each in tiles if each["TILE"] >= positions]
    shared = list(itertools.product(NORMALIZED, PROGRAMS)), list(itertools.product(ACTIVATED, PROGRAMS))
    return [
        Case("normalize", 3 * size,
             lambda: fused.normalize(linear, added, residual, weight, shift, seed, 1e-12, DROPOUT), rows),
        Case("normalize_backward", 5 * size,
             lambda: fused.normalize_backward(
                 given, linear, added, residual, weight, seed, mean, scale, DROPOUT, sums(3 * width)),
             [{"NORMALIZED_BACKWARD": each, "PROGRAMS": programs} for each, programs in shared[0]]),
        Case("activate", 2 * size * wide // width, lambda: fused.activate(inner, more),
             [{"ACTIVATED": each} for each in ACTIVATED]),
        Case("activate_backward", 3 * size * wide // width,
             lambda: fused.activate_backward(of_inner, inner, more, sums(wide)),
             [{"ACTIVATED_BACKWARD": each, "PROGRAMS": programs} for each, programs in shared[1]]),
        Case("attend", 4 * size, lambda: attention.attend(None, made, bias, seed, heads, DROPOUT), tiles),
        Case("attend_backward", 7 * size,
             lambda: attention.attend_backward(given, None, made, bias, seed, heads, DROPOUT), tiles),
    ]  # fmt: skip


@contextmanager
def tiled(tiling: dict) -> Iterator[None]:
    """The kernels with other constants."""
    from domain_canine import fused_attention_domain_canine as attention
    from domain_canine import fused_domain_canine as fused

    there = {name: attention if name in ("TILE", "WARPS") else fused for name in tiling}
    before = {name: getattr(module, name) for name, module in there.items()}
    try:
        for name, value in tiling.items():
            setattr(there[name], name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(there[name], name, value)


def microseconds(launch: Callable) -> float:
    """Of one launch, the median of several replays of many."""
    launch()
    torch.cuda.synchronize()
    graph, times = torch.cuda.CUDAGraph(), []
    with torch.cuda.graph(graph):
        for _ in range(LAUNCHES):
            launch()
    for _ in range(ROUNDS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(1e3 * begin.elapsed_time(end) / LAUNCHES)
    return statistics.median(times)


def measure(made: list[Case], bandwidth: float, search: bool, timed: Callable) -> Iterator[dict]:
    for case in made:
        told = {"kernel": case.name, "us": timed(case.run), "floor_us": 1e6 * case.bytes / bandwidth}
        if search:
            found = []
            for tiling in case.tilings:
                with tiled(tiling):
                    found.append((timed(case.run), str(tiling)))
            told |= dict(zip(("best_us", "best"), min(found)))
        yield {name: round(value, 1) if isinstance(value, float) else value for name, value in told.items()}


def bandwidth_of_a_copy() -> float:
    """Bytes a second, read and written."""
    one, other = torch.empty(2, 2**30, dtype=torch.uint8, device="cuda")
    return 1e6 * 2 * one.nbytes / microseconds(lambda: one.copy_(other))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__.splitlines()[0])
    parser.add_argument("--search", action="store_true", help="other tilings, too")
    parser.add_argument("--json", action="store_true", help="one JSON object as well, last on stdout")
    parsed = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise UserError("the fused kernels are for CUDA, and there is no GPU here that torch sees")
    bandwidth, rows = bandwidth_of_a_copy(), []
    for shape in SHAPES:
        for found in measure(cases(*shape), bandwidth, parsed.search, microseconds):
            rows.append(dict(zip(("names", "positions"), shape)) | found)
            print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), file=sys.stderr)
    if parsed.json:
        found = {"device": torch.cuda.get_device_name(), "bytes_per_s": round(bandwidth), "kernels": rows}
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    run(main)
