"""Sums of the training loss: since the latest log entry, over the run, and over the latest batches for the bar."""

from collections import deque

import torch

from .scoring_domain_canine import wide

BATCHES = 100  # of the bar


class Meter:
    """The nats and weights of micro-batches, kept on the device until somebody asks."""

    def __init__(self):
        self.latest = deque(maxlen=BATCHES)
        self.since_log = torch.zeros(2)  # of this process
        self.total = torch.zeros(2, dtype=torch.float64)  # of all processes, up to the latest log entry

    def add(self, nats: torch.Tensor, weight: torch.Tensor) -> None:
        """A micro-batch; one that is not finite is skipped in training, and here."""
        both = torch.stack([nats.float(), weight.float()])
        both = torch.where(torch.isfinite(nats), both, 0.0)
        self.latest.append(both)
        self.since_log = self.since_log.to(both.device, wide(both.device)) + both

    def loss(self) -> float:
        """Nats per masked character over the latest batches of this process."""
        return mean(torch.stack(tuple(self.latest)).sum(0)) if self.latest else float("nan")

    def close(self, since_log: torch.Tensor) -> float:
        """Nats per masked character ``since_log`` (2,) of all processes, which count to the total from now on."""
        self.total += since_log.cpu()
        self.since_log = torch.zeros(2)
        return mean(since_log)

    def state(self, since_log: torch.Tensor) -> dict:
        """What a checkpoint keeps: of all processes what was summed ``since_log``, of this one the latest batches."""
        return {
            "since_log": since_log.tolist(), "total": self.total.tolist(),
            "latest": [both.tolist() for both in self.latest],
        }  # fmt: skip

    def load(self, state: dict, device: torch.device) -> None:
        self.since_log = torch.tensor(state["since_log"], dtype=wide(device), device=device)
        self.total = torch.tensor(state.get("total", (0, 0)), dtype=torch.float64)
        self.latest.extend(torch.tensor(state["latest"], device=device))


def mean(sums: torch.Tensor) -> float:
    """Nats and weight (2,) -> nats per masked character."""
    nats, weight = sums.tolist()
    return nats / weight if weight else float("nan")
