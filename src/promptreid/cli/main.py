"""The command `promptreid`: finds the subcommand, runs it, turns mistakes into one clear line."""

import argparse
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn, TextIO

import torch

from promptreid.cli import (
    check_data as check,
)
from promptreid.cli import (
    evaluate_model as evaluate,
)
from promptreid.cli import (
    index_crops as index,
)
from promptreid.cli import (
    push_model as push,
)
from promptreid.cli import (
    search_gallery as search,
)
from promptreid.cli import (
    serve_demo as demo,
)
from promptreid.cli import (
    train_model as train,
)
from promptreid.cli.output import Output
from promptreid.errors import MissingExtraError, PromptReidError
from promptreid.version import __version__

COMMANDS = (check, train, evaluate, index, search, demo, push)
NOTHING_FOUND, MISTAKE, MISSING_EXTRA, INTERRUPTED = 1, 2, 3, 130
_EPILOG = """exit codes: 0 done; 1 done, and the answer is no (check found errors, search found no match); 2 a mistake
in the arguments or the input; 3 an optional dependency is missing; 130 interrupted; 143 stopped by SIGTERM"""


class UsageError(ValueError):
    """The arguments do not fit the command."""


class _Parser(argparse.ArgumentParser):
    """Reports mistakes in the arguments as all others are reported, in JSON too."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command."""
    parser = _Parser(
        prog="promptreid",
        description="Find the person that a sentence describes: text-to-image person re-identification by Prompt "
        "Decoupling.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"promptreid {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    for module in COMMANDS:
        command = module.add_parser(commands)
        command.add_argument(
            "--json", action="store_true", help="print one JSON object on standard output, for scripts"
        )
        command.set_defaults(run=module.run)
        command.epilog = _EPILOG
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: Without the program's name; those of the process if `None`.

    Returns:
        The exit code: 0 done; 1 done, and the answer is no; 2 a mistake in the arguments or the input; 3 an optional
        dependency is missing; 130 interrupted; 143 stopped by SIGTERM.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        settings = build_parser().parse_args(given)
    except UsageError as error:
        output = Output(as_json="--json" in given)
        return output.finish(output.fail(str(error), MISTAKE))
    output = Output(as_json=settings.json)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        warnings.simplefilter("default", UserWarning)
        try:
            code = int(settings.run(settings, output))
        except MissingExtraError as error:
            code = output.fail(str(error), MISSING_EXTRA)
        except KeyError as error:
            code = output.fail(str(error.args[0]) if error.args else str(error), MISTAKE)
        except (PromptReidError, ValueError, TypeError, OSError, FloatingPointError, torch.OutOfMemoryError) as error:
            code = output.fail(str(error), MISTAKE)
        except KeyboardInterrupt:
            code = output.fail("interrupted", INTERRUPTED)
        except SystemExit as stopped:  # the trainer, once its checkpoint is written
            code = output.fail("stopped by a signal; the same command goes on from the last checkpoint", _code(stopped))
    return output.finish(code)


def _code(stopped: SystemExit) -> int:
    return stopped.code if isinstance(stopped.code, int) else INTERRUPTED


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """One line on standard error, without the place in our code that a user cannot do anything about."""
    if issubclass(category, UserWarning):
        sys.stderr.write(f"warning: {message}\n")
