"""The command `promptreid`: finds the subcommand, runs it, turns every failure into one clear line."""

import argparse
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NoReturn

from promptreid.cli.output import Output
from promptreid.errors import MissingExtraError, PromptReidError, missing_extra
from promptreid.version import __version__

# Each command is a module of this room with `DESCRIPTION`, `add_arguments(parser)` and
# `run(output, *, <its arguments>) -> exit code`; `NEEDS` lists packages of extras, each with the argument that needs it
# (`None`: the command itself), so that a missing one is found before any work. Only the module of the command that is
# called is imported, and it imports what is slow inside `run`: a mistake in the arguments must not wait for torch.
COMMANDS = {
    "check": ("check_data", "look for everything that is wrong with a dataset"),
    "train": ("train_model", "adapt a model to a dataset, in both stages"),
    "evaluate": ("evaluate_model", "score a model on a dataset"),
    "index": ("index_crops", "encode a folder of crops, to be searched"),
    "search": ("search_gallery", "find the images that a sentence describes"),
    "demo": ("serve_demo", "search in the browser"),
    "convert": ("convert_weights", "write weights of any origin as an ordinary folder"),
    "push": ("push_model", "publish a saved model on the Hugging Face Hub"),
}
NOTHING_FOUND, MISTAKE, MISSING_EXTRA, UNEXPECTED, INTERRUPTED = 1, 2, 3, 4, 130
_EPILOG = """exit codes: 0 done; 1 done, and the answer is no (check found errors, search found no match); 2 a mistake
in the arguments or the input; 3 an optional dependency is missing; 4 an unexpected failure; 130 interrupted; 143
stopped by SIGTERM"""
_CHOICES = re.compile(r"invalid choice: '(.*?)' \(choose from (.*)\)")
# What an error that the library raises advises in Python, as it is said in a shell.
_IN_A_SHELL = {
    "pass local_files_only=True": "set HF_HUB_OFFLINE=1",
    "without local_files_only and HF_HUB_OFFLINE": "without HF_HUB_OFFLINE",
    "pass token=": "set HF_TOKEN",
    "pass overwrite=True": "pass --overwrite",
    "name it: name=,": "name it: --model NAME,",
    "weights_size=(height, width), saved_size in load_weights": "promptreid convert --weights-size HEIGHT WIDTH",
    "Pass quick_gelu=True if": "Write a folder with promptreid convert --quick-gelu if",
    "else quick_gelu=False": "else --no-quick-gelu",
    "pass cache_dir=": "set HF_HUB_CACHE",
}


class UsageError(ValueError):
    """The arguments do not fit the command."""


class _Parser(argparse.ArgumentParser):
    """Reports mistakes in the arguments as all others are reported, in JSON too."""

    def error(self, message: str) -> NoReturn:
        wrong = _CHOICES.search(message)
        near = get_close_matches(wrong[1], re.findall(r"[\w-]+", wrong[2]), n=1) if wrong else []
        advice = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"{message.replace(': is ', ' is ', 1)}{advice}; see {self.prog} --help")


class _CommandParser(_Parser):
    """Takes positional arguments behind options too, and names its own help."""

    _is_mixing = False

    def parse_known_args(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, args: Any = None, namespace: Any = None
    ) -> Any:
        if self._is_mixing:  # argparse calls this once for the options, once for the rest
            return super().parse_known_args(args, namespace)
        self._is_mixing = True
        try:
            settings, unknown = self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_mixing = False
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return settings, unknown


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
    parsers = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", title="commands", parser_class=_CommandParser
    )
    for name, (module, summary) in COMMANDS.items():
        subparser = parsers.add_parser(name, help=summary, epilog=_EPILOG)
        if name in commands:
            command = import_module(f"promptreid.cli.{module}")
            subparser.description = command.DESCRIPTION
            command.add_arguments(subparser)
            subparser.add_argument(
                "--json", action="store_true", help="print one JSON object on standard output, for scripts"
            )
            subparser.add_argument(
                "--traceback", action="store_true", help="print where in the code a failure arose, to report it"
            )
            subparser.set_defaults(module=command)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: Without the program's name; those of the process if `None`.

    Returns:
        The exit code: 0 done; 1 done, and the answer is no; 2 a mistake in the arguments or the input; 3 an optional
        dependency is missing; 4 an unexpected failure; 130 interrupted; 143 stopped by SIGTERM.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    output = Output(as_json="--json" in given)

    def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
        if issubclass(category, UserWarning):  # without the line of our code, which a user can do nothing about
            output.note(f"warning: {_in_a_shell(str(message))}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        warnings.simplefilter("default", UserWarning)
        code = _guard(output, lambda: _run(given, output), with_traceback="--traceback" in given)
        return _guard(output, lambda: output.finish(code))


def _run(given: list[str], output: Output) -> int:
    called = [word for word in given if word in COMMANDS][:1]
    settings = vars(build_parser(called).parse_args(given))
    name, module = settings.pop("command"), settings.pop("module")
    output.as_json = settings.pop("json")
    del settings["traceback"]
    for argument, package, extra in getattr(module, "NEEDS", ()):
        if (argument is None or settings[argument]) and find_spec(package) is None:
            raise missing_extra(f"promptreid {name}" + (f" --{argument}" if argument else ""), package, extra)
    return int(module.run(output, **settings))


def _guard(output: Output, step: Callable[[], int], *, with_traceback: bool = False) -> int:
    """The exit code of a step; no failure gets past here but as one line and a code of its own."""
    try:
        return step()
    except KeyboardInterrupt:
        return output.fail("interrupted", INTERRUPTED)
    except SystemExit as stopped:  # the trainer, once its checkpoint is written; argparse, after --help
        if not stopped.code:
            raise
        code = stopped.code if isinstance(stopped.code, int) else INTERRUPTED
        return output.fail("stopped by a signal; the same command resumes from the last checkpoint", code)
    except Exception as error:
        if with_traceback:
            traceback.print_exc()
        return output.fail(*_explain(error))


def _in_a_shell(words: str) -> str:
    for in_python, in_a_shell in _IN_A_SHELL.items():
        words = words.replace(in_python, in_a_shell)
    return words


def _explain(error: Exception) -> tuple[str, int]:
    """What is said of an error, and its exit code."""
    words = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    words = _in_a_shell(words)
    if isinstance(error, MissingExtraError):
        return words, MISSING_EXTRA
    torch: Any = sys.modules.get("torch")  # a command that failed before it was imported has not run out of memory
    if isinstance(error, MemoryError) or (torch and isinstance(error, torch.OutOfMemoryError)):
        return f"out of memory ({words}); a smaller --batch-size needs less", MISTAKE
    if isinstance(error, PromptReidError | ValueError | TypeError | OSError | FloatingPointError):
        return words, MISTAKE
    if (isinstance(error, KeyError) and " " in words) or _comes_from(error, "open_clip"):
        return words, MISTAKE  # words of ours, or of open_clip, which has only RuntimeErrors for downloads and weights
    return (
        f"unexpected {type(error).__name__}: {words}; please report it with what the same command prints "
        "with --traceback",
        UNEXPECTED,
    )


def _comes_from(error: Exception, package: str) -> bool:
    """Whether a RuntimeError was raised by the code of a package."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return isinstance(error, RuntimeError) and frames[-1].f_globals["__name__"].partition(".")[0] == package
