"""``python -m domain_canine embed``: names in, vectors out."""

from .score import add_rows_arguments


def add_parser(commands) -> None:
    parser = commands.add_parser("embed", help="names as vectors: for similar names, clusters, features")
    add_rows_arguments(parser, ".parquet, .npy, .jsonl or .csv")
    add_pooling_arguments(parser)
    parser.set_defaults(call=command)


def add_pooling_arguments(parser) -> None:
    parser.add_argument(
        "--pooling", choices=["mean", "cls"], default="mean",
        help="the mean over a name's characters, or [CLS], which pretraining leaves untrained (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--normalize", action="store_true", help="vectors of length 1: dot products are cosines")


def command(arguments) -> int:
    from .embedding_domain_canine import embed_names
    from .pretrained import load_encoder_for_use
    from .rows import read_rows, with_progress
    from .stopping import StopRequest
    from .vectors import VectorTable

    table = VectorTable(arguments.output, arguments.overwrite)
    rows = read_rows(arguments.inputs, arguments.dataset_column, arguments.output)
    model = load_encoder_for_use(arguments.model, arguments.bf16)
    # SIGTERM ends it as Ctrl-C does: the table is closed.
    with StopRequest(), table.of_width(model.config.hidden_size), with_progress(rows) as rows:
        for block in rows:
            vectors = embed_names(model, block.valid, arguments.pooling, arguments.normalize).numpy()
            table.write_vectors(block, vectors)
    table.tell()
    return 0
