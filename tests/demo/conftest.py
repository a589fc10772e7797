"""A small gallery on the shipped base, shared by every test of the room, and a page served by its own process."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image

from promptreid import Gallery, PromptConfig, PromptedCLIP, load_clip, load_prompts
from promptreid.demo.answers import Galleries, choose_phrase, split_phrases
from promptreid.demo.comparison import ComparedGallery, make_versions
from promptreid.demo.sources import Crops, draw_crops
from promptreid.towers.tiny import tiny_prompts

COLOURS = {"red": (190, 36, 40), "green": (44, 124, 66), "blue": (40, 74, 170), "yellow": (226, 190, 50)}


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


@pytest.fixture(scope="session")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Crops:
    """Eight crops of four colours from two cameras; persons 1 to 4 are the colours in order."""
    root = tmp_path_factory.mktemp("colours")
    paths = [paint(root / camera / f"{name}.png", rgb) for camera in ("hall", "yard") for name, rgb in COLOURS.items()]
    cameras = tuple(path.parent.name for path in paths)
    captions = {f"A person in {name} clothes.": number for number, name in enumerate(COLOURS, start=1)}
    return Crops("colours", root, tuple(paths), cameras, (1, 2, 3, 4) * 2, captions, "Plain <colours>.")


@pytest.fixture(scope="session")
def compared(model: PromptedCLIP, crops: Crops) -> ComparedGallery:
    return ComparedGallery(crops, make_versions(model), progress=False)


@pytest.fixture(scope="session")
def galleries(compared: ComparedGallery) -> Galleries:
    return Galleries([compared])


@pytest.fixture(scope="session")
def shipped() -> PromptedCLIP:
    """The model that the page opens with."""
    return load_prompts(tiny_prompts()).eval()


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Crops:
    """The people that the page opens with."""
    return draw_crops(tmp_path_factory.mktemp("gallery") / "drawn")


@dataclass(frozen=True)
class Known:
    """A sentence about one of the drawn people, with what the library's own gallery answers to it.

    Attributes:
        sentence: The caption; the shortest whose person the gallery ranks first.
        phrase: What the page looks for in the images.
        labels: What must stand below the first six images.
    """

    sentence: str
    phrase: str
    labels: list[str]


@pytest.fixture(scope="session")
def known(shipped: PromptedCLIP, drawn: Crops) -> Known:
    """Found by `Gallery` alone, so that the page is held against something that knows nothing of it."""
    gallery = Gallery.build(shipped, drawn.paths, progress=False)
    positions = {path: position for position, path in enumerate(drawn.paths)}
    for sentence in sorted(drawn.captions, key=lambda caption: (len(caption), caption)):
        hits = gallery.search(sentence, k=6)
        right = [drawn.person_ids[positions[hit.path]] == drawn.captions[sentence] for hit in hits]
        phrase = choose_phrase(split_phrases(sentence))
        if right[0] and phrase:
            marks = [" ✓" if yes else "" for yes in right]
            labels = [
                f"{rank} · {hit.score:.2f}{mark}\n{drawn.cameras[positions[hit.path]]}"
                for rank, (hit, mark) in enumerate(zip(hits, marks, strict=True), start=1)
            ]
            return Known(sentence, phrase, labels)
    raise AssertionError("the shipped model ranks the right person first for none of the sentences")


class Served:
    """A page in a process of its own."""

    def __init__(self, scratch: Path, *arguments: str) -> None:
        code = "import sys; from promptreid.demo.app import launch; launch(*sys.argv[1:])"
        self.scratch = scratch
        self._errors = (scratch.parent / f"{scratch.name}.log").open("w", encoding="utf-8")
        environment = {**os.environ, "TMPDIR": str(scratch), "GRADIO_ALLOWED_PATHS": "/", "GRADIO_SHARE": "True"}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code, *arguments],
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

    @property
    def errors(self) -> str:
        """What the process wrote to standard error."""
        return Path(self._errors.name).read_text(encoding="utf-8")


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
    """Serve a page with these arguments until the tests end."""
    pytest.importorskip("gradio")
    pages: list[Served] = []

    def serve_one(*arguments: str) -> Served:
        pages.append(Served(tmp_path_factory.mktemp("scratch"), *arguments))
        return pages[-1]

    yield serve_one
    for page in pages:
        page.stop()


@pytest.fixture(scope="session")
def folder_page(serve: Callable[..., Served], hostile_folder: Path) -> Served:
    """A page with a folder of crops beside the drawn gallery; shared, so no test may stop it."""
    return serve(str(hostile_folder))


@pytest.fixture(scope="session")
def drawn_page(serve: Callable[..., Served]) -> Served:
    """The page as it opens when nothing is given; shared, so no test may stop it."""
    return serve()
