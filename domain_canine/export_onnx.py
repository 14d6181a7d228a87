"""``python -m domain_canine export onnx``: a folder with a graph for ONNX Runtime, and the tokenizer to feed it."""

import sys
from importlib.util import find_spec
from pathlib import Path

from .errors import UserError
from .export_folder import made_whole, refuse_other_folder
from .normalization_domain_canine import MAX_NAME
from .paths import user_path

GRAPH, INT8 = "model.onnx", "model_int8.onnx"
TASKS = ("fill-mask", "score", "embed", "classify")
# What the export is tested with, at least; as the extra "onnx" of pyproject.toml. Older versions of torch cannot trace
# all of the graphs, and 8 bits come out at two thirds of the size or not at all.
PACKAGES = ("torch>=2.13", "onnx>=1.23", "onnxscript>=0.7", "onnxruntime>=1.32")
NAMES, SCORED = 1000, 200  # that the cost of int8 is told of; a score takes as many rows as characters


def add_parser(formats) -> None:
    parser = formats.add_parser("onnx", help="a graph for ONNX Runtime, checked against PyTorch")
    parser.add_argument("model", help="a trained model: folder or Hub id")
    parser.add_argument("--output", required=True, help="folder to make")
    parser.add_argument(
        "--task", choices=TASKS, help="what the graph does (default: classify for a classifier, else fill-mask)"
    )
    parser.add_argument(
        "--pooling", choices=["mean", "cls"],
        help="of --task embed: the mean of the characters' states, or the state of [CLS] (default: mean)",
    )  # fmt: skip
    parser.add_argument("--normalize", action="store_true", help="of --task embed: to length 1")
    parser.add_argument("--int8", action="store_true", help=f"{INT8} as well, and what it costs in accuracy")
    parser.add_argument(
        "--names", metavar="FILE",
        help=f"names to tell that cost of, the first {NAMES:,}, {SCORED} for score (default: of the bundled sample)",
    )  # fmt: skip
    parser.add_argument("--dataset_column", "--column", help="column with the names, for csv, tsv and parquet")
    parser.add_argument("--overwrite", action="store_true", help="replace --output if it is an earlier export")
    parser.set_defaults(call=command)


def command(arguments) -> int:
    folder = user_path(arguments.output)
    _refuse(arguments, folder)
    names = _names(arguments.names, arguments.dataset_column) if arguments.int8 else []
    graph = _load(arguments)
    with made_whole(folder) as whole:
        told = write(graph, whole, names)
    for line in told:
        print(line.replace(str(whole), str(folder)), file=sys.stderr)
    return 0


def write(graph, folder: Path, names: list[str]) -> list[str]:
    """Fill a folder with a graph, check it, and quantize it if there are names to tell the cost of.

    Args:
        graph: one of ``onnx_graphs``.
        names: normalised; none leaves the quantized graph out.

    Returns:
        Lines that say what was made.

    Raises:
        UserError: the graph is not as PyTorch.
    """
    from . import onnx_graphs, onnx_int8
    from .configuration_domain_canine import AUTO_MAP
    from .pretrained import build_tokenizer

    path = folder / GRAPH
    onnx_graphs.export(graph, path)
    worst, shapes = onnx_graphs.check(graph, path)
    told = [
        f"{path}: {_size(path)}, {onnx_graphs.signature(graph)}",
        f"  differs from PyTorch by {worst:.1e} at most, over {shapes} shapes of 1 to 64 names, 4 to 253 characters",
    ]
    if graph.rows and graph.model.config.objective == "any_order":
        told.append("  it is the pseudo-log-likelihood: this model's own measure, the bound of any_order, is no graph")
    names = names[:SCORED] if graph.rows else names
    if names:
        onnx_int8.quantize(path, folder / INT8)
        told.append(f"{folder / INT8}: {_size(folder / INT8)}")
        told.append(f"  on {len(names):,} names: {onnx_int8.cost(graph, path, folder / INT8, names)}")
    # Without weights the folder is no model for the classes and the pipelines that a checkpoint names.
    config = graph.model.config
    config.auto_map, config.custom_pipelines = {"AutoConfig": AUTO_MAP["AutoConfig"]}, {}
    config.save_pretrained(folder)
    build_tokenizer(graph.model, MAX_NAME + 2).save_pretrained(folder)  # no name is cut, whatever was trained on
    return told


def _size(path):
    return f"{path.stat().st_size / 1e6:,.1f} MB"


def _refuse(arguments, folder):
    """What can be told before the model is loaded."""
    from packaging.requirements import Requirement

    from .check import MISSING, package

    rows = {line: package(Requirement(line)) for line in PACKAGES}
    # A build with another name, onnxruntime-gpu, is the module of this one and "not installed".
    if lacking := [
        (line, row) for line, row in rows.items() if row.remedy and not (row.found == MISSING and find_spec(row.what))
    ]:
        found = ", ".join(f"{row.what} {row.found}" for _, row in lacking)
        wanted = " ".join(f"'{line}'" for line, _ in lacking)
        raise UserError(f"export onnx will not do with {found}: pip install {wanted}")
    if arguments.task != "embed" and (arguments.pooling or arguments.normalize):
        raise UserError(f"{'--pooling' if arguments.pooling else '--normalize'} is for --task embed")
    if not arguments.int8 and (arguments.names or arguments.dataset_column):
        raise UserError(f"{'--names' if arguments.names else '--dataset_column'} is for --int8")
    refuse_other_folder(folder, GRAPH, (INT8, f"{GRAPH}.data"), arguments.overwrite)


def _names(file, column):
    """The first so many of a file, or of the sample."""
    from .rows import read_rows
    from .sample import sample_names

    if file is None:
        return sample_names(NAMES)
    names = []
    for block in read_rows(file, column):
        names += block.valid
        if len(names) >= NAMES:
            break
    if not names:
        raise UserError(f"--names {file!r} holds no valid domain name")
    return names[:NAMES]


def _load(arguments):
    """The model, as what will be a graph."""
    from .modeling_domain_canine import DomainCanineForSequenceClassification
    from .onnx_graphs import Classify, Embed, FillMask, Score
    from .pretrained import is_classifier, load_model

    name = arguments.model
    task = arguments.task or ("classify" if is_classifier(name) else "fill-mask")
    if task == "classify":
        return Classify(load_model(name, trained=True, kind=DomainCanineForSequenceClassification))
    model = load_model(name, trained=task != "embed")
    if task == "embed":
        return Embed(model.canine, arguments.pooling or "mean", arguments.normalize)
    return Score(model) if task == "score" else FillMask(model)
