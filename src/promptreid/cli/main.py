"""The command `promptreid`: finds the subcommand, runs it, turns mistakes into one clear line."""

import argparse
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn, TextIO

from promptreid.cli.output import Output
from promptreid.errors import MissingExtraError, PromptReidError
from promptreid.version import __version__

# Each command is a module of this room with `DESCRIPTION`, `add_arguments(parser)` and
# `run(output, *, <its arguments>) -> exit code`. Only the module of the command that is called is imported, and it
# imports what is slow inside `run`: a mistake in the arguments must not wait for torch.
COMMANDS = {
    "check": ("check_data", "look for everything that is wrong with a data set"),
    "train": ("train_model", "adapt a model to a data set, in both stages"),
    "evaluate": ("evaluate_model", "score a model on a data set"),
    "index": ("index_crops", "encode a folder of crops, to be searched"),
    "search": ("search_gallery", "find the images that a sentence describes"),
    "demo": ("serve_demo", "search in the browser"),
    "push": ("push_model", "publish a saved model on the Hugging Face Hub"),
}
NOTHING_FOUND, MISTAKE, MISSING_EXTRA, INTERRUPTED = 1, 2, 3, 130
_EPILOG = """exit codes: 0 done; 1 done, and the answer is no (check found errors, search found no match); 2 a mistake
in the arguments or the input; 3 an optional dependency is missing; 130 interrupted; 143 stopped by SIGTERM"""


class UsageError(ValueError):
    """The arguments do not fit the command."""


class _Parser(argparse.ArgumentParser):
    """Reports mistakes in the arguments as all others are reported, in JSON too."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


def build_parser(commands: Sequence[str] = tuple(COMMANDS)) -> argparse.ArgumentParser:
    """The parser of the command line.

    Args:
        commands: Those whose arguments it reads; it only names the others.
    """
    parser = _Parser(
        prog="promptreid",
        description="Find the person that a sentence describes: text-to-image person re-identification by Prompt "
        "Decoupling.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"promptreid {__version__}")
    parsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    for name, (module, summary) in COMMANDS.items():
        subparser = parsers.add_parser(name, help=summary, epilog=_EPILOG)
        if name in commands:
            command = import_module(f"promptreid.cli.{module}")
            subparser.description = command.DESCRIPTION
            command.add_arguments(subparser)
            subparser.add_argument(
                "--json", action="store_true", help="print one JSON object on standard output, for scripts"
            )
            subparser.set_defaults(run=command.run)
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
    called = [word for word in given if word in COMMANDS][:1]
    try:
        settings = vars(build_parser(called).parse_args(given))
    except UsageError as error:
        output = Output(as_json="--json" in given)
        return output.finish(output.fail(str(error), MISTAKE))
    del settings["command"]
    run, output = settings.pop("run"), Output(as_json=settings.pop("json"))
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        warnings.simplefilter("default", UserWarning)
        try:
            code = int(run(output, **settings))
        except MissingExtraError as error:
            code = output.fail(str(error), MISSING_EXTRA)
        except KeyError as error:
            code = output.fail(str(error.args[0]) if error.args else str(error), MISTAKE)
        except _mistakes() as error:
            code = output.fail(str(error), MISTAKE)
        except KeyboardInterrupt:
            code = output.fail("interrupted", INTERRUPTED)
        except SystemExit as stopped:  # the trainer, once its checkpoint is written
            code = output.fail("stopped by a signal; the same command resumes from the last checkpoint", _code(stopped))
    return output.finish(code)


def _mistakes() -> tuple[type[BaseException], ...]:
    """Errors that say what is wrong, and so need no traceback."""
    torch: Any = sys.modules.get("torch")  # a command that failed before it was imported has not run out of memory
    out_of_memory = () if torch is None else (torch.OutOfMemoryError,)
    return (PromptReidError, ValueError, TypeError, OSError, FloatingPointError, *out_of_memory)


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
    """One line on standard error, without a line number in our code that a user cannot do anything about."""
    if issubclass(category, UserWarning):
        sys.stderr.write(f"warning: {message}\n")
