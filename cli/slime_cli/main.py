"""Dispatches `slime NAME …` to the module that does it, which is imported only then.

So `slime segment` needs no torch, and a sub-command whose packages are missing says which line installs them. What a
sub-command's options are, its own module knows: each has `main(argv, prog) -> exit code`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata

OLDEST = (3, 11)  # Python that everything but the client needs
UNUSABLE = 2  # the exit code of every command for input that cannot be used


@dataclass(frozen=True)
class Command:
    """A sub-command: the module with its `main`, the extra of slime-serve that it needs, and what it does."""

    module: str
    extra: str
    meaning: str


COMMANDS = {
    "optimize": Command(
        "slime_optimize.commands.run", "optimize", "learn a segmenter from one annotated image, or a few"
    ),
    "evaluate": Command("slime_optimize.commands.evaluate", "optimize", "measure segmenters on annotated images"),
    "prepare": Command(
        "slime_optimize.commands.prepare", "optimize", "make PASCAL-Part or CelebAMask-HQ into annotated folders"
    ),
    "import": Command(
        "slime_optimize.commands.import_reference",
        "optimize",
        "make a segmenter of embeddings the method's authors published",
    ),
    "import-checkpoint": Command(
        "slime_optimize.commands.import_checkpoint",
        "optimize",
        "make a backbone of a Stable Diffusion checkpoint in one file",
    ),
    "export": Command(
        "slime_export.commands.build",
        "export",
        "make a segmenter a served model, checked against PyTorch, and publish it",
    ),
    "repository": Command(
        "slime_export.commands.repository",
        "export",
        "list, roll back and remove what a repository serves, or push and pull it",
    ),
    "serve": Command("slime_serve.launch_command", "serve", "serve a repository on this machine with NVIDIA Triton"),
    "segment": Command(
        "slime_cli.segment", "client", "segment images with a running server, or without one (also: slime-segment)"
    ),
    "studio": Command("slime_studio.command", "studio", "paint, learn, correct and publish on a page in the browser"),
    "fleet": Command("slime_fleet.command", "fleet", "learn many segmenters, or segment very many images, with Ray"),
    "demo": Command("slime_cli.demo", "all", "all four steps with a drawn car, on the small backbone that ships"),
}

_HELP = """\
SLiMe Serve: paint the parts of ONE image; a server segments every other image of that kind.

  slime optimize --image car.png --mask car-parts.png --parts background body wheel --out segmenters/car
  slime export segmenters/car --repository repository
  slime serve --repository repository
  slime segment photos/ --segmenter car --out masks        (in another terminal)

Photographs need a Stable Diffusion 1.x or 2.x checkpoint: add `--backbone FOLDER_FILE_OR_HUB_ID` to slime optimize.
To see all of it work in a few minutes, on drawn cars and with nothing downloaded: slime demo

commands:
{commands}

`slime COMMAND --help` has a command's options; where it has more for research, `--help-all` shows those too.
Exit codes: 0 done, 1 something failed, 2 something in the input cannot be used.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `slime` with these words (default: the command line's); return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(help_text(), end="")
        return 0
    if words[0] == "--version":
        print(f"slime-serve {metadata.version('slime-serve')}")
        return 0
    name = words[0]
    if name not in COMMANDS:
        return _refused(f"slime: got {name!r}, expected one of {', '.join(COMMANDS)}; slime --help explains them")
    return _run(COMMANDS[name], f"slime {name}", words[1:])


def segment() -> int:
    """Run `slime-segment`, which is `slime segment` by a name of its own, with the command line's words."""
    return _run(COMMANDS["segment"], "slime-segment", sys.argv[1:])


def _run(command: Command, prog: str, words: Sequence[str]) -> int:
    if sys.version_info[:2] < OLDEST and command.extra != "client":
        got = ".".join(map(str, sys.version_info[:2]))
        return _refused(f"{prog}: needs Python 3.11 or newer, got {got}; only slime segment runs on older ones")
    try:
        run: Callable[..., int] = import_module(command.module).main
        return run(words, prog=prog)
    except ModuleNotFoundError as error:
        # Only a foreign package can be missing for want of an extra; one of ours would be a defect, and is shown.
        missing = (error.name or "").partition(".")[0]
        if not missing or missing.startswith("slime_") or missing in sys.stdlib_module_names:
            raise
        return _refused(
            f"{prog}: the package of module {missing} is not installed; run: pip install 'slime-serve[{command.extra}]'"
        )


def help_text() -> str:
    """Return the page of `slime --help`: the main path first, then every sub-command."""
    width = max(map(len, COMMANDS))
    return _HELP.format(commands="\n".join(f"  {name:{width}}  {each.meaning}" for name, each in COMMANDS.items()))


def _refused(line: str) -> int:
    print(f"error: {line}", file=sys.stderr)
    return UNUSABLE
