"""`promptreid store`: keeps a store in order and erases people from it."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptreid.cli.argument_types import gallery_place
from promptreid.cli.conditions import add_where_argument, as_where
from promptreid.cli.options import refuse_unused
from promptreid.cli.output import Output
from promptreid.defaults import is_gallery, is_store
from promptreid.errors import printable, shell_word

if TYPE_CHECKING:
    from promptreid.retrieval.lance_upkeep import StoreInfo
    from promptreid.retrieval.stored_gallery import StoredGallery

DESCRIPTION = """Maintain a store of features, which `promptreid index --store` fills: `info` shows it; `optimize`
joins its files and builds its index; run it in one process, from time to time; `erase` removes images and every byte of
them, and proves it; `log` writes the audit log, if one is kept. Exit code 1 if it cannot be proven that nothing is
left."""
NEEDS = [(None, "lancedb", "store")]

_FOR_A_GALLERY = {
    "info": "promptreid check {gallery} looks at it",
    "optimize": "promptreid index --output {gallery} --compact joins its files",
    "erase": "promptreid index --output {gallery} --remove IMAGE removes images from it",
    "restore": "promptreid index --output {gallery} --restore IMAGE lets images in again",
    "log": "its log, if one is kept, is the file audit.jsonl in it",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.add_argument("action", choices=("info", "optimize", "erase", "restore", "log"), help="what to do")
    parser.add_argument(
        "store", type=gallery_place, metavar="URL", help="a folder, s3://BUCKET/NAME or gs://BUCKET/NAME"
    )
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="images to erase, or to allow again: paths")
    add_where_argument(
        parser,
        "erase all images with this instead, as in promptreid search; of patterns "
        "only a beginning, such as 'folder=roof/*'",
    )
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
    if is_gallery(store) and not is_store(store):
        named = shell_word(store)
        raise ValueError(f"{store} is a gallery, not a store; {_FOR_A_GALLERY[action].format(gallery=named)}")
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
