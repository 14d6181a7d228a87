"""``python -m domain_canine export``: a trained model for other programs and people."""

from . import export_hub, export_onnx, export_sentence_transformers


def add_parser(commands) -> None:
    parser = commands.add_parser("export", help="a trained model for other programs and people")
    targets = parser.add_subparsers(dest="target", required=True, parser_class=type(parser))
    for each in (export_onnx, export_sentence_transformers, export_hub):
        each.add_parser(targets)
