"""The command `promptreid`: finds the subcommand, runs it, turns every failure into one clear line."""

import argparse
import dis
import errno
import logging
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from types import TracebackType
from typing import Any, NoReturn

from promptreid.cli.output import Output, print_line
from promptreid.defaults import ENDING
from promptreid.errors import HubError, MissingExtraError, PromptReidError, missing_extra
from promptreid.version import __version__

# Each command is a module of this room with `DESCRIPTION`, `add_arguments(parser)` and
# `run(output, *, <its arguments>) -> exit code`; `NEEDS` lists packages of extras, each with the argument that needs it
# (`None`: the command itself) and perhaps how its value ends, so that a missing one is found before any work. Only the
# module of the command that is called is imported, and it imports what is slow inside `run`: a mistake in the arguments
# must not wait for torch.
COMMANDS = {
    "try": ("try_search", "search 200 drawn people: the first command to try"),
    "check": ("check_data", "find everything that is wrong with a dataset"),
    "train": ("train_model", "adapt a model to a dataset, in both stages"),
    "evaluate": ("evaluate_model", "score a model on a dataset"),
    "index": ("index_crops", "encode a folder of crops, to be searched"),
    "search": ("search_gallery", "find the images that a sentence describes"),
    "calibrate": ("calibrate_gallery", "choose the lowest score that counts as a match"),
    "store": ("store_command", "maintain a store of features, or erase people from it"),
    "demo": ("serve_demo", "search in the browser"),
    "convert": ("convert_weights", "write weights of any origin as an open_clip folder"),
    "export": ("export_model", "write the encoders as ONNX files"),
    "push": ("push_model", "publish a saved model on the Hugging Face Hub"),
    "completion": ("complete_shell", "print what a shell needs to complete all this on the Tab key"),
}
_RESUMING = {"train", "index", "store", "try"}  # what they have written when a signal comes is of use to the next call
MISTAKE, MISSING_EXTRA, UNEXPECTED, MACHINE, INTERRUPTED = 2, 3, 4, 5, 130
_EPILOG = """exit codes: 0 done; 1 done, and the answer is no (check found errors, search found no match); 2 a mistake
in the arguments or the input; 3 an optional dependency is missing; 4 an unexpected failure; 5 the disk, the memory or
the network failed, or another process is at work; 130 interrupted; 143 stopped by SIGTERM, 129 by
SIGHUP, as when a terminal is closed"""
# Other words for what the commands do, as beginners and users of other tools type them.
_ALSO = {
    "find": "search", "query": "search", "eval": "evaluate", "test": "evaluate", "fit": "train", "adapt": "train",
    "validate": "check", "verify": "check", "serve": "demo", "app": "demo", "publish": "push", "upload": "push",
    "encode": "index", "build": "index", "embed": "index", "threshold": "calibrate",
}  # fmt: skip
_BEHIND = "--\0"  # an option that nobody can type
_ALSO_OPTIONS = {"--lr": "--learning-rates", "--top-k": "-k", "--topk": "-k"}
_TYPE_ERROR = re.compile(r"^(argument [^:]*): is ")
_CHOICES = re.compile(r"invalid choice: '(.*?)' \(choose from (.*)\)")
_TOO_FEW = re.compile(r"^argument (\S+): expected \d+ arguments?$")
# Advice in the library's messages, and its form for the shell. Each key is a phrase that no path is, so that the paths
# beside it stay as they are; a test checks that each is in a message.
_IN_A_SHELL = {
    "call gallery.calibrate(), or gallery.calibrate(split)": "run promptreid calibrate GALLERY, or add DATA",
    "pass local_files_only=True": "set HF_HUB_OFFLINE=1",
    "without local_files_only and HF_HUB_OFFLINE": "without HF_HUB_OFFLINE",
    "pass token=": "set HF_TOKEN",
    "open_clip.list_models() lists all": 'python -c "import open_clip; print(*open_clip.list_models())" lists all',
    "pass a valid token=": "set HF_TOKEN to a valid one",
    "pass a cache_dir= that you may write to, or set HF_HOME": "set HF_HUB_CACHE to one that you may write to",
    "pass overwrite=True": "pass --overwrite",
    "name it: name=,": "name it: --model NAME,",
    "weights_size=(height, width), saved_size in load_weights": "promptreid convert --weights-size HEIGHT WIDTH",
    "Pass quick_gelu=True if": "Write a folder with promptreid convert --quick-gelu if",
    "else quick_gelu=False": "else --no-quick-gelu",
    "pass cache_dir=": "set HF_HUB_CACHE",
    "another output_dir": "another --output",
    "clip the gradient (max_norm)": "clip the gradient (--max-norm)",
    "an output_dir that": "an --output that",
    "another branch by revision=": "another branch by --revision",
    "erase with alone=True": "erase with --alone",
    "pass private=False": "add --public",
    "Check the path, which gallery.paths lists;": "Check the path, as promptreid search prints it;",
    "or without labels: gallery.calibrate()": "or without labels: promptreid calibrate GALLERY",
}
_ADVICE = re.compile(rf"(?<![\w./-])(?:{'|'.join(map(re.escape, _IN_A_SHELL))})(?![\w/-])")
# Python's arguments; what stands behind them tells them from a path of the same name.
_PYTHON_NAMES = re.compile(
    r"(?<![\w./-])(?:seed(?= is )"
    r"|(?:batch_size|image_size|num_workers|learning_rate|prompt_length)(?= is | was | \d| \(|, or |, such | to keep ))"
)
# Others have another name in the shell, or are plain words: only at the beginning of a message, before a number or a
# quoted text, as other words follow a path of that name.
_FIRST_NAMES = {
    "text_length": "--prompt-length",
    "vision_length": "--prompt-length",
    "text_depth": "--prompt-depth",
    "vision_depth": "--prompt-depth",
    "depth": "--prompt-depth",
    "image_dir": "--image-dir",
    "layout": "--layout",
    "split": "--split",
    "table": "--table",
}
_FIRST_NAME = re.compile(rf"^(?:{'|'.join(_FIRST_NAMES)})(?= is ['\"\d-])")
# What the operating system answers where the disk or the memory is at fault, and not a path.
_MACHINE_ERRORS = {
    errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN,
    errno.ESTALE, errno.EPIPE,
}  # fmt: skip


class UsageError(PromptReidError, ValueError):
    """The arguments do not fit the command."""


class _Terminated(SystemExit):
    """Raised on a signal, so that a write is completed or rolled back and the exit is reported like other failures."""


@contextmanager
def _heeding_signals() -> Generator[None, None, None]:
    """Raise `_Terminated` in the block on a signal, unless other code handles it, as training does."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    ours = [number for number in ENDING if in_main_thread and signal.getsignal(number) is signal.SIG_DFL]

    def terminate(number: int, _: Any) -> NoReturn:
        for each in ours:  # a second one must not interrupt what puts things in order
            signal.signal(each, signal.SIG_IGN)
        raise _Terminated(128 + number)

    for number in ours:
        signal.signal(number, terminate)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


class _Parser(argparse.ArgumentParser):
    """Reports mistakes in the arguments as all others are reported, in JSON too."""

    def error(self, message: str) -> NoReturn:
        wrong, few = _CHOICES.search(message), _TOO_FEW.search(message)
        near = _meant(wrong[1], re.findall(r"[\w-]+", wrong[2])) if wrong else None
        advice = f"; did you mean {near}?" if near else ""
        if few:
            wanted = next((each.metavar for each in self._actions if few[1] in each.option_strings), None)
            advice = f": {few[1]} {' '.join(wanted)}" if isinstance(wanted, tuple) else ""
        message = _TYPE_ERROR.sub(r"\1 is ", message)
        raise UsageError(f"{message}{advice}; see {self.prog} --help")

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print help and version as every other output is printed, where a full or closed one is an error."""
        print_line(message.removesuffix("\n"))


def _meant(word: str, known: list[str]) -> str | None:
    """Return the command that an unknown word probably means."""
    if " " in word and "search" in known:
        return f'promptreid try "{word}"'
    near = [name for name in known if name == _ALSO.get(word)] or get_close_matches(word, known, n=1)
    return near[0] if near else None


class _Plain(str):
    """A word behind `--`: never an option, though it may begin with a dash."""


class _NothingMore(argparse.Action):
    """Stands for `--`, which ends an option of several values, and which argparse forgets in the meantime."""

    def __call__(self, *_: Any) -> None:
        """Do nothing."""


class _CommandParser(_Parser):
    """Takes positional arguments behind options too, and names its own help."""

    _is_mixing = False

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        hidden: dict[str, Any] = dict.fromkeys(("dest", "default", "help"), argparse.SUPPRESS)
        self.add_argument(_BEHIND, action=_NothingMore, nargs=0, **hidden)

    def _parse_optional(self, arg_string: str) -> Any:
        return None if isinstance(arg_string, _Plain) else super()._parse_optional(arg_string)

    def parse_known_args(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, args: Any = None, namespace: Any = None
    ) -> Any:
        if self._is_mixing:  # argparse calls this once for the options, once for the rest
            return super().parse_known_args(args, namespace)
        self._is_mixing = True
        words = list(args)
        if "--" in words:
            at = words.index("--")
            words[at:] = [_BEHIND, *map(_Plain, words[at + 1 :])]
        try:
            settings, unknown = self.parse_known_intermixed_args(words, namespace)
        finally:
            self._is_mixing = False
        sentence = getattr(settings, "sentence", None)
        if unknown and sentence and not any(word.startswith("-") for word in unknown):
            self.error(f'put the sentence in quotation marks: "{" ".join([sentence, *unknown])}"')
        if unknown:
            plain = any(isinstance(word, _Plain) and word.startswith("-") for word in unknown)
            advice = "; options stand before --" if plain else self._meant_by(unknown)
            self.error(f"unrecognized arguments: {' '.join(unknown)}{advice}")
        return settings, unknown

    def _meant_by(self, unknown: Sequence[str]) -> str:
        """What unknown arguments with a dash probably mean, as advice: options, or paths."""
        options = [name for action in self._actions for name in action.option_strings]
        paths = [f"./{word}" for word in unknown if word.startswith("-") and os.path.lexists(word)]
        names = [word.partition("=")[0].lower().replace("_", "-") for word in unknown if word.startswith("--")]
        names = [_ALSO_OPTIONS.get(name, name) for name in names]
        meant = [near for name in names for near in get_close_matches(name, options, n=1, cutoff=0.7)] + paths
        return f"; did you mean {' and '.join(meant)}?" if meant else ""


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
        The exit code, as the end of every `--help` explains it.
    """
    # They announce every try again and a push without changes; the one line that a command ends with says it.
    for name in ("utils._http", "hf_api"):
        logging.getLogger(f"huggingface_hub.{name}").setLevel(logging.ERROR)
    given = sys.argv[1:] if arguments is None else list(arguments)
    output = Output(as_json="--json" in given)

    progress = logging.getLogger("promptreid.towers.downloading")
    notes = logging.Handler()
    notes.emit = lambda record: output.note(record.getMessage())
    progress.setLevel(logging.INFO)

    def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
        if issubclass(category, UserWarning):  # without the line of our code, which a user can do nothing about
            output.note(f"warning: {_in_a_shell(str(message))}")

    with warnings.catch_warnings(), _heeding_signals(), ExitStack() as stack:
        progress.addHandler(notes)
        stack.callback(progress.removeHandler, notes)
        warnings.showwarning = show
        warnings.simplefilter("default", UserWarning)
        called = next((word for word in given if word in COMMANDS), None)
        code = _guard(output, lambda: _run(given, output), called, with_traceback="--traceback" in given)
        return _guard(output, lambda: output.finish(code))


def _run(given: list[str], output: Output) -> int:
    called = [word for word in given if word in COMMANDS][:1]
    words = [word for word in given if not word.startswith("-")]
    if not called and len(words) > 2 and _meant(words[0], list(COMMANDS)) is None:
        raise UsageError(f'put the sentence in quotation marks: promptreid try "{" ".join(words)}"')
    settings = vars(build_parser(called).parse_args(given))
    name, module = settings.pop("command"), settings.pop("module")
    output.as_json = settings.pop("json")
    del settings["traceback"]
    for argument, package, extra, *ending in getattr(module, "NEEDS", ()):
        needed = argument is None or (settings[argument] and str(settings[argument]).endswith(tuple(ending or [""])))
        if needed and find_spec(package) is None:
            raise missing_extra(f"promptreid {name}" + (f" --{argument}" if argument else ""), package, extra)
    return int(module.run(output, **settings))


def _guard(output: Output, step: Callable[[], int], called: str | None = None, *, with_traceback: bool = False) -> int:
    """The exit code of a step; every failure ends here as one line and its own code."""
    try:
        return step()
    except KeyboardInterrupt:
        return output.fail("interrupted", INTERRUPTED)
    except _Terminated as stopped:
        code = int(str(stopped.code))
        name = signal.Signals(code - 128).name
        kept = "; what was finished is kept, and the same command resumes" if called in _RESUMING else ""
        return output.fail(f"stopped by {name}{kept}", code)
    except SystemExit as stopped:  # the trainer, once its checkpoint is written; argparse, after --help
        if not stopped.code:
            raise
        code = stopped.code if isinstance(stopped.code, int) else INTERRUPTED
        return output.fail("stopped by a signal; the same command resumes from the last checkpoint", code)
    except Exception as error:
        if with_traceback:
            traceback.print_exc()
        return output.fail(*_explain(error))


def _explain(error: Exception) -> tuple[str, int]:
    """Return the message and the exit code for an error."""
    words = _in_a_shell(_own_words(error))
    if isinstance(error, MissingExtraError):
        return words, MISSING_EXTRA
    torch: Any = sys.modules.get("torch")  # a command that failed before it was imported has not run out of memory
    if isinstance(error, MemoryError) or (torch and isinstance(error, torch.OutOfMemoryError)):
        return f"out of memory ({words}); a smaller --batch-size needs less", MACHINE
    if _is_of_the_machine(error):
        return words, MACHINE
    if isinstance(error, PromptReidError) or getattr(error, "errno", None) or _is_refusal(error):
        return words, MISTAKE
    return (
        f"unexpected {type(error).__name__}: {words}; please report it with what the same command prints "
        "with --traceback",
        UNEXPECTED,
    )


def _own_words(error: Exception) -> str:
    words = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if "Original Traceback" in words:  # torch's, of a process that loads data
        words = words.rpartition(f"{type(error).__name__}: ")[2]
    return words


def _in_a_shell(words: str) -> str:
    """Return an error's message with command-line options in place of Python's arguments."""
    words = _ADVICE.sub(lambda found: _IN_A_SHELL[found[0]], words)
    words = _FIRST_NAME.sub(lambda found: _FIRST_NAMES[found[0]], words)
    return _PYTHON_NAMES.sub(lambda found: f"--{found[0].replace('_', '-')}", words)


def _is_of_the_machine(error: BaseException) -> bool:
    """Whether the disk, the network or another process was in the way, and not what was asked for."""
    asked, cause = isinstance(error, HubError), error.__cause__
    if isinstance(error, TimeoutError | ConnectionError) or getattr(error, "errno", None) in _MACHINE_ERRORS:
        return True
    if cause is None:
        return False
    if asked and not isinstance(cause, HubError):
        from promptreid.hub import repository

        if isinstance(cause, repository.TRANSPORT_ERRORS) and repository.is_unreachable(cause):
            return True
    return _is_of_the_machine(cause)


def _is_refusal(error: Exception) -> bool:
    """Whether a built-in error was raised on purpose: by a `raise` of ours, or of open_clip for weights and downloads.

    Python itself raises the same classes where our code is wrong.
    """
    frame, at = [(step.tb_frame, step.tb_lasti) for step in _steps(error.__traceback__)][-1]
    package = str(frame.f_globals.get("__name__")).partition(".")[0]
    return package in ("promptreid", "open_clip") and dis.opname[frame.f_code.co_code[at]] == "RAISE_VARARGS"


def _steps(trace: TracebackType | None) -> Iterator[TracebackType]:
    while trace is not None:
        yield trace
        trace = trace.tb_next
