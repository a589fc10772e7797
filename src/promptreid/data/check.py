"""Finds everything that is wrong with a data set, before training does."""

from collections.abc import Callable, Iterator
from pathlib import Path

from torch import Tensor

from promptreid.data.annotation import Annotation
from promptreid.data.captions import caption_lengths
from promptreid.data.faults import CheckReport, Problem, in_order
from promptreid.data.images import ImageFolder, Inspection, inspect_images
from promptreid.data.reader import read_dataset, split_counts, structural_problems
from promptreid.data.records import ImageRecord, count_line

Tokenizer = Callable[..., Tensor]


def check_dataset(
    root: str | Path,
    *,
    layout: str | None = None,
    images: bool = True,
    tokenizer: Tokenizer | None = None,
    num_threads: int | None = None,
    progress: bool = True,
) -> CheckReport:
    """Check a data set: its annotation, its captions and every image.

    Found are malformed records, images that are missing, unreadable, truncated, of zero bytes or absurdly large,
    paths that leave the image folder (`..`, absolute, over a symbolic link), duplicate records, copies of a picture
    under another person or split, persons in two splits, captions that are empty, not text, or longer than the
    context, and counts that are not the published ones.

    Args:
        root: The folder of CUHK-PEDES, ICFG-PEDES, RSTPReid or your own data, or its parent.
        layout: One of `loading.LAYOUTS`; `None` to find out.
        images: Open every image; without, only whether it is there is seen.
        tokenizer: Counts captions that are longer than its context, such as `model.tokenizer`.
        num_threads: Threads that open images; `None` for one a core.
        progress: Show progress bars.

    Returns:
        The report, with every problem.

    Raises:
        DatasetError: There is nothing to check: no folder, no annotation, or one that is no JSON or CSV at all.
        ValueError: The layout is not one of `LAYOUTS`.

    Example:
        >>> import tempfile
        >>> from promptreid.synthetic import write_generated
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     root = write_generated(f"{folder}/drawn", num_identities=(2, 1, 1), progress=False)
        ...     report = check_dataset(root, progress=False)
        >>> print(report.lines()[-1])
        ready for training: 0 errors, 0 warnings (16 images opened)
    """
    annotation = read_dataset(root, layout=layout)
    problems = [*annotation.problems, *structural_problems(annotation)]
    opened = 0
    if images:
        present = _present_images(annotation)
        inspections = inspect_images([record.path for _, record in present], num_threads=num_threads, progress=progress)
        opened = len(inspections)
        problems += _picture_problems(annotation, present, inspections)
        problems += _copied_pictures(annotation, present, inspections)
    longest, context = None, None
    if tokenizer is not None:
        lengths, context = caption_lengths(_captions(annotation), tokenizer)
        longest = max(lengths, default=0)
        problems += _long_captions(annotation, lengths, context)
    return CheckReport(
        name=annotation.name,
        root=annotation.root,
        annotation=annotation.path,
        summary=count_line(annotation.name, split_counts(annotation.records), annotation.published),
        problems=in_order(problems),
        num_records=annotation.num_entries,
        num_captions=sum(len(record.captions) for record in annotation.records),
        num_images_opened=opened,
        longest_caption=longest,
        context_length=context,
    )


def _present_images(annotation: Annotation) -> list[tuple[int, ImageRecord]]:
    """Each image once, with the place of its first record."""
    folder = ImageFolder(annotation.images)
    first: dict[Path, tuple[int, ImageRecord]] = {}
    for place, record in zip(annotation.places, annotation.records, strict=True):
        first.setdefault(record.path, (place, record))
    return [found for found in first.values() if folder.place(annotation.relative(found[1])) == "present"]


def _picture_problems(
    annotation: Annotation, present: list[tuple[int, ImageRecord]], inspections: list[Inspection]
) -> Iterator[Problem]:
    for (place, record), inspection in zip(present, inspections, strict=True):
        path = str(annotation.relative(record))
        for fault in inspection.faults:
            message = f"{annotation.where(place)}: image {path!r} {fault.what}"
            yield Problem(fault.kind, message, place, path)


def _copied_pictures(
    annotation: Annotation, present: list[tuple[int, ImageRecord]], inspections: list[Inspection]
) -> Iterator[Problem]:
    first: dict[bytes, tuple[int, ImageRecord]] = {}
    for (place, record), inspection in zip(present, inspections, strict=True):
        if any(fault.kind in ("empty file", "unreadable") for fault in inspection.faults):
            continue
        before, earlier = first.setdefault(inspection.digest, (place, record))
        if (earlier.person_id, earlier.split) != (record.person_id, record.split):
            path = str(annotation.relative(record))
            yield Problem(
                "same picture",
                f"{annotation.where(place)}: image {path!r} (person {record.person_id}, {record.split}) is the very "
                f"picture of {annotation.place_name} {before} (person {earlier.person_id}, {earlier.split})",
                place,
                path,
            )


def _captions(annotation: Annotation) -> list[str]:
    return [caption for record in annotation.records for caption in record.captions]


def _long_captions(annotation: Annotation, lengths: list[int], context: int) -> Iterator[Problem]:
    length = iter(lengths)
    for place, record in zip(annotation.places, annotation.records, strict=True):
        for number in range(len(record.captions)):
            tokens = next(length)
            if tokens > context:
                message = f"{annotation.where(place)}: caption {number} has {tokens} tokens, the context {context}"
                yield Problem("long caption", message, place, str(annotation.relative(record)))
