"""A small gallery on the shipped base, shared by every test of the room, and pages that are being served."""

import gc
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from promptreid import Gallery, PromptConfig, PromptedCLIP, load_clip, load_prompts
from promptreid.demo.answers import NUM_SHOWN, Answers
from promptreid.demo.shown_images import ShownImages
from promptreid.demo.sources import Opened, draw_people, encode_crops, open_indexed
from promptreid.towers.tiny import tiny_prompts

COLOURS = {"red": (190, 36, 40), "green": (44, 124, 66), "blue": (40, 74, 170), "yellow": (226, 190, 50)}
DAYS = ("2026-11-23", "2026-11-24")


def paint(path: Path, colour: tuple[int, int, int]) -> Path:
    """A crop that is all one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (24, 48), colour).save(path)
    return path


@pytest.fixture(scope="session", name="paint")
def paint_fixture() -> Callable[[Path, tuple[int, int, int]], Path]:
    return paint


@pytest.fixture(scope="session")
def model() -> PromptedCLIP:
    torch.manual_seed(0)
    clip = load_clip("promptreid-tiny", pretrained="generated", image_size=(96, 48))
    return PromptedCLIP(clip, PromptConfig(text_length=2, vision_length=2, text_initialization="normal")).eval()


def colour_gallery(model: PromptedCLIP, root: Path) -> Opened:
    """Eight crops of four colours from two cameras and days; persons 1 to 4 are the colours in order."""
    paths = [paint(root / camera / f"{name}.png", rgb) for camera in ("hall", "yard") for name, rgb in COLOURS.items()]
    metadata = [
        {"camera": path.parent.name, "time": f"{DAYS[number % 2]}T08:30:00", "person_id": 1 + number % 4}
        for number, path in enumerate(paths)
    ]
    described = {f"a person in {name} clothes": frozenset([number]) for number, name in enumerate(COLOURS, start=1)}
    gallery = Gallery.build(model, paths, metadata=metadata, progress=False)
    return Opened(gallery, "colours", root, tuple(described), described, "Plain <colours>.")


@pytest.fixture(scope="session")
def opened(model: PromptedCLIP, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """Shared, so nothing may be removed from it."""
    return colour_gallery(model, tmp_path_factory.mktemp("colours"))


@pytest.fixture
def answers(opened: Opened, tmp_path: Path) -> Answers:
    return Answers(opened, ShownImages(tmp_path / "shown", opened.root))


@pytest.fixture
def own_answers(model: PromptedCLIP, tmp_path: Path) -> Answers:
    """About a gallery in a folder, from which a test may remove."""
    opened = colour_gallery(model, tmp_path / "crops")
    assert isinstance(opened.gallery, Gallery)
    opened.gallery.save(tmp_path / "index")
    return Answers(replace(opened, name="index"), ShownImages(tmp_path / "shown", opened.root))


@pytest.fixture(scope="session")
def shipped() -> PromptedCLIP:
    """The model that the page opens with."""
    return load_prompts(tiny_prompts()).eval()


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory, shipped: PromptedCLIP) -> Opened:
    """The people that the page opens with."""
    return draw_people(tmp_path_factory.mktemp("gallery") / "drawn", shipped)


@dataclass(frozen=True)
class Known:
    """A sentence about some of the drawn people, with what the library's own gallery answers to it.

    Attributes:
        sentence: A caption; the shortest whose person the gallery ranks first.
        labels: What must stand below the first images.
    """

    sentence: str
    labels: list[str]


@pytest.fixture(scope="session")
def known(drawn: Opened, shipped: PromptedCLIP) -> Known:
    """Found by `Gallery` alone, so that the page is held against something that knows nothing of it."""
    gallery = Gallery.build(shipped, drawn.gallery.paths, metadata=drawn.gallery.metadata, progress=False)
    for sentence in sorted(drawn.described, key=lambda caption: (len(caption), caption)):
        hits = gallery.search(sentence, k=NUM_SHOWN)
        right = [hit.metadata["person_id"] in drawn.described[sentence] for hit in hits]
        if right[0] and sentence not in drawn.examples:
            marks = [" ✓" if yes else "" for yes in right]
            labels = [
                f"{rank} · {hit.score:.2f}{mark}\ncamera {hit.metadata['camera']}\n{hit.metadata['time']}"
                for rank, (hit, mark) in enumerate(zip(hits, marks, strict=True), start=1)
            ]
            return Known(sentence, labels)
    raise AssertionError("the shipped model ranks the right person first for none of the sentences")


class Served:
    """A page in a process of its own, started from Python or, with `command`, from the shell."""

    def __init__(self, scratch: Path, *arguments: str, command: bool = False) -> None:
        auth = "auth=('anna', 'correct horse')" if "--auth" in arguments else ""
        arguments = tuple(word for word in arguments if word != "--auth")
        code = f"import sys; from promptreid.demo.app import launch; launch(*sys.argv[1:], {auth})"
        program = ["-m", "promptreid", "demo"] if command else ["-c", code]
        self.scratch = scratch
        self._errors = (scratch.parent / f"{scratch.name}.log").open("w", encoding="utf-8")
        environment = {**os.environ, "TMPDIR": str(scratch), "GRADIO_ALLOWED_PATHS": "/", "GRADIO_SHARE": "True"}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", *program, *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert "http://127.0.0.1:" in line, f"the page did not start: {line!r}"
        self.url = line.split(" at ")[1].split(" ")[0]

    def stop(self) -> None:
        """End as a termination signal does; again does nothing."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(timeout=60)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._errors.close()


@pytest.fixture(scope="session")
def hostile_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Crops whose names are markup, beside files that are none of the page's business."""
    folder = tmp_path_factory.mktemp("gallery") / "<u>mine"
    for name, colour in COLOURS.items():
        paint(folder / "<b>hall" / f"<img src=x onerror=alert(1)>{name}.png", colour)
        paint(folder / "yard" / f"{name}.png", colour)
    (folder / "secret.txt").write_text("secret", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Served]]:
    """Serve a page with these arguments, in a process of its own, until the tests end; that takes ten seconds."""
    pytest.importorskip("gradio")
    pages: list[Served] = []

    def serve_one(*arguments: str, command: bool = False) -> Served:
        pages.append(Served(tmp_path_factory.mktemp("scratch"), *arguments, command=command))
        return pages[-1]

    yield serve_one
    for page in pages:
        page.stop()


@dataclass(frozen=True)
class Here:
    """A page in this process.

    Attributes:
        url: Its address.
        scratch: The only place where it may leave something.
    """

    url: str
    scratch: Path


@pytest.fixture(scope="module")
def start_here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Here]]:
    """Start a page in this process, which is quick: everything slow has been imported. One at a time."""
    pytest.importorskip("gradio")
    from promptreid.demo import app

    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())

        def start(gallery: Any, **options: Any) -> Here:
            scratch = tmp_path_factory.mktemp("scratch")
            patch.setattr("tempfile.tempdir", str(scratch))
            for name, value in {"GRADIO_ALLOWED_PATHS": "/", "GRADIO_SHARE": "True"}.items():
                patch.setenv(name, value)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # gradio's own
                page = stack.enter_context(app.start(gallery, progress=False, **options))
            return Here(page.url, scratch)

        yield start
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gradio leaves its loops and sockets to the garbage collector
        gc.collect()


@pytest.fixture(scope="module")
def folder_page(start_here: Callable[..., Here], hostile_folder: Path, shipped: PromptedCLIP) -> Here:
    """A page with a folder of crops."""
    return start_here(hostile_folder, model=shipped)


@pytest.fixture(scope="session")
def drawn_page(serve: Callable[..., Served]) -> Served:
    """The page as it opens when nothing is given; shared, so no test may stop it."""
    return serve()


@pytest.fixture(scope="session")
def mine(hostile_folder: Path, shipped: PromptedCLIP) -> Opened:
    return encode_crops(hostile_folder, shipped, progress=False)


@pytest.fixture
def indexed(model: PromptedCLIP, tmp_path: Path, hostile_folder: Path) -> Opened:
    gallery = Gallery.build(model, hostile_folder, progress=False)
    gallery.save(tmp_path / "index")
    return open_indexed(Gallery.load(tmp_path / "index", model))
