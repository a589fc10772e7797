"""Starts the page and stops it."""

import errno
import importlib
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from promptreid.defaults import ENDING, GALLERY_FILE, is_store
from promptreid.demo.answers import Answers
from promptreid.demo.page import OPEN_SCRIPT, TITLE, fill_page, page_caution
from promptreid.demo.request_checks import LOOPBACK, MAX_UPLOAD_BYTES, RequestFilter, TimedConnection
from promptreid.demo.shown_images import ShownImages
from promptreid.demo.sources import Opened, SearchedGallery, draw_people, encode_crops, open_indexed
from promptreid.errors import DatasetError, ServingError, missing_extra
from promptreid.model.prompted_clip import PromptedCLIP, load_prompts
from promptreid.retrieval.gallery import Gallery
from promptreid.retrieval.gallery_folder import check_one_kind
from promptreid.retrieval.stored_gallery import StoredGallery
from promptreid.towers.tiny import tiny_prompts

if TYPE_CHECKING:
    from typing_extensions import Unpack

_STYLE = Path(__file__).with_name("style.css")
_KEPT_SECONDS = 24 * 3600
_KEPT_SECONDS_IN_PUBLIC = 3600
_MAX_WAITING = 64
_MAX_SESSIONS = 200  # visitors whose questions are kept; an uploaded image takes some megabytes
_MAX_PORT = 65535
_FONTS = ["system-ui", "sans-serif"]
# gradio reads these when it is imported or when a page is made; nothing is ever sent to anyone from this page.
_SILENT = {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_RUN_HISTORY": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
_LAUNCH: dict[str, Any] = {
    "share": False,
    "prevent_thread_lock": True,
    "quiet": True,
    "state_session_capacity": _MAX_SESSIONS,
    "max_file_size": MAX_UPLOAD_BYTES,
    "enable_monitoring": False,
    "ssr_mode": False,
    "pwa": False,
    "mcp_server": False,
    "footer_links": [],
}
Auth = tuple[str, str] | Sequence[tuple[str, str]]
_log = logging.getLogger(__name__)
_page_lock = threading.Lock()


class ServingOptions(TypedDict, total=False):
    """How the page is served; `start` says what each means and has the defaults."""

    model: PromptedCLIP | None
    host: str
    port: int | None
    auth: Auth | None
    open_browser: bool
    progress: bool


class RunningDemo(ExitStack):
    """A page that is being served; close it, or use it in a `with` statement.

    Closing stops it, and deletes the drawn gallery and every copy of an image that was made for the browser.

    Attributes:
        url: Its address.
    """

    url = ""


def start(
    gallery: SearchedGallery | str | Path | None = None,
    *,
    model: PromptedCLIP | None = None,
    host: str = LOOPBACK[0],
    port: int | None = None,
    auth: Auth | None = None,
    open_browser: bool = False,
    progress: bool = True,
) -> RunningDemo:
    """Serve the page in the background.

    It never serves a file of the gallery: the browser gets copies of the images that are shown, made small, from a
    folder that only this user can read and that `close` deletes. Nothing is sent to anyone else.

    Args:
        gallery: A `Gallery` or `StoredGallery` with its model, a folder that `Gallery.save` or `promptreid index`
            wrote, a store's address, or a folder of crops, which is encoded first; `None` for drawn pedestrians.
        model: What `load_prompts` returns, for a folder; `None` for the small base and prompts that ship with the
            package.
        host: Address to listen on. At the default only this computer reaches the page; at `"0.0.0.0"` everyone who
            reaches this computer can search the gallery and see its images.
        port: `None` for the first free one from 7860.
        auth: User and password that visitors must give, or several such pairs; `None` for no login. Without it, a page
            that others can reach shows no full paths and does not let visitors remove anybody.
        open_browser: Open the page in the browser.
        progress: Show progress bars while a folder is encoded.

    Returns:
        The page.

    Raises:
        MissingExtraError: gradio is not installed.
        DatasetError: The folder is missing, has no readable image, or the gallery is empty.
        CheckpointError: The gallery or store is damaged or of another model.
        StoreError: The store cannot be reached or opened.
        ServingError: The port is taken, the host unknown, or this process is already serving a page.
        ValueError: There is no such port, or no store has such an address, a user or password is empty, the gallery
            was loaded without a model, or the folder holds a gallery and a store.

    Example:
        >>> with start("gallery/") as page:  # doctest: +SKIP
        ...     print(page.url)
    """
    gr = require_gradio()
    check_address(host, port)
    pairs = _pairs(auth)
    with RunningDemo() as held:
        if not _page_lock.acquire(blocking=False):  # gradio knows only one folder for its copies
            raise ServingError(
                "this process is already serving a demo; close it first, or start the second in its own process"
            )
        held.callback(_page_lock.release)
        scratch = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="promptreid-demo-"))).resolve()
        opened = _open(gallery, model, scratch / "drawn", progress=progress)
        shown = scratch / "shown"
        shown.mkdir(mode=0o700)
        private = host in LOOPBACK
        copies = ShownImages(shown / "crops", opened.root)
        answers = Answers(opened, copies, is_trusted=private or bool(pairs))
        # gradio's copies go there, and no setting may open other folders to the browser.
        held.enter_context(_environment(GRADIO_TEMP_DIR=str(shown), GRADIO_ALLOWED_PATHS=None))
        page = _serve(gr, answers, shown, host, port, pairs, open_browser)
        held.callback(page.close, verbose=False)
        if not private:
            who = "everyone who knows a password" if pairs else "everyone who reaches this computer"
            _log.warning("%s can search this gallery, at %s", who, page.local_url)
        running = held.pop_all()
        running.url = page.local_url
        return running


def _open(
    gallery: SearchedGallery | str | Path | None, model: PromptedCLIP | None, drawn: Path, *, progress: bool
) -> Opened:
    """The gallery of the page, in any of the accepted forms."""
    if gallery is not None and not isinstance(gallery, str | os.PathLike):
        if len(gallery) == 0:
            place = getattr(gallery, "directory", None) or getattr(gallery, "url", None) or "the gallery"
            raise DatasetError(f"{place} is empty; add images first, by promptreid index or in Python")
        return open_indexed(gallery)
    if gallery is not None:
        check_one_kind(gallery)
    stored = gallery is not None and is_store(gallery)
    if gallery is not None and not stored and not Path(gallery).is_dir():
        raise DatasetError(f"there is no folder {gallery}; give a gallery, or a folder of images")
    model = (load_prompts(tiny_prompts()) if model is None else model).eval()
    if gallery is None:
        return draw_people(drawn, model)
    if stored:
        return _open(StoredGallery.load(gallery, model), None, drawn, progress=progress)
    if (Path(gallery) / GALLERY_FILE).is_file():
        return _open(Gallery.load(gallery, model), None, drawn, progress=progress)
    return encode_crops(gallery, model, progress=progress)


def _pairs(auth: Auth | None) -> list[tuple[str, str]]:
    """Every user with a password.

    Raises:
        ValueError: One of them is empty.
    """
    given: list[Any] = [] if auth is None else [auth] if isinstance(auth, tuple) else list(auth)
    for pair in given:
        if len(pair) != 2 or not all(isinstance(part, str) and part.strip() for part in pair):
            raise ValueError('auth holds an empty user or password; give a pair such as ("anna", "a long password")')
    return [(user, password) for user, password in given]


def launch(
    gallery: SearchedGallery | str | Path | None = None,
    *,
    announce: Callable[[str], object] | None = None,
    **options: "Unpack[ServingOptions]",
) -> None:
    """Serve the page until Ctrl-C or a termination signal, and print its address.

    Args:
        gallery: What is searched, as `start` takes it.
        announce: Called with the page's address once it can be opened; it is printed if None.
        **options: Those of `start`, whose errors it raises.

    Example:
        >>> launch("gallery/")  # doctest: +SKIP
    """
    if threading.current_thread() is threading.main_thread():
        for number in ENDING:
            if signal.getsignal(number) is signal.SIG_DFL:  # as it is not where the command line takes care of it
                signal.signal(number, _interrupt)
    with start(gallery, **options) as page:
        try:  # a user who reads the address may end the page at once
            (announce or _print_address)(page.url)
            threading.Event().wait()
        except KeyboardInterrupt:
            if announce is None:
                sys.stdout.write("\n")


def _print_address(url: str) -> None:
    sys.stdout.write(f"{address_line(url)}\n")
    sys.stdout.flush()


def address_line(url: str) -> str:
    """The message to the person who started the page."""
    return f"The demo is at {url} (Ctrl-C ends it)"


def _interrupt(number: int, frame: Any) -> None:
    """End as Ctrl-C does, so that the copies of images are deleted."""
    raise KeyboardInterrupt


def require_gradio() -> Any:
    """Import gradio, with its telemetry and its record of what was asked turned off.

    Raises:
        MissingExtraError: It is not installed.
    """
    os.environ.update(_SILENT)
    try:
        with _without_proxies():
            return importlib.import_module("gradio")
    except ImportError as error:
        raise missing_extra("the demo", "gradio", "demo") from error


def check_address(host: str, port: int | None) -> None:
    """Refuse an address that cannot be listened on; gradio tries some for ever, and names its own arguments.

    Raises:
        ServingError: The port is taken, or the host unknown.
        ValueError: There is no such port.
    """
    if port is not None and not 1 <= port <= _MAX_PORT:
        raise ValueError(f"the port is {port}, expected 1 to {_MAX_PORT}, or none for the first free one")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            if os.name != "nt":  # there it would also take a port that another process listens on
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, UnicodeError) as error:
        if isinstance(error, OSError) and error.errno in (errno.EADDRINUSE, errno.EACCES):
            reason = f"port {port} of {host} cannot be used ({error.strerror}); give another, or none for a free one"
        else:
            reason = (
                f"the host {host} is not an address of this computer ({error}); leave it out to listen only on this "
                "computer"
            )
        raise ServingError(reason) from error


def _without_proxies() -> AbstractContextManager[None]:
    """Let gradio reach its own page, which a proxy would be asked for."""
    return _environment(**dict.fromkeys(name for name in os.environ if name.lower().endswith("_proxy")))


@contextmanager
def _environment(**changes: str | None) -> Generator[None, None, None]:
    """Set variables of the environment for a while; `None` removes one."""
    before = {name: os.environ.pop(name, None) for name in changes}
    os.environ.update({name: value for name, value in changes.items() if value is not None})
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _serve(
    gr: Any,
    answers: Answers,
    shown: Path,
    host: str,
    port: int | None,
    auth: list[tuple[str, str]],
    open_browser: bool,
) -> Any:
    """Make gradio's page, and serve it from a separate thread."""
    private = host in LOOPBACK
    kept_seconds = _KEPT_SECONDS if private else _KEPT_SECONDS_IN_PUBLIC
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=(600, kept_seconds)) as page:
        fill_page(gr, answers, caution=page_caution(private=private), kept_seconds=kept_seconds)
    page.queue(max_size=_MAX_WAITING)
    middleware: Any = importlib.import_module("starlette.middleware").Middleware
    checks = middleware(RequestFilter, shown=shown, private=private, functions=set(page.fns), has_login=bool(auth))
    with _without_proxies():
        page.launch(
            server_name=host,
            server_port=port,
            inbrowser=open_browser,
            theme=_theme(gr),
            css=_STYLE.read_text(encoding="utf-8"),
            js=OPEN_SCRIPT,
            auth=auth or None,
            app_kwargs={"middleware": [checks], "docs_url": None, "redoc_url": None, "openapi_url": None},
            **_LAUNCH,
        )
    serving = page.server.config  # uvicorn's, which makes each new connection by this class
    serving.http_protocol_class = type("Connection", (TimedConnection, serving.http_protocol_class), {})
    return page


def _theme(gr: Any) -> Any:
    """Plain, of fonts that every system has, and with grey text dark enough to read."""
    return gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=_FONTS, font_mono=["monospace"]).set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
    )
