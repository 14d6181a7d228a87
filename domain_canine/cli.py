"""The command line: ``python -m domain_canine check | prepare | fill | score | complete | embed | …``."""

import argparse
import json
import os
import sys
from collections.abc import Callable

from . import classify, complete, embed, export, report, score
from .arguments import DEFAULT_DATASET, DEFAULT_MODEL, DataArguments, seed
from .errors import UserError, run
from .paths import user_path
from .quiet import silence_libraries


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(f"{message}\n  {self.prog} --help shows the usage; what begins with a hyphen goes behind --")


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m domain_canine", description="Character-level language models of domain names.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)

    check = commands.add_parser("check", help="is everything here that a training run needs?")
    check.add_argument("--dataset", default=DEFAULT_DATASET, help="data to look at (default: %(default)s)")
    check.add_argument("--model", default=DEFAULT_MODEL, help="checkpoint to look at (default: %(default)s)")
    check.add_argument("--output_dir", default="./domain-canine-model", help="where the run would write")
    check.set_defaults(call=check_command)

    add_prepare(commands)

    fill = commands.add_parser("fill", help="fill in masked characters of names")
    fill.add_argument("model", help="a trained model: folder or Hub id")
    fill.add_argument("patterns", nargs="+", metavar="PATTERN", help="names with ? or [MASK] for unknown characters")
    fill.add_argument("--top_k", type=int, default=5, help="candidates shown for each character (default: %(default)s)")
    fill.add_argument(
        "--json", action="store_true", help="one JSON object a pattern instead of the table; positions count from 0"
    )
    fill.set_defaults(call=fill_command)
    score.add_parser(commands)
    complete.add_parser(commands)
    embed.add_parser(commands)
    classify.add_parser(commands)
    export.add_parser(commands)
    report.add_parser(commands)
    return parser


def add_prepare(commands) -> None:
    prepare = commands.add_parser("prepare", help="clean, de-duplicate, split and shuffle names once, for many runs")
    prepare.add_argument(
        "inputs", nargs="+", metavar="INPUT",
        help="file, folder or glob (txt, csv, tsv, parquet; gz, zst or bz2), Hub id, or 'sample'; several are joined",
    )  # fmt: skip
    prepare.add_argument("--output", required=True, help="folder to make; train with --dataset FOLDER")
    prepare.add_argument("--dataset_column", "--column", help="column with the names, for csv, tsv, parquet, Hub data")
    defaults = DataArguments()
    prepare.add_argument(
        "--validation_split", type=float, default=defaults.validation_split,
        help="share of the names held out, by a hash of the name (default: %(default)s)",
    )  # fmt: skip
    prepare.add_argument(
        "--split_seed", type=int, default=defaults.split_seed, help="seed of the split (default: %(default)s)"
    )
    prepare.add_argument(
        "--max_length", type=int, default=defaults.max_length,
        help="longest input in code points, [CLS] and [SEP] included; longer names are left out (default: %(default)s)",
    )  # fmt: skip
    prepare.add_argument("--num_samples", type=int, help="the first so many valid names only")
    prepare.add_argument("--seed", type=int, default=0, help="seed of the order (default: %(default)s)")
    prepare.add_argument("--memory", type=float, default=4.0, help="GB that it may take (default: %(default)s)")
    prepare.set_defaults(call=prepare_command)


def prepare_command(arguments) -> int:
    from .manifest import check_digests, read_manifest, told_lines
    from .prepare import LEAST_MEMORY, Settings, prepare
    from .sources import Several, open_source

    # The same checks, and the same messages, as in training.
    names = ("validation_split", "split_seed", "max_length", "num_samples")
    chosen = {name: getattr(arguments, name) for name in names}
    DataArguments(**chosen)
    if not arguments.output:
        raise UserError("--output is empty: name the folder to make")
    seed(arguments, "seed")
    if not arguments.memory >= LEAST_MEMORY:
        raise UserError(f"--memory must be at least {LEAST_MEMORY:g} (GB), not {arguments.memory:g}")
    sources = [open_source(each, arguments.dataset_column) for each in arguments.inputs]
    folder = user_path(arguments.output)
    settings = Settings(**chosen, seed=arguments.seed)
    source = sources[0] if len(sources) == 1 else Several(sources)
    made = prepare(source, folder, settings, arguments.memory, quiet=not sys.stderr.isatty())
    manifest = read_manifest(folder)
    if not made:
        check_digests(folder, manifest)
        print(f"{folder} was made of this input with these settings before: nothing to do", file=sys.stderr)
    for line in told_lines(manifest["counts"], manifest["rejects"]):
        print(line, file=sys.stderr)
    train, validation = (manifest["sides"][side]["names"] for side in ("train", "validation"))
    print(f"{folder}: {train:,} names to train on, {validation:,} for validation; train with --dataset {folder}")
    return 0


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
    parsed = build_parser().parse_args(arguments)
    silence_libraries()
    # Batches have all kinds of shapes here; of its 1,024 last ones oneDNN would keep what it made for them, 160 MB.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    call: Callable[..., int] = parsed.call
    try:
        return call(parsed)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", __package__):  # broken, not missing, as transformers tells it; or a mistake of ours
            raise
        raise UserError(
            f"{package} is not installed in {sys.prefix}: pip install -r requirements.txt; "
            "python -m domain_canine check tells what else is missing"
        ) from error


def entry() -> None:
    run(main, "; what prepare had done is kept: the same command goes on" if "prepare" in sys.argv[1:2] else "")
