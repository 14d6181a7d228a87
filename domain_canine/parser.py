"""Flags, or a file of them, made into dataclasses; every mistake is a UserError."""

import difflib
import json
from dataclasses import fields
from pathlib import Path

import yaml
from transformers import HfArgumentParser

from .errors import UserError


class Parser(HfArgumentParser):
    """Flags of several dataclasses; unknown ones fail with the nearest name, and every error is a UserError."""

    def __init__(self, dataclass_types, **kwargs):
        super().__init__(dataclass_types, allow_abbrev=False, **kwargs)

    def error(self, message: str):
        raise UserError(f"{message}\n  --help lists every flag")

    def parse(self, arguments: list[str]) -> tuple:
        """The dataclasses, from flags; or from a YAML or JSON file of flag names and values, and flags after it."""
        if arguments and Path(arguments[0]).suffix in (".yaml", ".yml", ".json"):
            self._refuse_two_names(arguments[1:])
            arguments = self._from_file(Path(arguments[0])) + arguments[1:]
        else:
            self._refuse_two_names(arguments)
        namespace, unknown = self.parse_known_args(arguments)
        if unknown:
            raise UserError(self._unknown(unknown[0]))
        values = vars(namespace)
        return tuple(
            kind(**{each.name: values[each.name] for each in fields(kind) if each.init})
            for kind in self.dataclass_types
        )

    def _refuse_two_names(self, arguments):
        """A flag may be given again, as shells have it; by another of its names it is a contradiction unnoticed."""
        used = {}
        for name in (argument.partition("=")[0] for argument in arguments):
            action = self._option_string_actions.get(name)
            if action is not None and (before := used.setdefault(action.dest, name)) != name:
                raise UserError(f"{before} and {name} set the same; give one of them")

    def _unknown(self, argument: str) -> str:
        if not argument.startswith("-"):
            return f"unexpected argument {argument!r}; quote a glob, and put a file of arguments first"
        name = argument.split("=")[0]
        near = difflib.get_close_matches(name, self._option_string_actions, n=1)
        return f"unknown flag {name}" + (f"; did you mean {near[0]}?" if near else "; --help lists every flag")

    def _from_file(self, path: Path) -> list[str]:
        """The file's entries as flags, so that types, choices and aliases are those of the command line."""
        try:
            entries = yaml.load(path.read_text(), _EachOnce)  # JSON is YAML
        except OSError as error:
            raise UserError(f"cannot read {str(path)!r}: {error.strerror}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{str(path)!r} is not valid YAML or JSON: {error}") from error
        if not isinstance(entries, dict):
            raise UserError(f"{str(path)!r} must map flag names to values")
        self._refuse_two_names([f"--{name}" for name in entries])
        arguments = []
        for name, value in entries.items():
            if f"--{name}" not in self._option_string_actions:
                raise UserError(f"{path}: {self._unknown(f'--{name}')}")
            if value is False and "no" in (self._option_string_actions[f"--{name}"].choices or ()):
                value = "no"  # which YAML 1.1 reads as a boolean
            if name in ("resume_from_checkpoint", "resume_from") and isinstance(value, bool):
                arguments += [f"--{name}"] * value
            elif value is not None:
                values = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else value]
                arguments += [f"--{name}", *map(str, values)]
        return arguments


class _EachOnce(yaml.SafeLoader):
    """A name that is given twice is a mistake; YAML's own loader takes the last."""

    def construct_mapping(self, node, deep=False):
        pairs = node.value if isinstance(node, yaml.MappingNode) else ()
        names = [name.value for name, _ in pairs]
        if twice := [name for name in names if names.count(name) > 1]:
            raise yaml.YAMLError(f"{twice[0]} is given twice")
        return super().construct_mapping(node, deep)
