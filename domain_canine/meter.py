"""Sums of the training loss: since the latest log entry, and over the latest batches for the bar."""

from collections import deque

import torch


class Meter:
    """The nats and weights of the latest micro-batches, kept on the device until somebody asks."""

    def __init__(self, batches: int = 100):
        self.latest = deque(maxlen=batches)
        self.since_log = torch.zeros(2)

    def add(self, nats: torch.Tensor, weight: torch.Tensor) -> None:
        """A micro-batch; one that is not finite is skipped in training, and here."""
        both = torch.stack([nats.float(), weight.float()])
        both = torch.where(torch.isfinite(nats), both, 0.0)
        self.latest.append(both)
        self.since_log = self.since_log.to(both.device) + both

    def loss(self) -> float:
        """Nats per masked character over the latest batches of this process."""
        if not self.latest:
            return float("nan")
        nats, weight = torch.stack(tuple(self.latest)).sum(0).tolist()
        return nats / weight if weight else float("nan")

    def state(self, since_log: torch.Tensor) -> dict:
        """What a checkpoint keeps: of all processes what was summed ``since_log``, of this one the latest batches."""
        return {"since_log": since_log.tolist(), "latest": [both.tolist() for both in self.latest]}

    def load(self, state: dict, device: torch.device) -> None:
        self.since_log = torch.tensor(state["since_log"], device=device)
        self.latest.extend(torch.tensor(state["latest"], device=device))
