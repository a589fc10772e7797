"""`promptreid index`: makes or updates a gallery of a folder of crops."""

import argparse
import os
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from promptreid.cli.argument_types import (
    file_to_write,
    folder_to_read,
    folder_to_write,
    gallery_place,
    whole,
)
from promptreid.cli.fill_store import StoreWork, check_own_folder, index_into_store, shard_of_text
from promptreid.cli.options import (
    ModelArguments,
    add_model_arguments,
    check_device,
    chosen_model,
    load_model,
    note_model,
    notes_of,
    refuse_unused,
)
from promptreid.cli.output import Output
from promptreid.cli.search_gallery import open_gallery
from promptreid.defaults import BATCH_SIZE, NUM_THREADS, is_gallery, is_store
from promptreid.errors import DatasetError, counted, printable, shell_word
from promptreid.towers.tiny import TINY_ADAPTED
from promptreid.values import digits_as_integer

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from promptreid.model.encoding import EncodingOptions
    from promptreid.retrieval.editing import Changes
    from promptreid.retrieval.gallery import Gallery

DESCRIPTION = """Encode every image in a folder and its sub-folders. Run again, it encodes only images that are new or
have changed, with the model that made the gallery. Images that cannot be read are listed and skipped. A gallery can
count as biometric data: its files are readable only by you."""

NEEDS: list[tuple[str, ...]] = [("export", "pyarrow", "parquet", ".parquet"), ("store", "lancedb", "store")]

_SHOWN = 10
_GROWN = 0.1  # by this share a gallery may differ from the one that its threshold was measured in
_OUTPUT = Path("gallery")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.add_argument("folder", type=folder_to_read, nargs="?", help="images, one person in each")
    parser.add_argument(
        "--output", type=folder_to_write, default=_OUTPUT, help="the gallery's folder; default %(default)s"
    )
    parser.add_argument(
        "--store",
        type=gallery_place,
        metavar="URL",
        help="instead, a store that many processes fill at a time: a folder, s3://BUCKET/NAME or gs://BUCKET/NAME",
    )
    parser.add_argument(
        "--shard",
        type=shard_of_text,
        metavar="I/N",
        help="into a store, only the I-th of N parts of the images, from 0; default: RANK and WORLD_SIZE, as torchrun "
        "sets them, or what srun sets, else all",
    )
    add_model_arguments(parser, default=f"the one that made the index, or {TINY_ADAPTED} for a new one")
    parser.add_argument(
        "--storage", choices=("float32", "float16"), help="float16 takes half the space; default float32"
    )
    parser.add_argument("--prune", action="store_true", help="remove images that are no longer in the folder")
    parser.add_argument(
        "--prune-anyway", action="store_true", help="the same, even if that is a large share or folders cannot be read"
    )
    parser.add_argument(
        "--remove",
        nargs="+",
        metavar="IMAGE",
        help="remove these images from the gallery permanently: paths, numbers, or patterns such as 'crops/cam_a/*'",
    )
    parser.add_argument(
        "--restore",
        nargs="+",
        metavar="IMAGE",
        help="allow removed images to be indexed again, by path or pattern",
    )
    parser.add_argument("--compact", action="store_true", help="join the files that many updates have left")
    parser.add_argument(
        "--export",
        type=file_to_write(".parquet", ".npz"),
        metavar="FILE",
        help="write features to a .parquet or .npz file too",
    )
    # Without a default, to tell an option that is given and would do nothing.
    parser.add_argument("--batch-size", type=whole(1), help=f"images at a time; default {BATCH_SIZE}")
    parser.add_argument("--threads", type=whole(1), help=f"threads that read images ahead; default {NUM_THREADS}")


def run(
    console: Output,
    /,
    *,
    folder: Path | None,
    output: Path,
    store: Path | str | None,
    shard: tuple[int, int] | None,
    remove: list[str] | None,
    restore: list[str] | None,
    export: Path | None,
    compact: bool,
    prune: bool,
    prune_anyway: bool,
    storage: str | None,
    batch_size: int | None,
    threads: int | None,
    **model: "Unpack[ModelArguments]",
) -> int:
    """Make or update the index."""
    if folder is None and not (remove or restore or export or compact):
        raise ValueError("give the folder of images to index: promptreid index FOLDER")
    if folder is not None and (remove or restore):
        raise ValueError("give a folder to index or images to --remove or --restore, not both at once")
    if store is not None:
        other = {"remove": remove, "restore": restore, "export": export, "compact": compact}
        other |= {"output": output != _OUTPUT}
        refuse_unused(other, "it goes with a folder's index; for a store see promptreid store --help")
        if folder is None:
            raise ValueError(f"give the folder of images to index: promptreid index FOLDER --store {store}")
        pruned = "anyway" if prune_anyway else prune
        work = StoreWork(folder.resolve(), store, shard, storage, pruned, _encoding(console, batch_size, threads))
        return index_into_store(console, work, model)
    refuse_unused({"shard": shard}, "it goes with --store; a folder's index is made by one process")
    if folder is None:
        unused: dict[str, Any] = {"prune": prune, "prune_anyway": prune_anyway, "storage": storage, **model}
        unused |= {"batch_size": batch_size, "threads": threads}
        refuse_unused(unused, "give it with a folder of images to index")
        gallery = _there(output)
        _edit(console, gallery, remove or [], restore or [])
    else:
        gallery, is_new = _open_or_make(console, folder, output, storage, model)
        _note_others(console, gallery, folder, is_pruned=prune or prune_anyway)
        changes = gallery.update(
            folder.resolve(),
            prune="anyway" if prune_anyway else prune,
            **_encoding(console, batch_size, threads),
        )
        console.record(**asdict(changes))
        if len(gallery) == 0 and changes.unreadable and not (changes.excluded or changes.unchanged or changes.removed):
            raise DatasetError(
                f"none of the images in {folder.resolve()} can be read; the warning above says of the first "
                "ten why; mend them, or give another folder"
            )
        console.say(*_summary(gallery, changes, is_new=is_new))
        console.say(*_left_out(changes, f"promptreid index {shell_word(folder)} --output {shell_word(output)}", output))
        _calibrate(console, gallery)
    if compact:
        gallery.compact()
        console.say(f"{output} is compacted")
    if export is not None:
        console.say(f"features are in {gallery.export(export)}")
    console.record(index=str(output), images=len(gallery), dimensions=gallery.features.shape[1])
    return 0


def _encoding(console: Output, batch_size: int | None, threads: int | None) -> "EncodingOptions":
    return {
        "batch_size": batch_size or BATCH_SIZE,
        "num_threads": threads or NUM_THREADS,
        "progress": console.progress,
    }


def _there(output: Path) -> "Gallery":
    """The gallery in `output`, without its model."""
    if is_store(output) and not is_gallery(output):
        raise ValueError(
            f"--output is {output}, which is a store; promptreid store erase {shell_word(output)} IMAGE removes images "
            "from it, and promptreid store --help says what else can be done"
        )
    from promptreid.retrieval.gallery import Gallery

    return Gallery.load(output)


def _note_others(console: Output, gallery: "Gallery", folder: Path, *, is_pruned: bool) -> None:
    """Say that a gallery holds images of another folder, before the first ones of this folder come beside them."""
    inside = f"{folder.resolve()}{os.sep}"
    held = [os.path.abspath(path) for path in gallery.paths]
    if is_pruned or not held or any(path.startswith(inside) for path in held):
        return
    try:
        where = os.path.commonpath([os.path.dirname(path) for path in held])
    except ValueError:  # on several drives of Windows
        where = os.path.dirname(held[0])
    console.note(
        f"note: {gallery.directory} holds {counted(len(held), 'image')} of {where} already, and those of {folder} are "
        "added to them; for a gallery of its own, give another --output"
    )


def _calibrate(console: Output, gallery: "Gallery") -> None:
    """Choose a threshold without labels, unless one with labels, or of about as many images, is there."""
    chosen, images = gallery.calibration, len(gallery)
    measured = chosen is not None and (
        chosen.hit_rate is not None or abs(images - chosen.gallery_size) <= _GROWN * chosen.gallery_size
    )
    if images and not measured:
        gallery.calibrate(progress=console.progress)


def _edit(console: Output, gallery: "Gallery", remove: list[str], restore: list[str]) -> None:
    """Remove images from the gallery, and let removed ones be indexed again."""
    removed, restored = gallery.edit(remove=[_number_or_path(name) for name in remove], restore=restore)
    if remove:
        console.say(f"removed {counted(len(removed), 'image')}:", *_first(tuple(removed)))
        console.say(f"{_are(len(gallery))} left in {gallery.directory}")
        console.record(removed=len(removed), removed_images=removed)
    if restore:
        command = f"promptreid index FOLDER --output {shell_word(gallery.directory)}"
        console.say(f"{_are(restored)} indexed again by the next {command}")
        console.record(restored=restored)


def _number_or_path(text: str) -> int | str:
    """An image as it is named on the command line: its number, or a path or pattern."""
    number = digits_as_integer(text)
    return text if number is None or text.startswith("-") else number


def _open_or_make(
    console: Output, folder: Path, output: Path, storage: str | None, model: ModelArguments
) -> tuple["Gallery", bool]:
    """The gallery in `output`, an empty one if there is none, and whether it is new.

    An empty one, as a run leaves it that found no image it could read, binds nobody to its model or storage, unless
    another process is filling it just now.
    """
    if not is_gallery(output):
        _check_holds_files(folder)  # at once, before torch is imported
        check_own_folder("--output", output, folder)
    import torch

    from promptreid.retrieval.editing import find_images
    from promptreid.retrieval.gallery import Gallery
    from promptreid.retrieval.gallery_folder import entry_on_disk, is_free

    chosen = storage is not None or model["model"] is not None
    if is_gallery(output) and not (chosen and is_free(output)):
        kept = entry_on_disk(output, "storage")  # which galleries of 0.1.0 do not name
        if storage not in (None, kept):
            named = f", {kept}" if kept else ""
            raise ValueError(
                f"{output} exists already and keeps its storage{named}; leave --storage out, or give --output for a "
                "new index"
            )
        return cast("Gallery", open_gallery(output, model)), False
    choice = chosen_model(model)
    device = check_device(model["device"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the update says what is left out
        find_images(folder.resolve())  # nothing is loaded or written where there is nothing to index
    note_model(console, choice, folder.resolve())
    encoder = load_model(choice, device=device)
    gallery = Gallery(encoder, [], torch.empty(0, encoder.embed_dim, dtype=getattr(torch, storage or "float32")))
    gallery.notes["model"] = notes_of(choice, encoder)
    try:
        gallery.save(output, exist_ok=False)
    except FileExistsError:  # another process has made it in the meantime
        return cast("Gallery", open_gallery(output, model)), False
    return gallery, True


def _check_holds_files(folder: Path) -> None:
    """Refuse a folder without any file in it or below.

    Raises:
        DatasetError: There is none, or none that can be seen.
    """
    closed: list[OSError] = []
    if any(names for _, _, names in os.walk(folder, onerror=closed.append)):
        return
    if closed:
        raise DatasetError(f"the folder {closed[0].filename} cannot be read ({closed[0].strerror}); may you read it?")
    raise DatasetError(f"{folder} has no images, nor any other file, in it; give the folder that holds the crops")


def _left_out(changes: "Changes", command: str, output: Path) -> list[str]:
    """Images that the gallery lacks, or should perhaps not have, with the command that changes it."""
    lines: list[str] = []
    if changes.gone:
        lines += [
            f"{_are(len(changes.gone), 'indexed image')} no longer on the disk; {command} --prune removes them:",
            *_first(changes.gone),
        ]
    if changes.excluded:
        restore = f"promptreid index --output {shell_word(output)} --restore IMAGE"
        removed = _are(len(changes.excluded), "image")
        lines += [f"{removed} left out, as removed earlier; {restore} lets them in:", *_first(changes.excluded)]
    return lines


def _first(paths: tuple[str, ...]) -> list[str]:
    more = [f"  and {len(paths) - _SHOWN} more; --json names all"] if len(paths) > _SHOWN else []
    return [*(f"  {printable(path)}" for path in paths[:_SHOWN]), *more]


def _summary(gallery: "Gallery", changes: "Changes", *, is_new: bool) -> list[str]:
    if not is_new:
        counts = f"{changes.added} new, {changes.changed} changed, {changes.unchanged} unchanged"
        return [f"{counts}, {changes.removed} removed; {counted(len(gallery), 'image')} in {gallery.directory}"]
    return [
        f"{_are(len(gallery))} indexed in {gallery.directory}; now ask:",
        f'promptreid search {shell_word(gallery.directory)} "a woman in a red coat" --picture found.png',
    ]


def _are(number: int, noun: str = "image") -> str:
    return f"{counted(number, noun)} {'is' if number == 1 else 'are'}"
