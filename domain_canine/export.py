"""``python -m domain_canine export``: a model in the form that other programs read."""

from . import export_onnx


def add_parser(commands) -> None:
    parser = commands.add_parser("export", help="a model in the form that other programs read")
    formats = parser.add_subparsers(dest="format", required=True, parser_class=type(parser))
    export_onnx.add_parser(formats)
