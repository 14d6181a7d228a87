"""``python -m domain_canine export``: a trained model, to where it is wanted."""

from . import hub_export


def add_parser(commands) -> None:
    parser = commands.add_parser("export", help="bring a trained model to where it is wanted: the Hub")
    targets = parser.add_subparsers(dest="target", required=True, parser_class=type(parser))
    hub_export.add_parser(targets)
