"""``python -m domain_canine classify``: names in, classes or numbers out."""

from .errors import UserError
from .score import add_rows_arguments


def add_parser(commands) -> None:
    parser = commands.add_parser("classify", help="what a fine-tuned model takes names for")
    add_rows_arguments(parser)
    parser.add_argument("--all", action="store_true", help="the probability of each class, too")
    parser.set_defaults(call=command)


def command(arguments) -> int:
    import pyarrow as pa

    from .modeling_domain_canine import DomainCanineForSequenceClassification
    from .predictions import classify_names
    from .pretrained import load_for_use
    from .rows import Table, read_rows, with_progress
    from .stopping import StopRequest

    rows = read_rows(arguments.inputs, arguments.dataset_column, arguments.output)
    model = load_for_use(arguments.model, DomainCanineForSequenceClassification, arguments.bf16)
    if model.config.problem_type == "multi_label_classification":
        raise UserError(
            f"{arguments.model!r} gives each name several labels, and this command tells one; in Python, "
            "pipeline('text-classification', ..., top_k=None) tells all"
        )
    answers = [("number", pa.float64())]
    classes = []
    if model.config.problem_type != "regression" and model.config.num_labels > 1:
        classes = [model.config.id2label[index] for index in range(model.config.num_labels)]
        answers = [("label", pa.string()), ("probability", pa.float64())]
        answers += [(f"p_{name}", pa.float64()) for name in classes] if arguments.all else []
    text = pa.string()
    schema = pa.schema([("input", text), ("name", text), *answers, ("reason", text)])
    # SIGTERM ends it as Ctrl-C does: the table is closed.
    with StopRequest(), Table(arguments.output, schema, arguments.overwrite) as table, with_progress(rows) as rows:
        for block in rows:
            outputs = classify_names(model, block.valid)
            told = iter(_tell(outputs, classes, arguments.all))
            cells = [next(told) if name else [None] * len(answers) for name in block.names]
            columns = {"input": block.texts, "name": block.names}
            columns |= {name: [row[index] for row in cells] for index, (name, _) in enumerate(answers)}
            table.write(columns | {"reason": block.reasons})
    table.tell()
    return 0


def _tell(outputs, classes, every):
    """Outputs (N, C) -> what is told of each name: a number, or class and probability, and all of them."""
    if not classes:
        return outputs.tolist()
    from .classification import class_shares

    found = class_shares(outputs).tolist()
    return [[classes[row.index(max(row))], max(row), *(row if every else ())] for row in found]
