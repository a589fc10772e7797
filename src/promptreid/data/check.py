"""Finds everything that is wrong with a dataset, before training does."""

from collections.abc import Iterator
from pathlib import Path

from promptreid.data.annotation import Annotation, structural_problems
from promptreid.data.captions import Tokenizer, caption_lengths
from promptreid.data.images import ImageFolder, Inspection, inspect_images
from promptreid.data.layouts import Layout
from promptreid.data.problems import CheckReport, Problem, in_order
from promptreid.data.reader import read_dataset
from promptreid.data.records import ImageRecord, count_line, split_counts


def check_dataset(
    root: str | Path,
    *,
    layout: str | Layout | None = None,
    images: bool = True,
    tokenizer: Tokenizer | None = None,
    num_threads: int | None = None,
    progress: bool = True,
) -> CheckReport:
    """Check a dataset: its annotation, its captions and every image.

    Found are malformed records, images that are missing, unreadable, truncated, of zero bytes or absurdly large, paths
    that leave the image folder (`..`, absolute, over a symbolic link), duplicate records, copies of an image under
    another person or split, persons in two splits, no records or a single person to train on, captions that are empty,
    not text, or longer than the context, and counts that are not the published ones.

    Args:
        root: The folder of CUHK-PEDES, ICFG-PEDES, RSTPReid or your own data, or its parent.
        layout: As for `load_dataset`.
        images: Open every image; if false, only look whether it is there.
        tokenizer: Counts captions that are longer than its context, such as `model.tokenizer`.
        num_threads: Threads that open images; `None` for one a core.
        progress: Show progress bars.

    Returns:
        The report, with every problem.

    Raises:
        DatasetError: There is nothing to check: no folder, no annotation, or one that is not JSON or CSV at all.
        ValueError: The layout is unknown.

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
    present = _present_images(annotation) if images else []
    inspections = inspect_images([record.path for _, record in present], num_threads=num_threads, progress=progress)
    problems += _untrainable(annotation)
    problems += _image_problems(annotation, present, inspections)
    problems += _copied_images(annotation, present, inspections)
    longest, context = None, None
    captions = [caption for record in annotation.records for caption in record.captions]
    if tokenizer is not None:
        lengths, context = caption_lengths(captions, tokenizer)
        longest = max(lengths, default=0)
        problems += _long_captions(annotation, lengths, context)
    return CheckReport(
        name=annotation.name,
        root=annotation.root,
        annotation=annotation.path,
        summary=count_line(annotation.name, split_counts(annotation.records), annotation.published),
        problems=in_order(problems),
        num_records=annotation.num_entries,
        num_captions=len(captions),
        num_images_opened=len(inspections),
        longest_caption=longest,
        context_length=context,
    )


def _untrainable(annotation: Annotation) -> Iterator[Problem]:
    """What can be loaded, since it can be evaluated or shown, but not be trained on."""
    counts = split_counts(annotation.records)
    for split in ("train", "test"):
        if split not in counts and split not in annotation.required:
            yield Problem("split", f'{annotation.path}: no record has split "{split}", which training needs')
    if "train" in counts and counts["train"].persons < 2:
        what = "the train split has 1 person; training needs at least 2, to tell them apart"
        yield Problem("split", f"{annotation.path}: {what}")


def _present_images(annotation: Annotation) -> list[tuple[int, ImageRecord]]:
    """Each image once, with the position of its first record."""
    folder = ImageFolder(annotation.images)
    first: dict[Path, tuple[int, ImageRecord]] = {}
    for position, record in annotation.located_records():
        first.setdefault(record.path, (position, record))
    return [found for found in first.values() if folder.locate(annotation.relative(found[1])) == "present"]


def _image_problems(
    annotation: Annotation, present: list[tuple[int, ImageRecord]], inspections: list[Inspection]
) -> Iterator[Problem]:
    for (position, record), inspection in zip(present, inspections, strict=True):
        path = str(annotation.relative(record))
        for problem in inspection.problems:
            yield annotation.problem(problem.kind, f"image {path!r} {problem.message}", position, path)


def _copied_images(
    annotation: Annotation, present: list[tuple[int, ImageRecord]], inspections: list[Inspection]
) -> Iterator[Problem]:
    first: dict[bytes, tuple[int, ImageRecord]] = {}
    for (position, record), inspection in zip(present, inspections, strict=True):
        if any(problem.kind in ("empty file", "unreadable") for problem in inspection.problems):
            continue
        before, earlier = first.setdefault(inspection.digest, (position, record))
        if (earlier.person_id, earlier.split) != (record.person_id, record.split):
            path = str(annotation.relative(record))
            what = (
                f"image {path!r} (person {record.person_id}, {record.split}) is the same image as that of "
                f"{annotation.position_name} {before} (person {earlier.person_id}, {earlier.split})"
            )
            yield annotation.problem("same picture", what, position, path)


def _long_captions(annotation: Annotation, lengths: list[int], context: int) -> Iterator[Problem]:
    length = iter(lengths)
    for position, record in annotation.located_records():
        for index in range(len(record.captions)):
            tokens = next(length)
            if tokens > context:
                what = f"caption {index} has {tokens} tokens, the context {context}"
                yield annotation.problem("long caption", what, position, str(annotation.relative(record)))
