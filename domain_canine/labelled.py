"""Names with labels: read from csv, tsv and parquet, cleaned, split, and made into batches."""

import math
import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from . import hashing
from .batches import NameBatches
from .cleaning import hash_array, normalize_lines, on_validation_side
from .errors import UserError
from .masking import below
from .modeling_domain_canine import IGNORED
from .normalization_domain_canine import MAX_NAME
from .readers import read
from .sources import local_paths
from .table import NameTable

_ORDER = 301  # the kind of draw that training names are put in order by
MANY = 20  # classes; of more that are numbers it is doubted that they are classes


@dataclass
class Labelled:
    """Names and their labels: class indices (N,) int64, or numbers (N,) float64."""

    names: pa.StringArray
    labels: np.ndarray

    def where(self, mask: np.ndarray) -> "Labelled":
        return Labelled(self.names.filter(pa.array(mask)), self.labels[mask])


@dataclass
class LabelledNames:
    """Both sides of a split.

    Args:
        classes: what the class indices mean, in order; None for numbers.
        told: rows for the start-up table.
        facts: what the run's records say of the names.
    """

    train: Labelled
    validation: Labelled
    classes: list[str] | None
    told: list[tuple[str, str]]
    facts: dict

    @property
    def content(self) -> str:
        """Equal for equal names, labels and sides."""
        sides = [
            hashing.key(hash_array(side.names), side.labels.view(np.uint64)).sum(dtype=np.uint64)
            for side in (self.train, self.validation)
        ]
        return f"{int(hashing.key(*sides)):016x}"


def load_labelled(data) -> LabelledNames:
    """The names of ``ClassifyDataArguments``.

    Raises:
        UserError: a file, a column or a label will not do.
    """
    counts, others = Counter(rows=0), Counter(rows=0)
    names, labels = _read(data.train_file, data, counts)
    classes = _classes(labels, data.train_file) if data.task == "classification" else None
    train = _side(names, labels, classes, data.train_file, counts)
    # Of a class all names may have two labels.
    if classes is not None and len(there := np.unique(train.labels)) < len(classes):
        classes, train.labels = [classes[index] for index in there], np.searchsorted(there, train.labels)
    if data.validation_file:
        validation = _side(*_read(data.validation_file, data, others), classes, data.validation_file, others)
        seen, how = np.isin(hash_array(train.names), hash_array(validation.names)), "given"
        counts["in validation"] += int(seen.sum())
        train = train.where(~seen)
    else:
        aside = on_validation_side(groups(train.names, data.split_by), data.validation_split, data.split_seed)
        train, validation = train.where(~aside), train.where(aside)
        how = f"{100 * data.validation_split:.3g}% by a hash of the {data.split_by.replace('_', ' ')}"
    if classes is None and len(train.labels) and not np.ptp(train.labels):
        raise UserError(f"{data.train_file!r}: every name to train on has the number {train.labels[0]:g}")
    for side, what in ((train, "train on"), (validation, "validate on")):
        if not len(side.labels):
            raise UserError(f"{data.train_file!r} leaves no name to {what}: give more names, or another split")
    if classes is not None and len(there := np.unique(train.labels)) == 1:
        raise UserError(
            f"{data.train_file!r}: every name to train on has the label {classes[there[0]]!r}; was it split by "
            "the same hash before? Give another --split_seed, or a --validation_file"
        )
    order = np.argsort(hashing.key(data.split_seed, _ORDER, hash_array(train.names)), kind="stable")
    train = Labelled(train.names.take(pa.array(order)), train.labels[order])
    facts = {"kind": "local", "counts": dict(counts), "train": len(order), "validation": len(validation.labels)}
    facts |= {"split": how, "validation_counts": dict(others)}
    if classes is not None:
        facts["classes"] = dict(zip(classes, np.bincount(train.labels, minlength=len(classes)).tolist()))
    return LabelledNames(train, validation, classes, _told(data, facts, train), facts)


def _read(source, data, counts) -> tuple[pa.StringArray, list[str]]:
    """Names and labels of all files, in order; what is left out is counted."""
    paths = local_paths(source, tells=True)
    if paths is None:
        raise UserError(f"there is no file or folder {source!r}; names with labels are read from csv, tsv and parquet")
    names, labels = [], []
    for path in paths:
        for block in read(path, data.dataset_column, data.label_column):
            before = counts.total()
            found, valid = normalize_lines(block.lines, MAX_NAME, lambda index, line, reason: counts.update([reason]))
            counts["empty"] += int((~valid).sum()) - (counts.total() - before)  # of these no reason is told
            told = [label.decode("utf-8", "backslashreplace").strip() for label in block.labels.to_pylist()]
            labelled = np.array([label != "" for label in told], bool)
            counts["rows"] += len(told) + len(block.malformed)
            counts["without a label"] += int((valid & ~labelled).sum())
            counts["malformed rows"] += len(block.malformed)
            keep = valid & labelled
            names.append(found.filter(pa.array(keep)))
            labels += [label for label, kept in zip(told, keep) if kept]
    if not labels:
        raise UserError(f"{source!r} holds no name with a label in the column {data.label_column!r}")
    return pa.concat_arrays(names), labels


def _order(label):
    """Numbers by value, before words."""
    return (0, int(label), label) if re.fullmatch("-?[0-9]{1,18}", label) else (1, 0, label)


def _classes(labels, source):
    classes = sorted(set(labels), key=_order)
    if len(classes) < 2:
        raise UserError(f"{source!r}: every name has the label {classes[0]!r}; two or more are needed")
    return classes


def _side(names, labels, classes, source, counts) -> Labelled:
    """What was read, with class indices or numbers for labels."""
    if classes is None:
        numbers = np.array([*map(_as_number, labels)]) + 0.0  # -0.0 is 0.0, to the bit
        finite = np.isfinite(numbers)
        if not finite.any():
            raise UserError(f"{source!r}: the label {labels[0]!r} is no number, as --task regression needs")
        counts["without a finite number"] += len(finite) - int(finite.sum())
        return _unique(Labelled(names, numbers).where(finite), counts)
    of = {label: index for index, label in enumerate(classes)}
    if unknown := set(labels) - set(classes):
        raise UserError(f"{source!r} has the label {min(unknown)!r}, which no training name has ({', '.join(classes)})")
    return _unique(Labelled(names, np.array([of[label] for label in labels], np.int64)), counts)


def _as_number(text):
    try:
        return float(text)
    except ValueError:
        return math.nan


def _unique(side: Labelled, counts) -> Labelled:
    """Each name once; none that has two labels."""
    hashes = hash_array(side.names)
    pairs = np.stack([hashes, side.labels.view(np.uint64)])
    _, first = np.unique(pairs, axis=1, return_index=True)
    unique, times = np.unique(hashes[first], return_counts=True)
    contradicted = unique[times > 1]
    counts["duplicates"] += len(hashes) - len(first)
    keep = np.zeros(len(hashes), bool)
    keep[first] = ~np.isin(hashes[first], contradicted)
    counts["with two labels"] += len(first) - int(keep.sum())
    return side.where(keep)


def groups(names: pa.StringArray, by: str) -> np.ndarray:
    """What a name's side of the split goes by, itself or its last two labels: (N,) uint64."""
    if by == "name":
        return hash_array(names)
    return hash_array(pc.struct_field(pc.extract_regex(names, r"(?P<last>[^.]+\.[^.]+)$"), "last"))


def _told(data, facts, train):
    rows = [("data", data.train_file), ("rows", _left_out(facts["counts"]))]
    if data.validation_file:
        rows += [("", data.validation_file), ("", _left_out(facts["validation_counts"]))]
    sides = f"{facts['train']:,} to train on, {facts['validation']:,} for validation ({facts['split']})"
    rows.append(("names", sides))
    if "classes" not in facts:
        told = f"{train.labels.min():g} to {train.labels.max():g}, mean {train.labels.mean():g}"
    else:
        shown = sorted(facts["classes"].items(), key=lambda each: -each[1])
        told = ", ".join(f"{name} {count:,}" for name, count in shown[:8])
        told += f" and {len(shown) - 8} more" if len(shown) > 8 else ""
    rows.append(("labels", told))
    if len(facts.get("classes", {})) > MANY and np.isfinite([*map(_as_number, facts["classes"])]).all():
        rows.append(("warning", "the labels are many numbers, taken for classes: --task regression estimates them"))
    if lacking := [name for name, count in facts.get("classes", {}).items() if not count]:
        rows.append(("warning", f"no name to train on has the label {', '.join(lacking[:8])}"))
    return rows


def _left_out(counts):
    told = [f"{what.replace('_', ' ')} {count:,}" for what, count in counts.items() if what != "rows" and count]
    return f"{counts['rows']:,} rows read" + (f"; left out: {', '.join(told)}" if told else "")


def positive_index(data, names: LabelledNames) -> int:
    """Of two classes, the one to be found.

    Raises:
        UserError: ``--positive_label`` is none of them.
    """
    if data.positive_label is None:
        return 1
    if len(names.classes) != 2:
        raise UserError(f"--positive_label is for two classes, not for {len(names.classes)}")
    if data.positive_label not in names.classes:
        raise UserError(f"--positive_label {data.positive_label!r} is none of {', '.join(names.classes)}")
    return names.classes.index(data.positive_label)


def build_batches(data: LabelledNames, args, weights: np.ndarray | None) -> tuple["LabelledBatches", "LabelledBatches"]:
    """Training batches, with ``weights`` (C,) of the classes, and validation batches."""
    seed = args.seed if args.data_seed is None else args.data_seed
    place = {"rank": args.process_index, "ranks": args.world_size, "seed": seed, "fixed_shapes": args.torch_compile}
    train = LabelledBatches(
        data.train, args.per_device_train_batch_size, weights, micro_steps=args.gradient_accumulation_steps, **place
    )
    validation = LabelledBatches(data.validation, args.per_device_eval_batch_size, weights, evaluation=True, **place)
    return train, validation


class LabelledBatches(NameBatches):
    """Batches of names with labels: ``input_ids``, ``attention_mask`` (B, L), ``labels``, ``loss_weights`` (B,).

    An empty name, where a rank has none, has the weight 0.

    Args:
        side: the names.
        weights: (C,) of the classes in the loss; of all names 1 without it.
    """

    def __init__(self, side: Labelled, batch_size: int, weights: np.ndarray | None = None, **options):
        lengths = np.asarray(pc.binary_length(side.names)).astype(np.uint8)
        super().__init__(NameTable([side.names]), lengths, None, batch_size, **options)
        self.numbers = side.labels.dtype == np.float64
        of_each = np.ones(len(side.labels)) if weights is None else weights[side.labels]
        empty = 0 if self.numbers else IGNORED
        self._labels = np.append(side.labels, empty)
        self._weights = np.append(of_each, 0).astype(np.float32)

    def _draw(self, rows, data, starts, lengths, epoch):
        return rows[None]

    def _finish(self, ids, lengths, drawn, widest):
        rows = drawn[0]
        labels = self._labels[rows].astype(np.float32 if self.numbers else np.int64)
        return {"input_ids": ids, "labels": labels, "loss_weights": self._weights[rows]}

    def _cut(self, made, lengths, here, room):
        batch = {name: values[here].copy() for name, values in made.items()}
        batch["input_ids"] = batch["input_ids"].astype(np.int64)
        real = below(batch["input_ids"].shape[1]).take(lengths[here] + 2, axis=0)
        batch["attention_mask"] = real.astype(np.int64)
        return {name: torch.from_numpy(values) for name, values in batch.items()} | {"ascii_only": True}
