"""Command-line options for every setting, and a parser whose errors are one line.

Main settings are shown by --help, the others only by --help-all. Options for settings under their old names are
refused with the new name.
"""

from __future__ import annotations

import argparse
import sys
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, NoReturn

from slime_optimize.errors import exit_code
from slime_optimize.layers import Layers
from slime_optimize.old_names import OLD_NAMES
from slime_optimize.presets import PRESETS
from slime_optimize.settings import Settings

HELP_ALL = "--help-all"
SET_HELP = "change a setting that matters after learning, such as threshold=0.1; can be given several times"


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, without the usage, and leave with exit code 2.

    `words` are the words of the command line: with --help-all among them, the help shows researchers' options too.
    """

    def __init__(self, words: Sequence[str] | None = None, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.shows_all = HELP_ALL in (words or ())

    def more(self, help: str) -> str:
        """Return the help of a researchers' option: `help`, or what argparse takes for hidden."""
        return help if self.shows_all else argparse.SUPPRESS

    def add_help_all(self) -> None:
        """Add --help-all itself."""
        self.add_argument(HELP_ALL, action="help", help="show every option, researchers' too, and exit")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; {self.prog} --help shows the options\n")


def add_settings(parser: Parser, presets: Sequence[str] = tuple(PRESETS)) -> None:
    """Add --help-all and an option for each setting; the help shows its value in each of these `presets`.

    An option that is not given leaves nothing in the namespace.
    """
    parser.add_help_all()
    kinds = typing.get_type_hints(Settings)
    groups: dict[str, argparse._ArgumentGroup] = {}
    for field in fields(Settings):
        facts = field.metadata
        show: Callable[[str], str] = str if facts["main"] else parser.more
        title = facts["group"] if parser.shows_all else "settings, in place of the preset's and the backbone's own"
        group = groups.get(title) or groups.setdefault(title, parser.add_argument_group(title))
        if kinds[field.name] is Layers:
            for role in ("cross", "self"):
                group.add_argument(
                    f"--{role}-layers",
                    nargs="+",
                    metavar="NAME",
                    default=argparse.SUPPRESS,
                    help=show(f"{role}-{facts['help']}"),
                )
            continue
        text = f"{facts['help']} ({_values(field.name, presets)})".replace("%", "%%")
        group.add_argument(
            _option(field.name),
            default=argparse.SUPPRESS,
            help=show(text),
            **_argument_type(kinds[field.name], facts["choices"]),
        )
    for old, new in OLD_NAMES.items():
        names = [_option(old), _option(f"no_{old}")] if kinds[new] is bool else [_option(old)]
        parser.add_argument(*names, action=_Renamed, nargs="*", const=_option(new), help=argparse.SUPPRESS)


class _Renamed(argparse.Action):
    """Refuses an option under its old name."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        parser.error(f"{self.option_strings[0]} is now called {self.const}")


def chosen(arguments: argparse.Namespace, base: Settings) -> Settings:
    """Return `base` with the options that were given in place. Raises InputError for values that do not fit."""
    given = vars(arguments)
    changes = {field.name: given[field.name] for field in fields(Settings) if field.name in given}
    if {"cross_layers", "self_layers"} & given.keys():
        cross, self_ = base.layers.cross, base.layers.self_
        changes["layers"] = {"cross": given.get("cross_layers", cross), "self": given.get("self_layers", self_)}
    return base.changed(changes)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _values(name: str, presets: Sequence[str]) -> str:
    """Return a setting's value in these presets: once where it is the same in all."""
    values = {preset: _text(getattr(PRESETS[preset], name)) for preset in presets}
    same = len(set(values.values())) == 1
    return f"default: {values[presets[0]]}" if same else ", ".join(f"{each}: {value}" for each, value in values.items())


def _text(value: Any) -> str:
    return " ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)


def _argument_type(kind: Any, choices: tuple[str, ...]) -> dict[str, Any]:
    """Return argparse's keywords for a setting of this type: int, float, str, bool, a pair, or several numbers."""
    if isinstance(kind, types.UnionType):
        (kind,) = [each for each in typing.get_args(kind) if each is not type(None)]
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    inner = typing.get_args(kind)
    if inner and inner[-1] is Ellipsis:
        return {"type": inner[0], "nargs": "*"}
    if inner:
        return {"type": inner[0], "nargs": 2, "metavar": ("LOW", "HIGH")}
    return {"type": kind, "choices": choices or None}


def run_command(
    parser: Callable[[Sequence[str], str | None], Parser],
    run: Callable[[argparse.Namespace], None],
    words: Sequence[str] | None,
    prog: str | None,
) -> int:
    """Read a command's `words`, those of the command line by default, and run it; return its exit code."""
    words = sys.argv[1:] if words is None else words
    arguments = parser(words, prog).parse_args(words)
    return exit_code(lambda: run(arguments))
