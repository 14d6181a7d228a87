"""Names a second of a training step, ours against stock CANINE: forward, backward, clipping, optimiser.

    python -m benchmarks.train_step --size base --names names.txt.gz --json
    python -m benchmarks.train_step --device cuda --sweep --json
    python -m benchmarks.train_step --size small --profile trace.json

The stock side is ``transformers.CanineModel`` with eager attention, every name padded to 128 code points, and the same
head and loss at all positions. Both sides train on the same masked names, in the same precision (bf16 autocast on CUDA,
fp32 on a CPU), with fused AdamW, and take turns; medians of the rounds are told. Batches are made before.
"""

import argparse
import gc
import json
import resource
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from transformers import CanineModel

from benchmarks import operations
from benchmarks.data_path import real_names, shuffled, tell
from domain_canine.batches import NameBatches
from domain_canine.cleaning import SPECIAL
from domain_canine.configuration_domain_canine import DomainCanineConfig
from domain_canine.errors import run
from domain_canine.guards import memory_is_out
from domain_canine.masking import IGNORED, DataCollatorForCodePointMasking
from domain_canine.modeling_domain_canine import DomainCanineForMaskedLM, DomainCanineLMHead
from domain_canine.pretrained import SIZES
from domain_canine.recorded import RecordedSteps, largest_pass
from domain_canine.sample import sample_names
from domain_canine.sampling import slots
from domain_canine.table import spans, table_of

STOCK_LENGTH = 128
LONGEST = 118  # characters; with more, 128 slots are too few for stock CANINE to be independent of its padding
BATCHES = {"cpu": 8, "cuda": 64}  # of a round, short and long names in their proportion
NAMES = {("cpu", "tiny"): 512, ("cpu", "small"): 512, ("cpu", "base"): 128}  # a batch; CUDA 256
SWEEP = (256, 512, 1024, 2048, 4096, 8192)
ROUNDS = 5
WARM = {"cpu": 1, "cuda": 3}  # rounds before; on CUDA the second records, the third again what gave way to longer ones


class StockMaskedLM(nn.Module):
    """Stock CANINE with our head at every position."""

    def __init__(self, config: DomainCanineConfig):
        super().__init__()
        self.canine = CanineModel(config)
        self.lm_head = DomainCanineLMHead(config)

    def forward(self, input_ids, attention_mask, labels):
        logits = self.lm_head(self.canine(input_ids, attention_mask).last_hidden_state)
        return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED)


def load_names(path: Path | None) -> list[str]:
    """The names of a file, or the sample's, that both sides can take."""
    names = shuffled(real_names(path)).to_pylist() if path else sample_names()
    return [name for name in names if len(name) <= LONGEST]


def as_stock(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same masked names and targets, padded to 128, with labels at all positions."""
    rows, length = batch["input_ids"].shape
    labels = torch.full((rows, STOCK_LENGTH), IGNORED)
    row, k = torch.nonzero(batch["labels"] != IGNORED, as_tuple=True)
    labels[row, batch["masked_positions"][row, k]] = batch["labels"][row, k]
    padding = (0, STOCK_LENGTH - length)
    return {
        "input_ids": F.pad(batch["input_ids"], padding),
        "attention_mask": F.pad(batch["attention_mask"], padding),
        "labels": labels,
    }


class Side:
    """A model in training.

    Args:
        loss: of a batch on the device.
        recorded: forward and backward passes are replayed as CUDA graphs; on other devices they are not.
    """

    def __init__(self, model: nn.Module, device: str, loss, recorded: bool = False):
        self.model, self.device, self.loss = model.to(device).train(), device, loss
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.01, fused=True)
        self.micro_step = self._micro_step
        if recorded and device == "cuda":
            device = torch.device(device)
            self.micro_step = RecordedSteps(model.parameters(), self._micro_step, device, largest_pass(device))

    def _micro_step(self, batch):
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            loss = self.loss(batch)
        loss.backward()
        return (loss.detach(),)

    def step(self, *micro_batches: dict[str, torch.Tensor]) -> torch.Tensor:
        """One step; the loss of its last micro-batch, until the next step."""
        for batch in micro_batches:
            (loss,) = self.micro_step(batch)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss

    def names_per_s(self, batches: list[dict[str, torch.Tensor]], accumulation: int = 1) -> float:
        wait(self.device)
        start = time.perf_counter()
        for first in range(0, len(batches), accumulation):
            self.step(*batches[first : first + accumulation])
        wait(self.device)
        return sum(len(batch["input_ids"]) for batch in batches) / (time.perf_counter() - start)


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def our_side(
    config: DomainCanineConfig, device: str, compiled: bool = False, mode: str | None = None, recorded: bool = False
) -> Side:
    torch.manual_seed(0)
    model = DomainCanineForMaskedLM(config)
    called = model
    if compiled:
        torch._dynamo.config.recompile_limit = 64
        called = torch.compile(model, dynamic=False, fullgraph=True, mode=mode)
    return Side(model, device, lambda batch: called(**batch).loss, recorded and not compiled)


def asked_side(config: DomainCanineConfig, parsed: argparse.Namespace) -> Side:
    """Ours, compiled or recorded as the flags say."""
    return our_side(config, parsed.device, parsed.torch_compile, parsed.torch_compile_mode, not parsed.no_cuda_graphs)


def stock_side(config: DomainCanineConfig, device: str) -> Side:
    torch.manual_seed(0)
    stock_config = DomainCanineConfig(**config.to_dict() | {"attn_implementation": "eager"})
    model = StockMaskedLM(stock_config)
    return Side(model, device, lambda batch: model(**batch))


def make_batches(names: list[str], size: int, count: int, fixed_shapes: bool) -> tuple[list[dict], float]:
    """Masked batches of a window, as many of short and of long names as there are; and how many names a second.

    Names are repeated where they are too few for a window of 64 batches, in which they are brought together by length.
    """
    names = (names * -(-64 * size // len(names)))[: max(len(names), 64 * size)]
    table = table_of(names)
    lengths = spans(table.sources[0])[2].astype("uint8")
    made = NameBatches(table, lengths, DataCollatorForCodePointMasking(), size, fixed_shapes=fixed_shapes)
    start = time.perf_counter()
    batches = [made[0, step] for step in range(64)]
    rate = size * len(batches) / (time.perf_counter() - start)
    batches.sort(key=lambda batch: batch["input_ids"].shape[1])
    return [batches[(2 * i + 1) * len(batches) // (2 * count)] for i in range(count)], rate


def on(device: str, batches: list[dict]) -> list[dict]:
    return [
        {name: values.to(device) if torch.is_tensor(values) else values for name, values in batch.items()}
        for batch in batches
    ]


def with_items(batches: list[dict]) -> list[dict]:
    """What the loss of each is divided by: of a part of one, too."""
    return [batch | {"num_items_in_batch": (batch["labels"] != IGNORED).sum().clamp(min=1)} for batch in batches]


def peak_memory(device: str) -> float:
    """MB: held of the device, by records too, or of this process where that is a CPU."""
    if device == "cuda":
        return torch.cuda.max_memory_reserved() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def matmul_peak(device: str) -> float:
    """Operations a second of a large matrix product, the best of several: bf16 on CUDA, fp32 on a CPU."""
    size, kind = (8192, torch.bfloat16) if device == "cuda" else (2048, torch.float32)
    a, b = torch.randn(2, size, size, device=device, dtype=kind)
    times = []
    for _ in range(10):
        wait(device)
        start = time.perf_counter()
        a @ b
        wait(device)
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


def utilisation(config, batches: list[dict], names_per_s: float, peak: float) -> dict[str, float]:
    """Share of the measured matrix-product peak: operations of all computed slots, and of real code points alone."""
    computed, useful = map(sum, zip(*(operations.of_batch(config, batch) for batch in batches)))
    seconds = sum(len(batch["input_ids"]) for batch in batches) / names_per_s
    computed_slots = sum(
        rows * int(slots(length - SPECIAL)) for rows, length in (b["input_ids"].shape for b in batches)
    )
    real = sum(batch["attention_mask"].sum().item() for batch in batches)
    return {
        "padding_efficiency": round(real / computed_slots, 4),
        "mfu": round(computed / seconds / peak, 4),
        "mfu_useful": round(useful / seconds / peak, 4),
        "floor_names_per_s": round(names_per_s * seconds * peak / computed),
    }


def compare(names: list[str], parsed: argparse.Namespace, size: int) -> dict[str, float]:
    """Both sides on the same names, by turns."""
    config, device = DomainCanineConfig(**SIZES[parsed.size]), parsed.device
    batches, collated = make_batches(names, size, parsed.batches, parsed.fixed_shapes)
    mine, theirs = on(device, with_items(batches)), on(device, [as_stock(batch) for batch in batches])
    ours = asked_side(config, parsed)
    for batch in mine * WARM[device]:
        ours.step(batch)
    memory = peak_memory(device)
    launches = {}
    if not (parsed.torch_compile or isinstance(ours.micro_step, RecordedSteps)):
        with operations.Launches() as launched:
            ours.step(mine[0])
        launches = {"launches": launched.count}
    stock = stock_side(config, device)
    stock.step(theirs[0])
    # Every batch costs the stock side the same: it takes as many as last about as long as ours.
    rates = [[], []]
    for i in range(parsed.rounds):
        rates[0].append(ours.names_per_s(mine))
        few = max(1, len(theirs) // 8)
        rates[1].append(stock.names_per_s([theirs[(i * few + j) % len(theirs)] for j in range(few)]))
    rate, stock_rate = map(statistics.median, rates)
    return {
        "size": parsed.size, "device": name_of(device), "batch": size,
        "names_per_s": round(rate, 2), "stock_names_per_s": round(stock_rate, 2),
        "ratio": round(statistics.median(a / b for a, b in zip(*rates)), 2),
        "peak_memory_mb": round(memory), "collator_names_per_s": round(collated),
    } | launches | utilisation(config, batches, rate, matmul_peak(device))  # fmt: skip


def name_of(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else f"cpu, {torch.get_num_threads()} threads"


def sweep(names: list[str], parsed: argparse.Namespace) -> list[dict[str, float]]:
    """Our side at growing batches, until memory is out."""
    config, device, peak = DomainCanineConfig(**SIZES[parsed.size]), parsed.device, matmul_peak(parsed.device)
    rows = []
    for size in SWEEP:
        batches = make_batches(names, size, parsed.batches, parsed.fixed_shapes)[0]
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        ours, mine = asked_side(config, parsed), on(device, with_items(batches))
        try:
            for batch in mine * WARM[device]:
                ours.step(batch)
            rate = statistics.median(ours.names_per_s(mine) for _ in range(parsed.rounds))
        except RuntimeError as error:
            if not memory_is_out(error):
                raise
            break
        told = {"batch": size, "names_per_s": round(rate), "peak_memory_mb": round(peak_memory(device))}
        rows.append(told | utilisation(config, batches, rate, peak))
        print(json.dumps(rows[-1]), file=sys.stderr)
        del ours, mine
        gc.collect()  # a side and its records hold each other, and the next one's memory is counted
    return rows


def profile(names: list[str], parsed: argparse.Namespace, size: int) -> None:
    """A trace for chrome://tracing, and the operators that take longest."""
    batches = on(parsed.device, with_items(make_batches(names, size, parsed.batches, parsed.fixed_shapes)[0]))
    config = DomainCanineConfig(**SIZES[parsed.size])
    ours = asked_side(config, parsed)
    for batch in batches * WARM[parsed.device]:
        ours.step(batch)
    with torch.profiler.profile() as profiler:
        ours.names_per_s(batches[:4])
    profiler.export_chrome_trace(str(parsed.profile))
    slowest = f"self_{parsed.device}_time_total"
    print(profiler.key_averages().table(sort_by=slowest, row_limit=30, max_name_column_width=60), file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_step", description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=list(SIZES), default="base")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--names", type=Path, help="a text file of names, plain or compressed; default: the sample")
    parser.add_argument("--batch", type=int, help="names a batch; on a CPU 128 for base and 512 for others, else 256")
    parser.add_argument("--batches", type=int, help="batches of a round; 8 on a CPU, 64 on CUDA")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--fixed_shapes", action="store_true", help="batches in few shapes, as for compiled kernels")
    parser.add_argument("--torch_compile", action="store_true", help="ours compiled, for fixed shapes")
    parser.add_argument("--torch_compile_mode", help="as of torch.compile, such as max-autotune-no-cudagraphs")
    parser.add_argument("--no_cuda_graphs", action="store_true", help="ours started kernel by kernel on CUDA")
    parser.add_argument("--sweep", action="store_true", help="our side alone, at growing batches")
    parser.add_argument(
        "--profile", type=Path, help="our side alone: write a trace there, and tell where the time goes"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object as well, last on stdout")
    parsed = parser.parse_args(arguments)
    parsed.fixed_shapes |= parsed.torch_compile
    parsed.batches = parsed.batches or BATCHES[parsed.device]
    size = parsed.batch or NAMES.get((parsed.device, parsed.size), 256)
    names = load_names(parsed.names)
    torch.set_float32_matmul_precision("high")  # TF32, on both sides
    if parsed.profile:
        profile(names, parsed, size)
        return 0
    if not parsed.sweep:
        tell(compare(names, parsed, size), parsed.json)
        return 0
    rows = sweep(names, parsed)
    if parsed.json:
        print(json.dumps({"sweep": rows}))
    return 0


if __name__ == "__main__":
    run(main)
