"""What a data set is made of: images with captions and identities, in splits."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path

from promptreid.errors import DatasetError


@dataclass(frozen=True)
class SplitCounts:
    """How much there is in a split.

    Attributes:
        persons: Different identities.
        images: Pictures.
        captions: Sentences over all pictures.
    """

    persons: int
    images: int
    captions: int


@dataclass(frozen=True)
class PublishedCounts:
    """What a complete copy of a data set holds.

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
            parts.append(f"{split} none of {_plain(expected[split])}")
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
            sentences.append(f"there is no {split} split, published is one of {_plain(published.splits[split])}")
        elif expected is None:
            sentences.append(f"there is a {split} split of {_plain(found[split])}, published is none")
        elif found[split] != expected:
            known = found[split] in published.other_copies.get(split, ())
            remark = " (a copy with these counts is known to be in circulation)" if known else ""
            sentences.append(f"{split} has {_plain(found[split])}, published are {_plain(expected)}{remark}")
    return sentences


def _plain(counts: SplitCounts) -> str:
    return _against(counts, None)


def _against(found: SplitCounts, expected: SplitCounts | None) -> str:
    parts: list[str] = []
    for name in (item.name for item in fields(SplitCounts)):
        number = getattr(found, name)
        wanted = number if expected is None else getattr(expected, name)
        parts.append(f"{number:,} {name}" if number == wanted else f"{number:,} of {wanted:,} {name}")
    return ", ".join(parts)


SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One picture of a person.

    Attributes:
        path: The image file.
        person_id: Identity, as the annotation numbers it.
        captions: One or more sentences that describe the picture.
        split: `"train"`, `"val"` or `"test"`.
    """

    path: Path
    person_id: int
    captions: tuple[str, ...]
    split: str


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
    def num_captions(self) -> int:
        """Number of captions over all images."""
        return sum(len(record.captions) for record in self.records)

    @property
    def counts(self) -> SplitCounts:
        """Persons, images and captions."""
        return SplitCounts(self.num_identities, len(self), self.num_captions)

    def without(self, paths: Collection[Path]) -> "ReIDSplit":
        """The same split with some images left out."""
        return ReIDSplit(self.name, tuple(record for record in self.records if record.path not in paths))


@dataclass(frozen=True)
class ReIDDataset:
    """A text-to-image person re-identification data set on disk.

    Attributes:
        name: Its usual name.
        root: Its folder.
        train: Images to learn from.
        val: Images that choose the checkpoint, or `None` where the data set has none.
        test: Images of persons that are in no other split.
        published: The counts its authors publish, or `None` where there are none to hold it against.
    """

    name: str
    root: Path
    train: ReIDSplit
    val: ReIDSplit | None
    test: ReIDSplit
    published: PublishedCounts | None = field(default=None, repr=False)

    @property
    def splits(self) -> tuple[ReIDSplit, ...]:
        """The splits there are."""
        return tuple(split for split in (self.train, self.val, self.test) if split is not None)

    def summary(self) -> str:
        """One line that counts persons, images and captions of every split, against the published counts."""
        return count_line(self.name, {split.name: split.counts for split in self.splits}, self.published)


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
        name: The data set's name.
        root: Its folder.
        records: Its images.
        required: Splits that must not be empty.
        published: The counts to hold it against.

    Raises:
        DatasetError: A required split is empty, or a person is in two splits.
    """
    by_split = {split: tuple(record for record in records if record.split == split) for split in SPLITS}
    for split in required:
        if not by_split[split]:
            raise DatasetError(f'{root}: no record has split "{split}"; is the annotation file complete?')
    owner: dict[int, str] = {}
    for record in records:
        if owner.setdefault(record.person_id, record.split) != record.split:
            raise DatasetError(f"{root}: {shared_person(record.person_id, owner[record.person_id], record.split)}")
    train, val, test = (ReIDSplit(split, by_split[split]) for split in SPLITS)
    return ReIDDataset(name, root, train, val if len(val) else None, test, published)


def shared_person(person_id: int, first: str, second: str) -> str:
    """What is wrong when a person is in two splits."""
    return (
        f"person {person_id} is in the {first} and the {second} split; "
        "the splits must have no person in common, or the scores mean nothing"
    )
