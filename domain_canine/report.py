"""``python -m domain_canine report``: what a run did and what its model knows of names, as one page."""

import sys
from pathlib import Path

from .errors import UserError
from .paths import user_path

PAGE = "report.html"


def add_parser(commands) -> None:
    parser = commands.add_parser("report", help="a run and what its model knows of names, as one HTML page")
    parser.add_argument(
        "run", help="run folder, of a run that lasts or has stopped, too; or any trained model's folder"
    )
    parser.add_argument(
        "--names", metavar="FILE",
        help="names to look at: a file, folder or quoted glob (default: the run's own validation names)",
    )  # fmt: skip
    parser.add_argument("--dataset_column", "--column", help="column with the names, for csv, tsv and parquet")
    parser.add_argument(
        "--num_samples", type=int, default=1000, help="how many of the names to look at (default: %(default)s)"
    )
    parser.add_argument("--output", help=f"page to make (default: {PAGE} in the folder)")
    parser.add_argument("--overwrite", action="store_true", help="replace the page if it exists")
    parser.set_defaults(call=command)


def command(arguments) -> int:
    from .manifest import write_whole
    from .pretrained import load_for_use
    from .report_figures import look_at
    from .report_page import page
    from .run_record import newest_weights, read_record

    if arguments.num_samples < 1:
        raise UserError(f"--num_samples must be at least 1, not {arguments.num_samples}")
    run = user_path(arguments.run)
    output = user_path(arguments.output) if arguments.output else run / PAGE
    if arguments.output:
        if output.suffix not in (".html", ".htm"):
            raise UserError(f"--output {arguments.output!r} is no page: give a name that ends in .html")
        if not output.parent.is_dir():
            raise UserError(f"--output {arguments.output!r}: there is no folder {str(output.parent)!r}; make it first")
    if output.exists() and not arguments.overwrite:
        raise UserError(f"{str(output)!r} exists; add --overwrite to replace it, or give another --output")
    record = read_record(newest_weights(run))
    model = load_for_use(str(record.model))
    names, told = choose_names(record, arguments.names, arguments.dataset_column, arguments.num_samples)
    print(f"{len(names):,} {told}", file=sys.stderr)
    text = page(record, look_at(model, names), told, model)
    try:
        write_whole(output, text)
    except OSError as error:
        raise UserError(
            f"the page {str(output)!r} cannot be written: {error.strerror}; give another --output"
        ) from error
    print(output)
    return 0


def choose_names(record, file: str | None, column: str | None, count: int) -> tuple[list[str], str]:
    """Names to look at, and what they are.

    Raises:
        UserError: the file has none, or cannot be read.
    """
    from .corpus import validation_names
    from .sample import sample_names

    if file is not None:
        return _of_file(file, column, count), f"names of {file}"
    if folder := record.data.get("folder"):
        # A run on fewer names than a prepared folder has takes the first ones.
        most = min(count, record.data["validation"])
        if names := validation_names(Path(folder), record.settings["content of the names"], most):
            return names, "validation names of the run" + ", which it was not trained on" * record.one_split
    why = "the run's validation names are not kept here" if record.starts else "the model's data are not known here"
    return sample_names(count), f"synthetic names, since {why}: give --names for figures that mean something"


def _of_file(file, column, count):
    """Some of the different names of a file: those with the lowest hashes, whatever its order."""
    import pyarrow as pa

    from .cleaning import hash_array
    from .rows import read_rows, with_progress

    kept: dict[str, int] = {}
    with with_progress(read_rows(file, column)) as rows:
        for block in rows:
            kept |= zip(block.valid, hash_array(pa.array(block.valid, pa.string())).tolist())
            kept = dict(sorted(kept.items(), key=lambda item: item[1])[:count])
    if not kept:
        raise UserError(f"--names {file!r} holds no valid domain name")
    return list(kept)
