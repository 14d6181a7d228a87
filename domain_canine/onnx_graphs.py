"""What a model does, as a graph of ONNX: written by PyTorch's exporter, and checked against PyTorch.

A graph takes ``input_ids`` and ``attention_mask`` (B, L) int64, framed by [CLS] and [SEP], for any B and L.

Shapes: B names, L code points with [CLS] and [SEP], C = L - 2 characters at most, D width, V classes.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from copy import deepcopy
from io import StringIO
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from .errors import UserError, first_line
from .modeling_domain_canine import mean_of_characters
from .normalization_domain_canine import NAME_CHARACTERS
from .scoring_domain_canine import log_probabilities, slots
from .tokenization_domain_canine import CLS, PAD, SEP

INPUTS = ("input_ids", "attention_mask")
TOLERANCE = 1e-4
# Characters of the names that a graph is checked with: all remainders by four, around the windows of 128 code points
# (126 characters fill the first one), to the longest name; and how many at once, in turn.
LENGTHS = (*range(4, 18), 20, 31, 47, 62, 63, 64, 100, *range(121, 132), 187, *range(249, 254))
BATCHES = (1, 2, 3, 7, 16, 64)
SLOTS = 8192  # at once, but for single names and the largest batch
OTHERS = (0xFC, 0x4E2D, 0xE004, 0x1F600, 0x10FFFF)  # code points that are input, and no class of the head


class Graph(nn.Module):
    """A model in evaluation mode, in fp32, and what is asked of it.

    Attributes:
        outputs: what ``forward`` returns, in order, with the names of its first dimensions.
        rows: whether a name takes a row for each of its characters.
        masks: whether the input may have masked characters.
    """

    outputs: dict[str, tuple[str, ...]]
    rows = masks = False

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.float().eval()

    def unit(self, expected: torch.Tensor) -> float:
        """What a difference is counted in."""
        return 1.0


class FillMask(Graph):
    """``logits`` (B, L, V): class j of the head is code point j."""

    outputs = {"logits": ("batch", "length")}
    masks = True

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self.model(input_ids=input_ids, attention_mask=attention_mask).logits,)


class Score(Graph):
    """Pseudo-log-likelihood of names of ASCII, each character masked in turn: ``score_names`` with ``orders=0``.

    ``log_probabilities`` (B, L) in nats, 0 at [CLS], [SEP] and padding; ``score`` (B,), their sum, float64: the sum of
    253 of them has no 4 decimals in fp32.
    """

    outputs = {"log_probabilities": ("batch", "length"), "score": ("batch",)}
    rows = True

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        characters, inside = input_ids[:, 1:-1], inner(attention_mask)
        batch, width = characters.shape
        at = torch.arange(1, width + 1, device=input_ids.device)
        turns = at[:, None] == torch.arange(input_ids.shape[1], device=input_ids.device)  # (C, L)
        rows = torch.where(turns, self.model.config.mask_code_point, input_ids[:, None]).flatten(0, 1)  # (B C, L)
        mask = attention_mask[:, None].expand(-1, width, -1).flatten(0, 1)
        positions = at.expand(batch, -1).reshape(-1, 1)
        logits = self.model(input_ids=rows, attention_mask=mask, masked_positions=positions).logits  # (B C, 1, V)
        truth = characters.masked_fill(~inside, PAD)  # a [SEP] is no class
        found = log_probabilities(logits.view(batch, width, -1), truth).masked_fill(~inside, 0.0)
        return F.pad(found, (1, 1)).float(), found.sum(1)


class Embed(Graph):
    """``embedding`` (B, D): the mean of the final states of a name's characters, or the final state of [CLS].

    Args:
        model: an encoder.
        pooling: ``mean`` or ``cls``.
        normalize: to length 1.
    """

    outputs = {"embedding": ("batch",)}

    def __init__(self, model: nn.Module, pooling: str = "mean", normalize: bool = False):
        super().__init__(model)
        self.pooling, self.normalize = pooling, normalize

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        states = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        embedding = states[:, 0] if self.pooling == "cls" else mean_of_characters(states, attention_mask)
        return (F.normalize(embedding, dim=-1) if self.normalize else embedding,)


class Classify(Graph):
    """``logits`` (B, labels); of a regression the numbers themselves (B, 1)."""

    outputs = {"logits": ("batch",)}

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self.model(input_ids=input_ids, attention_mask=attention_mask).logits,)

    def unit(self, expected: torch.Tensor) -> float:
        """A regression has units of its own: prices, say."""
        return max(1.0, expected.abs().max().item()) if self.model.config.num_labels == 1 else 1.0


def inner(attention_mask: torch.Tensor) -> torch.Tensor:
    """(B, L) -> (B, L - 2): where between [CLS] and [SEP] a character stands, for [SEP] is the last that is real."""
    return attention_mask[:, 2:] != 0


def export(graph: Graph, path: Path) -> None:
    """Write a graph, its weights in the same file, for any number of names of any length."""
    example = random_names(2, 13, torch.Generator().manual_seed(0), graph)
    with quiet():
        program = torch.onnx.export(
            graph, example, dynamo=True, verbose=False, input_names=INPUTS, output_names=list(graph.outputs),
            dynamic_shapes=dict.fromkeys(INPUTS, {0: "batch", 1: "length"}),
        )  # fmt: skip
        made = program.model.graph
        # The exporter names values inside by their operators, and an output may be called so (pytorch #158094).
        for value in (value for node in made.all_nodes() for value in node.outputs):
            if value.name in graph.outputs and not value.is_graph_output():
                value.name += "_inside"
        # Else ``length`` of an output is an expression of all the padding in between.
        for value, names in zip(made.outputs, graph.outputs.values()):
            for i, name in enumerate(names):
                value.shape[i] = name
        program.save(path, external_data=False)


def check(graph: Graph, path: Path) -> tuple[float, int]:
    """Run a written graph beside PyTorch in fp64 over many shapes.

    In fp32 PyTorch itself is off by up to 1e-4 at some inputs of a trained model, where the graph was by 3e-5.

    Returns:
        The greatest difference of any output, and the number of shapes.

    Raises:
        UserError: it is above TOLERANCE, or the graph does not run.
    """
    session, generator, worst = open_session(path), torch.Generator().manual_seed(0), 0.0
    shapes, exact = list(shapes_of(graph)), deepcopy(graph).double()
    for batch, characters in tqdm(shapes, desc="checking", leave=False, disable=None):
        given = random_names(batch, characters, generator, graph)
        with torch.inference_mode():
            expected = exact(*given)
        try:
            found = run(session, *given)
        except Exception as error:  # the runtime's own kinds have no base but this one
            raise _not_as_pytorch(batch, characters, f"it does not run: {first_line(error)}") from error
        for name, mine, theirs in zip(graph.outputs, expected, found):
            if mine.shape != theirs.shape:
                raise _not_as_pytorch(batch, characters, f"{name} is {theirs.shape}, not {tuple(mine.shape)}")
            difference = (mine - torch.from_numpy(theirs)).abs().max().item() / graph.unit(mine)
            if not difference <= TOLERANCE:  # NaN is no agreement
                raise _not_as_pytorch(batch, characters, f"{name} differs by {difference:.2g}, above {TOLERANCE:g}")
            worst = max(worst, difference)
    return worst, len(shapes)


def _not_as_pytorch(batch, characters, why):
    import onnxruntime

    return UserError(
        f"the ONNX graph is not as PyTorch for {batch} names of {characters} characters: {why}. Nothing is written. "
        f"It is no fault of yours; other versions may do (torch {torch.__version__}, onnxruntime "
        f"{onnxruntime.__version__})"
    )


def shapes_of(graph: Graph) -> Iterator[tuple[int, int]]:
    """(names, characters) to check a graph with; of long names fewer where each takes many rows."""
    for i, characters in enumerate(LENGTHS):
        if graph.rows and characters > 64 and characters not in (126, 253):
            continue
        each = slots(characters) * (characters if graph.rows else 1)
        yield min(BATCHES[i % len(BATCHES)], max(1, SLOTS // each)), characters
    yield BATCHES[-1], 5 if graph.rows else LENGTHS[-1]


def random_names(batch: int, characters: int, generator: torch.Generator, graph: Graph) -> tuple[torch.Tensor, ...]:
    """Inputs of a graph, for names of which the first has so many characters, and the others as many or fewer."""
    alphabet = [ord(each) for each in NAME_CHARACTERS] + ([] if graph.rows else list(OTHERS))
    if graph.masks:
        alphabet += [graph.model.config.mask_code_point] * 8
    lengths = torch.randint(1, characters + 1, (batch,), generator=generator)
    lengths[0] = characters
    column, last = torch.arange(characters + 2), lengths[:, None] + 1
    ids = torch.tensor(alphabet)[torch.randint(len(alphabet), (batch, characters + 2), generator=generator)]
    ids[:, 0] = CLS
    ids = ids.masked_fill(column == last, SEP).masked_fill(column > last, PAD)
    return ids, (column <= last).long()


def open_session(path: Path):
    """Of ONNX Runtime, on the CPU, with as many threads as PyTorch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors alone
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run(session, *given: torch.Tensor) -> list[np.ndarray]:
    """Its outputs for ``input_ids`` and ``attention_mask``."""
    return session.run(None, {name: values.numpy() for name, values in zip(INPUTS, given)})


def signature(graph: Graph) -> str:
    return f"{', '.join(INPUTS)} (batch, length) -> {', '.join(graph.outputs)}"


@contextmanager
def quiet():
    """The exporter tells of its own stages, and of packages that nothing here needs."""
    with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
