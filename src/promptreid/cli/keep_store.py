"""`promptreid store`: keeps a store in order and erases people from it; and how `promptreid index` fills one."""

import argparse
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptreid.cli.options import (
    ModelArguments,
    chosen_model,
    gallery_place,
    load_model,
    note_model,
    refuse_unused,
)
from promptreid.cli.output import Output
from promptreid.cli.search_gallery import add_where_argument, as_where, open_gallery
from promptreid.errors import printable, shell_word

if TYPE_CHECKING:
    from promptreid.retrieval.editing import Changes, Prune
    from promptreid.retrieval.lance_upkeep import StoreInfo
    from promptreid.retrieval.stored_gallery import StoredGallery

DESCRIPTION = """Maintain a store of features, which `promptreid index --store` fills: `info` shows it; `optimize`
joins its files and builds its index; run it in one process, from time to time; `erase` removes images and every byte of
them, and proves it; `log` writes the audit log, if one is kept. Exit code 1 if it cannot be proven that nothing is
left."""
NEEDS = [(None, "lancedb", "store")]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.add_argument("action", choices=("info", "optimize", "erase", "restore", "log"), help="what to do")
    parser.add_argument(
        "store", type=gallery_place, metavar="URL", help="a folder, s3://BUCKET/NAME or gs://BUCKET/NAME"
    )
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="images to erase, or to allow again: paths")
    add_where_argument(parser, "erase all images with this instead, as in promptreid search")
    parser.add_argument(
        "--alone",
        action="store_true",
        help="no other process is writing, so files of killed writers, which may hold the images, are erased too",
    )


def run(
    console: Output, /, *, action: str, store: Path | str, images: list[str], where: list[tuple[str, str]], alone: bool
) -> int:
    """Run the chosen action."""
    if action != "erase":
        refuse_unused({"where": where, "alone": alone}, "it goes with promptreid store erase")
    if (action in ("erase", "restore")) != bool(images or where) or (images and where):
        raise ValueError(f"give promptreid store {action} {_wanted(action)}")
    from promptreid.retrieval.stored_gallery import StoredGallery

    gallery = StoredGallery.load(store)
    if action == "erase":
        return _erase(console, gallery, images, as_where(where, None) or None, alone)
    if action == "restore":
        console.record(restored=gallery.restore(images))
        console.say(f"the next promptreid index FOLDER --store {shell_word(store)} takes them in again")
        return 0
    if action == "log":
        entries = gallery.audit_log()
        console.record(log=entries)
        console.say(*map(json.dumps, entries))
        return 0
    info = gallery.info() if action == "info" else gallery.optimize()
    console.record(**asdict(info))
    console.say(*_lines(info))
    return 0


def _wanted(action: str) -> str:
    if action == "erase":
        return "images, or --where KEY=VALUE"
    return "images" if action == "restore" else "a store and nothing else"


def _erase(
    console: Output, gallery: "StoredGallery", images: list[str], where: dict[str, list[Any]] | None, alone: bool
) -> int:
    done = gallery.erase(images or None, where=where, alone=alone)
    console.record(**asdict(done))
    console.say(f"erased {done.images} images; {len(gallery)} are left in {gallery.url}")
    if done.proven:
        where_looked = f" and {done.searched_bytes:,} bytes of files" if done.searched_bytes else ""
        console.say(f"nothing is left of them: looked through the table's description{where_looked}")
        return 0
    console.say("not proven that nothing is left of them:", *(f"  {one}" for one in done.left))
    return 1


def _lines(info: "StoreInfo") -> list[str]:
    """The state of a store, for people, with what to do about it."""
    lines = [
        f"{info.images:,} images of {info.dimensions} dimensions in {info.storage}, encoded by {info.model}",
        f"{info.num_bytes / 1e6:,.1f} MB in {info.fragments} files of features, {info.versions} versions",
        f"metadata: {', '.join(map(printable, info.keys)) or 'none'}",
        f"index: {info.indexed:,} images in {info.partitions} lists"
        if info.indexed
        else "index: none, all are compared",
    ]
    if info.deleted:
        lines.append(f"{info.deleted:,} removed images are in files still; promptreid store optimize {info.url}")
    return lines


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
    batch_size: int
    num_threads: int


def index_into_store(console: Output, work: StoreWork, model: ModelArguments) -> int:
    """Fill a store with the images of a folder, or with this process's part of them."""
    from promptreid.retrieval.filling import shard_of_environment

    shard = work.shard or shard_of_environment()
    gallery = _open_or_make(console, work, {**model, "device": _own_device(model["device"])})
    changes = gallery.update(
        work.folder,
        shard=shard,
        prune=work.prune,
        batch_size=work.batch_size,
        num_threads=work.num_threads,
        progress=console.progress,
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
    from promptreid.retrieval.lance_engine import Place
    from promptreid.retrieval.lance_store import LanceStore, has_store
    from promptreid.retrieval.stored_gallery import StoredGallery

    if has_store(Place.of(work.store)):
        if work.storage is not None and work.storage != LanceStore.open(work.store).header["storage"]:
            raise StoreError(f"{work.store} exists already and keeps its storage; leave --storage out")
        return _opened(work, model)
    choice = chosen_model(model)
    note_model(console, choice, work.folder)
    encoder = load_model(choice, device=model["device"])
    # The commit, so that a later push to the repository does not make the store unusable.
    notes = {"model": {**choice.as_dict(), "revision": encoder.commit or choice.revision}}
    storage = "float16" if work.storage == "float16" else "float32"
    try:
        return StoredGallery.create(work.store, encoder, storage=storage, notes=notes)
    except FileExistsError:
        return _opened(work, model)


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
    lines = [f"{counts}; {images} images in {gallery.url}"]
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
