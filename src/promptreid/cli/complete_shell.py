"""`promptreid completion`: what a shell needs to complete commands, options and paths."""

import argparse
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from promptreid.cli.argument_types import folder_to_read, folder_to_write, gallery_place
from promptreid.cli.main import COMMANDS, build_parser
from promptreid.cli.output import Output, print_line

DESCRIPTION = """Print a script that lets the shell complete commands, options, their choices and paths on the Tab
key. For bash: promptreid completion bash > ~/.local/share/bash-completion/completions/promptreid. For zsh, into a
folder of $fpath: promptreid completion zsh > FOLDER/_promptreid. Print it again after an upgrade. Needs the extra
completion."""
NEEDS = [(None, "shtab", "completion")]

SHELLS = ("bash", "zsh")
_FOLDERS = (folder_to_read, folder_to_write, gallery_place)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.add_argument("shell", choices=SHELLS, help="which shell")


def run(console: Output, /, *, shell: str) -> int:
    """Print the script."""
    shtab: Any = import_module("shtab")
    parser = build_parser()
    for action in _actions(parser):
        if action.nargs != 0 and action.choices is None:
            setattr(action, "complete", shtab.DIRECTORY if action.type in _FOLDERS else shtab.FILE)  # noqa: B010
    script = str(shtab.complete(parser, shell))
    if console.as_json:
        console.record(shell=shell, script=script)
    else:  # as it is: its line breaks and tabs are not part of a line for people
        print_line(script.rstrip("\n"))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The arguments of a parser and of the parsers below it."""
    for action in parser._actions:  # pyright: ignore[reportPrivateUsage]
        if isinstance(action, argparse._SubParsersAction):  # pyright: ignore[reportPrivateUsage]
            for name, below in action.choices.items():
                if name in COMMANDS:  # zsh shows it beside the name: a line, not a paragraph
                    below.description = COMMANDS[name][1]
                yield from _actions(below)
        else:
            yield action
