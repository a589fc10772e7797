"""The records of a dataset: images with captions and identities, in splits."""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property, lru_cache
from hashlib import sha256
from pathlib import Path

from promptreid.defaults import SYNTHETIC_STAMP
from promptreid.errors import DatasetError
from promptreid.files import content_digest, open_file, portable

ANNOTATIONS = "annotations"  # a folder beside the images that holds the annotation for people who tidy up


def is_synthetic(root: Path) -> bool:
    """Whether a folder that holds an annotation is a synthetic copy, which anybody may pass on."""
    return any((folder / SYNTHETIC_STAMP).is_file() for folder in with_parent(root))


def with_parent(folder: Path) -> list[Path]:
    """A folder that holds an annotation, and the dataset's own where that one is `annotations`."""
    return [folder, folder.parent] if folder.name == ANNOTATIONS else [folder]


def data_title(name: str, root: Path) -> str:
    """The dataset name shown to users; says so if the people are synthetic."""
    return f"synthetic people ({name} layout)" if is_synthetic(root) else name


@dataclass(frozen=True)
class SplitCounts:
    """How much there is in a split.

    Attributes:
        persons: Different identities.
        images: Images.
        captions: Sentences over all images.
    """

    persons: int
    images: int
    captions: int


@dataclass(frozen=True)
class PublishedCounts:
    """The counts of a complete copy of a dataset.

    Attributes:
        splits: Counts by split; a split that is not named here is not expected.
        other_copies: Counts by split of copies in circulation that are known to differ.
    """

    splits: Mapping[str, SplitCounts]
    other_copies: Mapping[str, tuple[SplitCounts, ...]]


def count_line(name: str, found: Mapping[str, SplitCounts], published: PublishedCounts | None) -> str:
    """One line: `CUHK-PEDES: train 11,003 persons, 34,054 images, 68,108 of 68,126 captions; …`."""
    parts: list[str] = []
    expected = {} if published is None else published.splits
    for split in dict.fromkeys((*found, *expected)):
        if split not in found:
            parts.append(f"{split} none of {_against(expected[split])}")
        else:
            parts.append(f"{split} {_against(found[split], expected.get(split))}")
    line = f"{name}: {'; '.join(parts) or 'nothing'}"
    if published is None:
        return line
    return f"{line} ({'as published' if dict(found) == dict(expected) else 'not as published'})"


def count_mismatches(found: Mapping[str, SplitCounts], published: PublishedCounts) -> list[str]:
    """A sentence for each split whose counts are not the published ones."""
    sentences: list[str] = []
    for split in dict.fromkeys((*published.splits, *found)):
        expected = published.splits.get(split)
        if split not in found:
            sentences.append(
                f"this copy has no {split} split, but the published dataset has one "
                f"({_against(published.splits[split])})"
            )
        elif expected is None:
            sentences.append(
                f"the published dataset has no {split} split, but this copy has one ({_against(found[split])})"
            )
        elif found[split] != expected:
            known = found[split] in published.other_copies.get(split, ())
            remark = " (a copy with these counts is known to be in circulation)" if known else ""
            sentences.append(f"{split} has {_against(found[split])}, published are {_against(expected)}{remark}")
    return sentences


def _against(found: SplitCounts, expected: SplitCounts | None = None) -> str:
    parts: list[str] = []
    for name in (item.name for item in fields(SplitCounts)):
        number = getattr(found, name)
        wanted = number if expected is None else getattr(expected, name)
        parts.append(f"{number:,} {name}" if number == wanted else f"{number:,} of {wanted:,} {name}")
    return ", ".join(parts)


SPLITS = ("train", "val", "test")


def files_identity(paths: Sequence[str | Path]) -> dict[str, object]:
    """Number and bytes of files, and a digest of their names and contents: a folder may move or be copied again.

    Every file is read, once in a process while its size and time stay: 6 s for the 40,000 crops of CUHK-PEDES. Names
    count from the folder that all are in.
    """
    try:
        root = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
    except ValueError:  # no files, or on several drives of Windows
        root = None
    sizes: list[int] = []
    digest = sha256()
    for path in paths:
        try:
            found = os.stat(path)
            size, content = found.st_size, _content(os.fspath(path), found.st_size, found.st_mtime_ns)
        except OSError:  # one that has gone is another file, too; who reads it says so
            size, content = 0, ""
        sizes.append(size)
        name = portable(os.path.abspath(path) if root is None else os.path.relpath(path, root))
        digest.update(os.fsencode(f"{name!r} {content}\n"))
    return {"files": len(sizes), "bytes": sum(sizes), "content": digest.hexdigest()[:16]}


@lru_cache(maxsize=2**18)
def _content(path: str, size: int, modified_ns: int) -> str:  # the last two: when to read it again
    with open_file(path) as stream:
        return content_digest(stream).hexdigest()


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image of a person.

    Attributes:
        path: The image file.
        person_id: Identity, as the annotation numbers it.
        captions: One or more sentences that describe the image.
        split: `"train"`, `"val"` or `"test"`.
        camera: Name of the camera or other source of the image, where it is known.
    """

    path: Path
    person_id: int
    captions: tuple[str, ...]
    split: str
    camera: str | None = None


@dataclass(frozen=True)
class ReIDSplit:
    """The images of one split.

    Attributes:
        name: `"train"`, `"val"` or `"test"`.
        records: Its images, in the annotation's order.
    """

    name: str
    records: Sequence[ImageRecord] = field(repr=False)

    def __len__(self) -> int:
        return len(self.records)

    @cached_property
    def labels(self) -> dict[int, int]:
        """Identity to training label: 0-based and without gaps, in the order of the identities' numbers."""
        ids = sorted({record.person_id for record in self.records})
        return {person_id: label for label, person_id in enumerate(ids)}

    @property
    def num_identities(self) -> int:
        """Number of different persons."""
        return len(self.labels)

    @property
    def paths(self) -> list[Path]:
        """The image files."""
        return [record.path for record in self.records]

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the cameras that are known, sorted: the groups of grouped prompts."""
        return tuple(sorted({record.camera for record in self.records if record.camera is not None}))

    @property
    def captions(self) -> list[str]:
        """The captions of all images, one image after another."""
        return [caption for record in self.records for caption in record.captions]

    @property
    def num_captions(self) -> int:
        """Number of captions over all images."""
        return sum(len(record.captions) for record in self.records)

    @property
    def counts(self) -> SplitCounts:
        """Persons, images and captions."""
        return SplitCounts(self.num_identities, len(self), self.num_captions)

    def identity(self) -> dict[str, object]:
        """The identity of this split: its annotation, and the contents of its image files."""
        annotation = repr([(record.person_id, record.captions) for record in self.records])
        return {"annotation": sha256(annotation.encode()).hexdigest()[:16], "images": files_identity(self.paths)}

    def without(self, paths: Collection[Path]) -> "ReIDSplit":
        """The same split with some images left out."""
        return ReIDSplit(self.name, tuple(record for record in self.records if record.path not in paths))


def check_split(split: object) -> None:
    """Refuse what is not one split, such as a whole dataset.

    Raises:
        TypeError: It is something else; says what to write.
    """
    if isinstance(split, ReIDDataset):
        raise TypeError("split is a whole ReIDDataset, expected one of its splits, such as dataset.test")
    if not isinstance(split, ReIDSplit):
        raise TypeError(f"split is {type(split).__name__}, expected a ReIDSplit, such as load_dataset(folder).test")


@dataclass(frozen=True)
class ReIDDataset:
    """A text-to-image person re-identification dataset on disk.

    Attributes:
        name: Its usual name.
        root: Its folder.
        train: Images to learn from.
        val: Images that choose the checkpoint, or `None` where the dataset has none.
        test: Images of persons that are in no other split.
        published: The counts its authors publish, or `None` where there are none to hold it against.
        names: Identity number to name, where a table names its persons and the reader numbered them; else empty.
    """

    name: str
    root: Path
    train: ReIDSplit
    val: ReIDSplit | None
    test: ReIDSplit
    published: PublishedCounts | None = field(default=None, repr=False)
    names: Mapping[int, str] = field(default_factory=dict[int, str], repr=False, compare=False)

    @property
    def splits(self) -> tuple[ReIDSplit, ...]:
        """The splits there are."""
        return tuple(split for split in (self.train, self.val, self.test) if split is not None)

    @property
    def title(self) -> str:
        """Its name as people are told it, which says where its persons are drawn."""
        return data_title(self.name, self.root)

    def identity(self) -> dict[str, object]:
        """The identity of this dataset: that of each split."""
        return {split.name: split.identity() for split in self.splits}

    def summary(self) -> str:
        """One line that counts persons, images and captions of every split, against the published counts."""
        return count_line(self.title, {split.name: split.counts for split in self.splits}, self.published)


def split_records(
    name: str,
    root: Path,
    records: Sequence[ImageRecord],
    *,
    required: Sequence[str] = ("train", "test"),
    published: PublishedCounts | None = None,
) -> ReIDDataset:
    """Sort records into splits.

    Args:
        name: The dataset's name.
        root: Its folder.
        records: Its images.
        required: Splits that must not be empty.
        published: The counts to hold it against.

    Raises:
        DatasetError: A required split is empty, or a person is in two splits.
    """
    for _, words in split_conflicts(records, required):
        raise DatasetError(f"{root}: {words}")
    train, val, test = splits_of(records)
    return ReIDDataset(name, root, train, val if len(val) else None, test, published)


def splits_of(records: Sequence[ImageRecord]) -> list[ReIDSplit]:
    """The training, validation and test split, any of which may be empty."""
    return [ReIDSplit(name, tuple(record for record in records if record.split == name)) for name in SPLITS]


def split_counts(records: Sequence[ImageRecord]) -> dict[str, SplitCounts]:
    """Counts of every split that is not empty."""
    return {split.name: split.counts for split in splits_of(records) if len(split)}


def split_conflicts(records: Sequence[ImageRecord], required: Sequence[str]) -> Iterator[tuple[int | None, str]]:
    """Errors that prevent a split: required splits that are empty, and persons in two splits.

    Yields:
        Index of the record at fault, or `None`, and what is wrong; each person once.
    """
    present = {record.split for record in records}
    for split in required:
        if split not in present:
            yield None, f'no record has split "{split}"; is the annotation file complete?'
    owner: dict[int, str] = {}
    reported: set[int] = set()
    for index, record in enumerate(records):
        first = owner.setdefault(record.person_id, record.split)
        if first != record.split and record.person_id not in reported:
            reported.add(record.person_id)
            yield (
                index,
                f"person {record.person_id} is in the {first} and the {record.split} split; "
                "the splits must have no person in common, or the scores mean nothing",
            )
