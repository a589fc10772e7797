"""`promptreid demo`: a page in the browser to search a gallery."""

import argparse
import io
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptreid.cli.argument_types import folder_to_read, whole
from promptreid.cli.options import (
    ModelArguments,
    add_model_arguments,
    check_device,
    chosen_model,
    load_model,
    note_model,
)
from promptreid.cli.output import Output
from promptreid.cli.search_gallery import open_gallery
from promptreid.defaults import is_gallery, is_store
from promptreid.errors import shell_word
from promptreid.towers.tiny import TINY_ADAPTED

if TYPE_CHECKING:
    from typing_extensions import Unpack

DESCRIPTION = """Serve a page on this computer that searches a gallery, a folder of crops or drawn pedestrians by a
sentence or an image. A gallery opens at once; a folder of crops is encoded each time. Needs the extra demo. Ends with
Ctrl-C."""
NEEDS = [(None, "gradio", "demo")]

AUTH_VARIABLE = "PROMPTREID_DEMO_AUTH"
_MOST_AUTH_BYTES = 2**16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.add_argument(
        "gallery",
        type=_shown,
        nargs="?",
        help="a gallery that `promptreid index` made, a store's address, or a folder of crops; default: drawn people",
    )
    add_model_arguments(parser, default=f"the one that made the index, else {TINY_ADAPTED}")
    parser.add_argument("--host", default="127.0.0.1", help="default %(default)s: only this computer")
    parser.add_argument("--port", type=whole(1, 65535), help="default: a free one")
    parser.add_argument(
        "--auth",
        metavar="USER:PASSWORD|@FILE",
        help="ask visitors to log in; others on this computer can read a password that is typed here, so give @FILE, "
        f"a file with one USER:PASSWORD a line, or set {AUTH_VARIABLE}",
    )
    parser.add_argument("--open", action="store_true", help="open the page in the browser")


def _shown(text: str) -> Path | str:
    return text if "://" in text else folder_to_read(text)


def run(
    console: Output,
    /,
    *,
    gallery: Path | str | None,
    host: str,
    port: int | None,
    auth: str | None,
    open: bool,
    **model: "Unpack[ModelArguments]",
) -> int:
    """Serve the page until Ctrl-C."""
    pairs = read_auth(auth, os.environ)
    from promptreid.demo.app import address_line, check_address, launch

    def announce(url: str) -> None:
        console.record(url=url)
        (console.note if console.as_json else console.say)(address_line(url))

    check_address(host, port)
    options: dict[str, Any] = {
        "host": host, "port": port, "auth": pairs, "open_browser": open, "announce": announce,
    }  # fmt: skip
    if gallery is not None and (is_store(gallery) or is_gallery(gallery)):
        launch(open_gallery(gallery, model, searched=True), **options)
        return 0
    choice, device = chosen_model(model), check_device(model["device"])
    if gallery is not None:
        note_model(console, choice, Path(gallery))
        console.note(
            f"note: {gallery} is encoded each time; to open it at once, promptreid index {shell_word(gallery)} "
            "--output gallery and then promptreid demo gallery"
        )
    launch(gallery, model=load_model(choice, device=device), progress=console.progress, **options)
    return 0


def read_auth(given: str | None, environment: Mapping[str, str]) -> list[tuple[str, str]] | None:
    """Users with passwords, from `--auth` or the environment; `None` if there are none.

    Args:
        given: `USER:PASSWORD`, or `@FILE`.
        environment: Where `PROMPTREID_DEMO_AUTH` is looked for, which says the same.

    Raises:
        ValueError: It is of another form, or the file cannot be read.
    """
    name = "--auth" if given is not None else AUTH_VARIABLE
    text = environment.get(AUTH_VARIABLE) if given is None else given
    if text is None:
        return None
    if text.startswith("@"):
        name = f"{name} {text}"
        text = _read_file(Path(text[1:]), name)
    pairs: list[tuple[str, str]] = []
    lines = io.StringIO(text, newline=None)  # splitlines() also cuts inside of a password
    for number, line in enumerate(filter(None, map(str.strip, lines)), start=1):
        user, separator, password = line.partition(":")
        if not (separator and user.strip() and password.strip()):  # the line itself may be a password
            raise ValueError(f"{name} is not USER:PASSWORD in line {number}; write both, with a colon between them")
        pairs.append((user.strip(), password))
    if not pairs:
        raise ValueError(f"{name} is empty; write USER:PASSWORD")
    return pairs


def _read_file(path: Path, name: str) -> str:
    from promptreid.files import open_file  # which imports torch

    try:
        with open_file(path) as stream:
            if os.name == "posix" and os.fstat(stream.fileno()).st_mode & 0o077:
                warnings.warn(f"others on this computer can read {path}; chmod 600 {path} keeps them out", stacklevel=2)
            return stream.read(_MOST_AUTH_BYTES).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{name} cannot be read ({error}); give a file with one USER:PASSWORD a line") from error
