"""The command line: ``python -m domain_canine check | fill``."""

import argparse
import json
from collections.abc import Callable

from .arguments import DEFAULT_DATASET, DEFAULT_MODEL
from .errors import UserError, run


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(f"{message}\n  {self.prog} --help shows the usage")


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m domain_canine", description="Character-level language models of domain names.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)

    check = commands.add_parser("check", help="is everything here that a training run needs?")
    check.add_argument("--dataset", default=DEFAULT_DATASET, help="data to look at (default: %(default)s)")
    check.add_argument("--model", default=DEFAULT_MODEL, help="checkpoint to look at (default: %(default)s)")
    check.add_argument("--output_dir", default="./domain-canine-model", help="where the run would write")
    check.set_defaults(call=check_command)

    fill = commands.add_parser("fill", help="fill in masked characters of names")
    fill.add_argument("model", help="a trained model: folder or Hub id")
    fill.add_argument("patterns", nargs="+", metavar="PATTERN", help="names with ? or [MASK] for unknown characters")
    fill.add_argument("--top_k", type=int, default=5, help="candidates shown for each character (default: %(default)s)")
    fill.add_argument(
        "--json", action="store_true", help="one JSON object a pattern instead of the table; positions count from 0"
    )
    fill.set_defaults(call=fill_command)
    return parser


def check_command(arguments) -> int:
    from .check import rows

    failed = False
    for row in rows(arguments.dataset, arguments.model, arguments.output_dir):
        state = "ok" if not row.remedy else "FAIL" if row.fatal else "note"
        failed |= state == "FAIL"
        print(f"{state:>4}  {row.what:<16} {row.found}", flush=True)
        if row.remedy:
            print(f"{'':22} -> {row.remedy}", flush=True)
    return int(failed)


def fill_command(arguments) -> int:
    from .fill import fill, parse_pattern
    from .pretrained import load_model

    if arguments.top_k < 1:
        raise UserError(f"--top_k must be at least 1, not {arguments.top_k}")
    for pattern in arguments.patterns:
        parse_pattern(pattern)  # a mistake shows before the model is loaded
    model = load_model(arguments.model, trained=True).eval()
    for pattern in arguments.patterns:
        filled = fill(model, pattern, arguments.top_k)
        if arguments.json:
            steps = [{"position": at, "candidates": [list(each) for each in found]} for at, found in filled.steps]
            print(json.dumps({"pattern": pattern, "name": filled.name, "steps": steps}))
            continue
        print(f"{pattern} -> {filled.name}")
        for position, candidates in filled.steps:
            told = "  ".join(f"{character} {probability:.1%}" for character, probability in candidates)
            print(f"  character {position + 1:>2}: {told}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    from .startup import silence_libraries

    parsed = build_parser().parse_args(arguments)
    silence_libraries()
    call: Callable[..., int] = parsed.call
    return call(parsed)


def entry() -> None:
    run(main)
