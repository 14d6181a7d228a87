"""The curves of a run as a picture, for its model card."""

import logging
from pathlib import Path

import numpy as np

from .run_record import RunRecord

TRAIN, VALIDATION = "#0072b2", "#d55e00"  # told apart by colour-blind eyes, too (Okabe and Ito 2008)


def _perplexities(axes):
    """On the right, of the losses on the left."""
    from matplotlib.ticker import FixedLocator, StrMethodFormatter

    other = axes.secondary_yaxis("right", functions=(np.exp, lambda value: np.log(np.maximum(value, 1e-3))))
    other.set_ylabel("perplexity")
    other.yaxis.set_major_locator(FixedLocator([1, 1.5, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 70, 100, 200, 500, 1000]))
    other.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def draw_curves(record: RunRecord, path: Path) -> bool:
    """Loss and perplexity, learning rate, speed, as PNG.

    Returns:
        Whether there was anything to draw.

    Raises:
        ImportError: matplotlib is not installed.
    """
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it tells of its font cache
    from matplotlib.figure import Figure

    if not record.points("loss"):
        return False
    figure = Figure(figsize=(12, 3.6), dpi=100, layout="constrained")
    loss, rate, speed = figure.subplots(1, 3, width_ratios=(2, 1, 1))
    loss.plot(*zip(*record.points("loss")), color=TRAIN, linewidth=1.4, label="training")
    if evaluations := record.points("eval_loss"):
        loss.plot(*zip(*evaluations), "o-", color=VALIDATION, linewidth=1.4, markersize=4, label="validation")
    loss.set_ylabel("loss")
    if record.points("perplexity"):
        loss.set_ylabel("loss (nats a masked character)")
        _perplexities(loss)
    for axes, name, label in ((rate, "learning_rate", "learning rate"), (speed, "names_per_second", "names a second")):
        if points := record.points(name):
            axes.plot(*zip(*points), color=TRAIN, linewidth=1.4)
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.ticklabel_format(axis="y", scilimits=(-2, 6))
    for axes in (loss, rate, speed):
        axes.set_xlabel("step")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        for index, step in enumerate(record.resumed_from):
            axes.axvline(step, color="gray", linestyle=":", linewidth=1, label="_"[:index] + "resumed")
    loss.legend(frameon=False)
    beside = path.with_name(f".{path.name}")
    figure.savefig(beside, format="png")
    beside.replace(path)
    return True
