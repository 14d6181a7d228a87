"""``python -m domain_canine score``: names in, scores out."""

import sys

from .errors import UserError

SUFFIXES = ".csv, .jsonl or .parquet"


def add_parser(commands) -> None:
    parser = commands.add_parser("score", help="how likely a model finds names, in total and for each character")
    add_rows_arguments(parser)
    parser.add_argument("--characters", action="store_true", help="the log-probability of each character, too")
    parser.add_argument(
        "--orders", type=int,
        help="orders of revealing to average over, 0 for the pseudo-log-likelihood (default: 0, or 4 for any_order)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="seed of the orders (default: %(default)s)")
    parser.set_defaults(call=command)


def add_rows_arguments(parser, suffixes: str = SUFFIXES) -> None:
    """What every command has that makes a row of each name."""
    parser.add_argument("model", help="a trained model: folder or Hub id")
    parser.add_argument(
        "inputs", nargs="+", metavar="INPUT",
        help="names; or a file, folder or quoted glob (txt, csv, tsv, parquet; gz, zst, bz2); or - for standard input",
    )  # fmt: skip
    parser.add_argument("--dataset_column", "--column", help="column with the names, for csv, tsv and parquet")
    add_table_arguments(parser, suffixes)


def add_table_arguments(parser, suffixes: str = SUFFIXES) -> None:
    """What every command has that writes rows of a model's answers."""
    parser.add_argument("--output", help=f"file to make: {suffixes}; csv on standard output without it")
    parser.add_argument("--overwrite", action="store_true", help="replace --output if it exists")
    parser.add_argument(
        "--bf16", action="store_true",
        help="compute in bf16: quicker on GPUs and CPUs that do so, and less exact, by about 0.2%%",
    )  # fmt: skip


def command(arguments) -> int:
    import pyarrow as pa

    from .pretrained import load_for_use
    from .rows import Table, read_rows, with_progress
    from .scoring_domain_canine import score_names
    from .stopping import StopRequest

    if arguments.orders is not None and arguments.orders < 0:
        raise UserError(f"--orders must be at least 0, not {arguments.orders}")
    fields = [("input", pa.string()), ("name", pa.string()), ("log_probability", pa.float64()),
              ("bits_per_character", pa.float64()), ("reason", pa.string())]  # fmt: skip
    if arguments.characters:
        fields.append(("characters", pa.list_(pa.float64())))
    table = Table(arguments.output, pa.schema(fields), arguments.overwrite)
    rows = read_rows(arguments.inputs, arguments.dataset_column, arguments.output)
    model = load_for_use(arguments.model, bf16=arguments.bf16)
    if arguments.orders and model.config.objective == "mlm":
        told = "is what models of --objective any_order learn; this one was trained with mlm"
        print(f"warning: --orders {arguments.orders} {told}", file=sys.stderr)
    # SIGTERM ends it as Ctrl-C does: the table is closed.
    with StopRequest(), table, with_progress(rows) as rows:
        for block in rows:
            found = iter(score_names(model, block.valid, arguments.orders, arguments.seed))
            scores = [next(found) if name else None for name in block.names]
            columns = {
                "input": block.texts,
                "name": block.names,
                "log_probability": [score and score.log_probability for score in scores],
                "bits_per_character": [score and score.bits_per_character for score in scores],
                "reason": block.reasons,
            }
            if arguments.characters:
                columns["characters"] = [score and score.characters for score in scores]
            table.write(columns)
    table.tell()
    return 0
