"""``python -m domain_canine complete``: names for patterns, and new ones from nothing."""

import re
import sys
from collections import Counter

from .arguments import seed
from .errors import UserError
from .normalization_domain_canine import MAX_LABEL
from .score import add_table_arguments


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "complete", help="names for patterns: py????.com, 'best*shop.com', or '*' for new names from nothing"
    )
    parser.add_argument("model", help="a trained model: folder or Hub id")
    parser.add_argument(
        "patterns", nargs="+", metavar="PATTERN",
        help="? for one unknown character, * for any number of them; a pattern without a dot gets --suffixes",
    )  # fmt: skip
    parser.add_argument("--count", type=int, default=10, help="names for each pattern (default: %(default)s)")
    parser.add_argument(
        "--length",
        default="4-12",
        help="characters of a label that * stands in, MIN-MAX; ? are as many as they are (default: %(default)s)",
    )
    parser.add_argument(
        "--suffixes", default="", help="allowed suffixes, as com,net,co.uk (default: com for a pattern without a dot)"
    )
    parser.add_argument(
        "--search", choices=["beam", "sample"], default="beam",
        help="the likeliest names, or names drawn at random (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--order", choices=["confidence", "random"], default="confidence",
        help="which unknown character comes next: the surest, or any (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--temperature", type=float, default=1.0, help="of --search sample (default: %(default)s)")
    parser.add_argument("--top_k", type=int, help="draw from so many of the likeliest characters only")
    parser.add_argument("--seed", type=int, default=0, help="of draws and of --order random (default: %(default)s)")
    parser.add_argument("--exclude", metavar="FILE", help="names to leave out: registered ones, for example")
    parser.add_argument("--dataset_column", "--column", help="column of --exclude with the names: csv, tsv, parquet")
    add_table_arguments(parser)
    parser.set_defaults(call=command)


def command(arguments) -> int:
    import pyarrow as pa

    from .completion_domain_canine import BadPattern, check_options, complete, expand
    from .pretrained import load_for_use
    from .rows import Table
    from .stopping import StopRequest

    length, suffixes = _length(arguments.length), arguments.suffixes
    how = arguments.search, arguments.order, arguments.temperature, arguments.top_k
    try:  # a mistake shows before the model is loaded
        check_options(arguments.count, length, *how)
        for pattern in arguments.patterns:
            expand(pattern, length, suffixes)
    except BadPattern as error:
        raise UserError(str(error)) from error
    except ValueError as error:
        raise UserError(f"--{error}") from error
    seed(arguments, "seed")
    fields = [("pattern", pa.string()), ("name", pa.string()), ("log_probability", pa.float64()),
              ("bits_per_character", pa.float64())]  # fmt: skip
    table = Table(arguments.output, pa.schema(fields), arguments.overwrite)
    if arguments.dataset_column and arguments.exclude is None:
        raise UserError(f"--dataset_column {arguments.dataset_column!r} is a column of --exclude, which is not given")
    exclude = frozenset() if arguments.exclude is None else _excluded(arguments)
    model = load_for_use(arguments.model, bf16=arguments.bf16)
    # SIGTERM ends it as Ctrl-C does: the table is closed.
    with StopRequest(), table:
        for pattern in arguments.patterns:  # one by one takes no longer, and what is found is seen sooner
            [found] = complete(
                model, [pattern], arguments.count, length, suffixes, *how, arguments.seed, exclude
            )  # fmt: skip
            table.write({name: [getattr(completion, name) for completion in found] for name, _ in fields})
            if len(found) < arguments.count:
                print(f"{pattern!r}: {len(found)} of {arguments.count} names found", file=sys.stderr)
    table.tell()
    return 0


def _length(text):
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    least, most = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= least <= most <= MAX_LABEL:
        raise UserError(f"--length {text!r}: give MIN-MAX with numbers from 1 to {MAX_LABEL}, as 4-12")
    return least, most


def _excluded(arguments):
    from .manifest import listed
    from .rows import read_rows

    names, reasons = set(), Counter()
    for block in read_rows(arguments.exclude, arguments.dataset_column, arguments.output):
        names.update(block.valid)
        reasons.update(reason for reason in block.reasons if reason not in (None, "empty", "comment"))
    if reasons:
        told = f"{reasons.total():,} lines are no names ({listed(reasons)})"
        print(f"--exclude {arguments.exclude!r}: {told}", file=sys.stderr)
    if not names:
        print(f"--exclude {arguments.exclude!r} holds no name: nothing is left out", file=sys.stderr)
    return frozenset(names)
