"""Names a second through a trained model on a CPU, ours, ONNX Runtime's and stock CANINE's: logits, and scores.

    python -m benchmarks.inference --size small --names names.txt.gz --json
    python -m benchmarks.inference --model runs/mine --batch 1

From text to logits at all positions, like lengths together. The stock side is ``CanineTokenizer``,
``transformers.CanineModel`` with eager attention and the same head at all positions, every name padded to 128. Scores:
``score_names``, in fp32 and bf16, against the same sum by the stock side, which runs a masked copy of a name for each
of its characters. All have the same weights, and take turns; medians of the rounds are told. Each row costs the stock
side the same, so that it is given fewer.
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import CanineTokenizer

from benchmarks.data_path import tell
from benchmarks.train_step import LONGEST, STOCK_LENGTH, StockMaskedLM, load_names, name_of
from domain_canine.configuration_domain_canine import DomainCanineConfig
from domain_canine.errors import UserError, run
from domain_canine.modeling_domain_canine import DomainCanineForMaskedLM
from domain_canine.onnx_graphs import FillMask, export, open_session
from domain_canine.onnx_graphs import run as run_session
from domain_canine.onnx_int8 import like_lengths, quantize
from domain_canine.pretrained import SIZES, load_model
from domain_canine.quiet import silence_libraries
from domain_canine.scoring_domain_canine import encode, is_usual, log_probabilities, score_names
from domain_canine.tokenization_domain_canine import PAD

COUNT = 512  # names of a round
SCORED = 2  # one of so many is scored: a score takes a row for each character
FEWER = 16  # one of so many is given to the stock side
ROUNDS, BATCH = 5, 64
DEVICE = torch.device("cpu")


class Stock:
    """The model as transformers alone would run it."""

    def __init__(self, model: DomainCanineForMaskedLM):
        config = DomainCanineConfig(**model.config.to_dict() | {"attn_implementation": "eager"})
        self.model = StockMaskedLM(config).eval()
        self.model.load_state_dict(model.state_dict(), strict=False)  # it has a pooler besides, which nobody reads
        self.tokenizer = CanineTokenizer()
        self.mask = model.config.mask_code_point

    def encode(self, names: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        read = self.tokenizer(
            names, padding="max_length", truncation=True, max_length=STOCK_LENGTH, return_tensors="pt"
        )
        return read["input_ids"], read["attention_mask"]

    def logits(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(B, 128) -> (B, 128, V)."""
        return self.model.lm_head(self.model.canine(ids, mask).last_hidden_state)

    def scores(self, names: list[str], batch: int) -> list[float]:
        """Log-probabilities of names, each character masked in turn."""
        ids, mask = self.encode(names)
        lengths = torch.tensor([len(name) for name in names])
        of = torch.repeat_interleave(lengths)
        at = torch.cat([torch.arange(1, length + 1) for length in lengths.tolist()])[:, None]
        rows, mask = ids[of], mask[of]
        truth = rows.gather(1, at)
        rows.scatter_(1, at, self.mask)
        found = []
        for start in range(0, len(rows), batch):
            some = slice(start, start + batch)
            logits = self.logits(rows[some], mask[some])
            logits = logits.gather(1, at[some, :, None].expand(-1, -1, logits.shape[-1]))
            found.append(log_probabilities(logits, truth[some])[:, 0])
        return torch.zeros(len(names), dtype=torch.float64).index_add(0, of, torch.cat(found)).tolist()


def spread(names: list[str], count: int) -> list[str]:
    """So many of them, of all lengths in their proportion."""
    names = sorted(names, key=len)
    return [names[(2 * i + 1) * len(names) // (2 * count)] for i in range(count)]


def sides(model: DomainCanineForMaskedLM, folder: Path) -> dict[str, Callable[[list[str]], torch.Tensor]]:
    """Names (B,) of like lengths -> logits (B, L, V), by each; the stock side's are (B, 128, V)."""
    stock, usual, rounded = Stock(model), is_usual(model), copy.deepcopy(model).bfloat16()
    export(FillMask(model), folder / "model.onnx")
    quantize(folder / "model.onnx", folder / "model_int8.onnx")

    def pytorch(names):
        ids = encode(names, DEVICE)
        return model(input_ids=ids, attention_mask=ids != PAD, ascii_only=usual).logits

    def of(file):
        session = open_session(folder / file)

        def onnx(names):
            ids = encode(names, DEVICE)
            return torch.from_numpy(run_session(session, ids, (ids != PAD).long())[0])

        return onnx

    return {
        "pytorch": pytorch, "onnx": of("model.onnx"), "onnx_int8": of("model_int8.onnx"),
        "stock": lambda names: stock.logits(*stock.encode(names)),
        "score": lambda names: score_names(model, names, orders=0),
        "score_bf16": lambda names: score_names(rounded, names, orders=0),
        "stock_score": lambda names: stock.scores(names, BATCH),
    }  # fmt: skip


def timed(call: Callable, groups: list[list[str]]) -> float:
    """Seconds."""
    start = time.perf_counter()
    for group in groups:
        call(group)
    return time.perf_counter() - start


@torch.inference_mode()
def compare(model: DomainCanineForMaskedLM, names: list[str], count: int, batch: int, rounds: int) -> dict[str, float]:
    """All sides over the same names, by turns."""
    names = spread(names, min(count, len(names)))
    scored = spread(names, max(1, len(names) // SCORED))
    # What one scored name takes in the mean, in rows of the stock side.
    rows_each = statistics.mean(map(len, scored))
    few, few_scored = spread(names, max(1, len(names) // FEWER)), spread(scored, max(1, len(scored) // FEWER))
    work = dict.fromkeys(("pytorch", "onnx", "onnx_int8"), list(like_lengths(names, batch)))
    work |= {"stock": list(like_lengths(few, batch)), "score": [scored], "score_bf16": [scored]}
    work["stock_score"] = [few_scored]
    counts = {side: sum(map(len, groups)) for side, groups in work.items()}
    counts["stock_score"] = sum(map(len, few_scored)) / rows_each
    with tempfile.TemporaryDirectory() as folder:
        calls = sides(model, Path(folder))
        difference = _difference(calls, few_scored) | _rounding(calls, scored)
        for side, call in calls.items():  # the first call of each fills what is kept
            call(work[side][0][:8])
        rates = {side: [] for side in calls}
        for _ in range(rounds):
            for side, call in calls.items():
                rates[side].append(counts[side] / timed(call, work[side]))
    found = {"names": len(names), "characters": round(statistics.mean(map(len, names)), 2), "batch": batch}
    found |= {f"{side}_names_per_s": round(statistics.median(each), 2) for side, each in rates.items()}
    for side in ("pytorch", "onnx", "onnx_int8", "score", "score_bf16"):
        stock = rates["stock_score" if side.startswith("score") else "stock"]
        found[f"{side}_ratio"] = round(statistics.median(a / b for a, b in zip(rates[side], stock)), 2)
    return found | difference


def _difference(calls, names):
    """That all compute the same: at the names' own code points, and of the scores."""
    worst = {"onnx": 0.0, "stock": 0.0}
    for name in names:
        expected = calls["pytorch"]([name])[0]
        for side in worst:
            found = calls[side]([name])[0, : len(name) + 2]
            worst[side] = max(worst[side], (found - expected).abs().max().item())
    scores = [score.log_probability for score in calls["score"](names)]
    worst["stock_score"] = max(abs(a - b) for a, b in zip(scores, calls["stock_score"](names)))
    return {f"{side}_differs_by": float(f"{value:.1e}") for side, value in worst.items()}


def _rounding(calls, names):
    """What bf16 moves log-probabilities by, in nats."""
    exact, rounded = ([score.log_probability for score in calls[side](names)] for side in ("score", "score_bf16"))
    moved = [abs(one - other) for one, other in zip(exact, rounded)]
    told = {"mean": statistics.mean(moved), "max": max(moved), "spread": statistics.pstdev(exact)}
    return {f"score_bf16_{name}": round(value, 4) for name, value in told.items()}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inference", description=__doc__.splitlines()[0])
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", help="a trained model: folder or Hub id")
    which.add_argument("--size", choices=list(SIZES), default="small", help="random weights (default: %(default)s)")
    parser.add_argument("--names", type=Path, help="a text file of names, plain or compressed; default: the sample")
    parser.add_argument("--count", type=int, default=COUNT, help="names of a round (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=BATCH, help="names of a forward pass (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="(default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object as well, last on stdout")
    parsed = parser.parse_args(arguments)
    silence_libraries()
    torch.manual_seed(0)
    if parsed.model:
        model = load_model(parsed.model, trained=True)
    else:
        model = DomainCanineForMaskedLM(DomainCanineConfig(**SIZES[parsed.size]))
    names = load_names(parsed.names)
    if not names:
        raise UserError(f"{str(parsed.names)!r} holds no valid domain name of up to {LONGEST} characters")
    found = compare(model.eval(), names, parsed.count, parsed.batch, parsed.rounds)
    tell({"model": parsed.model or parsed.size, "device": name_of("cpu")} | found, parsed.json)
    return 0


if __name__ == "__main__":
    run(main)
