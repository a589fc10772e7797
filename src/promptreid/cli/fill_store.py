"""How `promptreid index` fills a store: this process's share of a folder; and where new features may be kept."""

import argparse
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from promptreid.cli.options import ModelArguments, chosen_model, load_model, note_model, notes_of
from promptreid.cli.output import Output
from promptreid.cli.search_gallery import open_gallery
from promptreid.defaults import is_gallery, is_store
from promptreid.errors import counted, shell_word

if TYPE_CHECKING:
    from promptreid.model.encoding import EncodingOptions
    from promptreid.retrieval.editing import Changes, Prune
    from promptreid.retrieval.stored_gallery import StoredGallery


def shard_of_text(text: str) -> tuple[int, int]:
    """The type of an argument that is a shard: `0/4` to `3/4`."""
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise argparse.ArgumentTypeError(f"is {text}, expected I/N with I from 0 to N - 1, such as 0/4")
    return int(number), int(count)


@dataclass(frozen=True)
class StoreWork:
    """The images to index, the store, and the settings."""

    folder: Path
    store: Path | str
    shard: tuple[int, int] | None
    storage: str | None
    prune: "Prune"
    encoding: "EncodingOptions"


def index_into_store(console: Output, work: StoreWork, model: ModelArguments) -> int:
    """Fill a store with the images of a folder, or with this process's part of them."""
    from promptreid.retrieval.filling import shard_of_environment

    shard = work.shard or shard_of_environment()
    gallery = _open_or_make(console, work, {**model, "device": _own_device(model["device"])})
    changes = gallery.update(
        work.folder,
        shard=shard,
        prune=work.prune,
        **work.encoding,
    )
    images = len(gallery)
    console.record(
        **asdict(changes), store=gallery.url, images=images, dimensions=gallery.store.dimensions, shard=shard
    )
    console.say(*_summary(gallery, changes, shard, images))
    return 0


def _own_device(device: str | None) -> str | None:
    """The GPU of this process among those that torchrun started on this machine."""
    local = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID")
    if device is not None or local is None or not local.isdecimal():
        return device
    import torch

    count = torch.cuda.device_count()
    return f"cuda:{int(local) % count}" if count else None


def _open_or_make(console: Output, work: StoreWork, model: ModelArguments) -> "StoredGallery":
    """The store, which is made if there is none; another process may be making it too."""
    from promptreid.errors import StoreError
    from promptreid.retrieval.lance_connection import Place
    from promptreid.retrieval.lance_store import LanceStore, has_store
    from promptreid.retrieval.stored_gallery import StoredGallery

    if has_store(Place.of(work.store)):
        if work.storage is not None and work.storage != LanceStore.open(work.store).header["storage"]:
            raise StoreError(f"{work.store} exists already and keeps its storage; leave --storage out")
        return _opened(work, model)
    if isinstance(work.store, Path):
        check_own_folder("--store", work.store, work.folder)
    choice = chosen_model(model)
    note_model(console, choice, work.folder)
    encoder = load_model(choice, device=model["device"])
    notes = {"model": notes_of(choice, encoder)}
    storage = "float16" if work.storage == "float16" else "float32"
    try:
        return StoredGallery.create(work.store, encoder, storage=storage, notes=notes)
    except FileExistsError:
        return _opened(work, model)


def check_own_folder(option: str, place: Path, images: Path) -> None:
    """Refuse a new gallery or store in a folder of images, a dataset, a gallery or a store.

    A store is no obstacle to a store: another process has made it in the meantime.

    Args:
        option: `--output` or `--store`.
        place: The folder that it names.
        images: The folder of images that is to be indexed.

    Raises:
        ValueError: `place` holds `images`, other images or a dataset, or is a gallery or, for a gallery, a store.
    """
    from promptreid.data.image_files import IMAGE_ENDINGS
    from promptreid.data.reader import holds_dataset

    found = ""
    if is_store(place) and option == "--output":
        found = "a store"
    elif is_gallery(place):
        found = "a gallery"
    elif images.resolve().is_relative_to(place.resolve()):
        found = "the folder of the images" if images.samefile(place) else f"above the folder of the images, {images}"
    elif place.is_dir() and any(path.suffix.lower() in IMAGE_ENDINGS for path in place.glob("[!.]*")):
        found = "a folder of images"
    elif place.is_dir() and holds_dataset(place):
        found = "a dataset's folder"
    if found:
        noun = "gallery" if option == "--output" else "store"
        raise ValueError(
            f"{option} is {place}, which is {found}; a {noun} needs a folder of its own: promptreid index "
            f"{shell_word(images)} {option} {noun}"
        )


def _opened(work: StoreWork, model: ModelArguments) -> "StoredGallery":
    from promptreid.retrieval.stored_gallery import StoredGallery

    gallery = open_gallery(work.store, model)
    if not isinstance(gallery, StoredGallery):
        raise ValueError(f"{work.store} is an index of one process; give another place, or leave --store out")
    return gallery


def _summary(gallery: "StoredGallery", changes: "Changes", shard: tuple[int, int] | None, images: int) -> list[str]:
    url = shell_word(gallery.url)
    part = "" if shard is None else f"part {shard[0]} of {shard[1]}: "
    counts = f"{part}{changes.added} new, {changes.changed} changed, {changes.unchanged} unchanged"
    counts += f", {changes.removed} removed" if changes.removed else ""
    lines = [f"{counts}; {counted(images, 'image')} in {gallery.url}"]
    if changes.excluded:
        lines.append(
            f"{len(changes.excluded)} images were erased, and stay out; promptreid store restore {url} IMAGE "
            "lets them in"
        )
    return [
        *lines,
        f'promptreid search {url} "a woman in a red coat"',
        f"promptreid store optimize {url}",
    ]
