"""Finds everything that is wrong with a dataset, before training does."""

from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import NamedTuple

from promptreid.data.annotation import Annotation, in_two_splits, structural_problems
from promptreid.data.captions import Tokenizer, caption_lengths
from promptreid.data.image_files import ImageLookup
from promptreid.data.images import Inspection, check_on_bad, inspect_images
from promptreid.data.layouts import Layout
from promptreid.data.problems import LEFT_OUT, CheckReport, Problem, in_order
from promptreid.data.reader import chosen_records, read_dataset, split_shares
from promptreid.data.records import ImageRecord, ReIDSplit, SplitCounts, count_line, data_title, split_counts
from promptreid.defaults import OnBad


def check_dataset(
    root: str | Path,
    *,
    layout: str | Layout | None = None,
    images: bool = True,
    image_dir: str | Path | None = None,
    table: str | Path | None = None,
    tokenizer: Tokenizer | None = None,
    num_threads: int | None = None,
    progress: bool = True,
    on_bad: OnBad = "strict",
    split: str | None = None,
    split_seed: int = 0,
) -> CheckReport:
    """Check a dataset: its annotation, its captions and every image.

    Found are malformed records, images that are missing, unreadable, truncated, of zero bytes or absurdly large, paths
    that leave the image folder (`..`, absolute, over a symbolic link), duplicate records, copies of an image under
    another person or split, persons in two splits, no records or a single person to train on, captions that are empty,
    not text, or longer than the context, and counts that are not the published ones.

    Args:
        root: The folder of your own data, or that of CUHK-PEDES, ICFG-PEDES or RSTPReid or its parent.
        layout: As for `load_dataset`.
        images: Open every image; if false, only look whether it is there.
        image_dir: The folder that the images' paths begin at; `None` for `imgs/` beside the annotation.
        table: As for `load_dataset`.
        tokenizer: Counts captions that are longer than its context, such as `model.tokenizer`.
        num_threads: Threads that open images; `None` for one a core.
        progress: Show progress bars.
        on_bad: `"skip"` skips the records that have errors themselves, images that cannot be read included,
            lists them, and checks the rest.
        split: As for `load_dataset`: the persons are divided before they are checked.
        split_seed: Of that drawing.

    Returns:
        The report, with every problem.

    Raises:
        DatasetError: There is nothing to check: no folder, no annotation, or one that is not JSON or CSV at all.
        ValueError: The layout or `on_bad` is unknown, the layout has no `image_dir` or `table`, or `split` is not three
            numbers that sum to 100.

    Example:
        >>> import tempfile
        >>> from promptreid.synthetic import write_generated
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     root = write_generated(f"{folder}/drawn", num_identities=(2, 1, 1), progress=False)
        ...     report = check_dataset(root, progress=False)
        >>> print(report.lines()[-1])
        ready for training: 0 errors, 0 warnings (16 images opened)
    """
    check_on_bad(on_bad)
    shares = None if split is None else split_shares(split)
    annotation = read_dataset(root, layout=layout, image_dir=image_dir, table=table, read_splits=shares is None)
    annotation, left_out = chosen_records(annotation, on_bad=on_bad, shares=shares, split_seed=split_seed)
    opened = _open_images(annotation, num_threads=num_threads, progress=progress) if images else []
    num_opened = len(opened)
    problems = [found for each in opened for found in _image_problems(annotation, each)]
    if on_bad == "skip":
        bad = [problem for problem in problems if problem.kind in LEFT_OUT]
        paths = {problem.path for problem in bad}
        annotation = annotation.without(_positions_of(annotation, paths))
        opened = [each for each in opened if str(annotation.relative(each.record)) not in paths]
        left_out += bad
        problems = [problem for problem in problems if problem.kind not in LEFT_OUT]
    problems += [*annotation.problems, *structural_problems(annotation), *_untrainable(annotation)]
    problems += _copied_images(annotation, opened)
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
        summary=count_line(data_title(annotation.name, annotation.root), _counts_of(annotation), annotation.published),
        problems=in_order(problems),
        num_records=annotation.num_entries,
        num_captions=len(captions),
        num_images_opened=num_opened,
        longest_caption=longest,
        context_length=context,
        left_out=in_order(left_out),
    )


def _positions_of(annotation: Annotation, paths: Set[str | None]) -> set[int]:
    """Where the records of images are, by the images' paths below the image folder."""
    return {position for position, record in annotation.located_records() if str(annotation.relative(record)) in paths}


def _counts_of(annotation: Annotation) -> dict[str, SplitCounts]:
    """Counts of every split that is not empty, and of the records that name none."""
    unsplit = ReIDSplit("without split", [record for record in annotation.records if not record.split])
    return split_counts(annotation.records) | ({unsplit.name: unsplit.counts} if len(unsplit) else {})


def _untrainable(annotation: Annotation) -> Iterator[Problem]:
    """Find what can be loaded, evaluated and shown, but not trained on."""
    if not annotation.splits_known():
        return
    counts = split_counts(annotation.records)
    for split in ("train", "test"):
        if split not in counts and split not in annotation.required:
            yield Problem("split", f'{annotation.path}: no record has split "{split}", which training needs')
    if "train" in counts and counts["train"].persons < 2:
        what = "the train split has 1 person; training needs at least 2, to tell them apart"
        yield Problem("split", f"{annotation.path}: {what}")


class _Opened(NamedTuple):
    """An image that was opened: its first record, where that is, and what was found."""

    position: int
    record: ImageRecord
    inspection: Inspection


def _open_images(annotation: Annotation, *, num_threads: int | None, progress: bool) -> list[_Opened]:
    """Open each image that is there once."""
    folder = ImageLookup(annotation.images)
    first: dict[Path, tuple[int, ImageRecord]] = {}
    for position, record in annotation.located_records():
        first.setdefault(record.path, (position, record))
    present = [found for found in first.values() if folder.locate(annotation.relative(found[1])) == "present"]
    inspections = inspect_images([record.path for _, record in present], num_threads=num_threads, progress=progress)
    return [_Opened(*found, inspection) for found, inspection in zip(present, inspections, strict=True)]


def _image_problems(annotation: Annotation, opened: _Opened) -> Iterator[Problem]:
    path = str(annotation.relative(opened.record))
    for problem in opened.inspection.problems:
        yield annotation.problem(problem.kind, f"image {path!r} {problem.message}", opened.position, path)


def _copied_images(annotation: Annotation, opened: Sequence[_Opened]) -> Iterator[Problem]:
    first: dict[bytes, _Opened] = {}
    for each in opened:
        if any(problem.kind in ("empty file", "unreadable") for problem in each.inspection.problems):
            continue
        before = first.setdefault(each.inspection.digest, each)
        earlier, record = before.record, each.record
        if earlier.person_id != record.person_id or in_two_splits(earlier, record):
            path = str(annotation.relative(record))
            what = (
                f"image {path!r} ({_owner(record)}) is the same image as that of {annotation.near(before.position)} "
                f"({_owner(earlier)})"
            )
            yield annotation.problem("same picture", what, each.position, path)


def _owner(record: ImageRecord) -> str:
    return f"person {record.person_id}{record.split and f', {record.split}'}"


def _long_captions(annotation: Annotation, lengths: list[int], context: int) -> Iterator[Problem]:
    length = iter(lengths)
    for position, record in annotation.located_records():
        for index in range(len(record.captions)):
            tokens = next(length)
            if tokens > context:
                what = f"caption {index} has {tokens} tokens, the context {context}"
                yield annotation.problem("long caption", what, position, str(annotation.relative(record)))
