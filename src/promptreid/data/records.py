"""What a data set is made of: images with captions and identities, in splits."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from promptreid.errors import DatasetError


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class ReIDDataset:
    """A text-to-image person re-identification data set on disk.

    Attributes:
        name: Its usual name.
        root: Its folder.
        train: Images to learn from.
        val: Images that choose the checkpoint, or `None` where the data set has none.
        test: Images of persons that are in no other split.
    """

    name: str
    root: Path
    train: ReIDSplit
    val: ReIDSplit | None
    test: ReIDSplit

    @property
    def splits(self) -> tuple[ReIDSplit, ...]:
        """The splits there are."""
        return tuple(split for split in (self.train, self.val, self.test) if split is not None)

    def summary(self) -> str:
        """One line that counts persons, images and captions of every split."""
        counts = (
            f"{split.name} {split.num_identities:,} persons, {len(split):,} images, {split.num_captions:,} captions"
            for split in self.splits
        )
        return f"{self.name}: {'; '.join(counts)}"


def split_records(name: str, root: Path, records: Sequence[ImageRecord]) -> ReIDDataset:
    """Sort records into splits.

    Raises:
        DatasetError: The training or test split is empty, or a person is in two splits.
    """
    by_split = {
        split: tuple(record for record in records if record.split == split) for split in ("train", "val", "test")
    }
    for split in ("train", "test"):
        if not by_split[split]:
            raise DatasetError(f'{root}: no record has split "{split}"; is the annotation file complete?')
    owner: dict[int, str] = {}
    for record in records:
        if owner.setdefault(record.person_id, record.split) != record.split:
            raise DatasetError(
                f"{root}: person {record.person_id} is in the {owner[record.person_id]} and the {record.split} split; "
                "the splits must have no person in common, or the scores mean nothing"
            )
    val = ReIDSplit("val", by_split["val"]) if by_split["val"] else None
    return ReIDDataset(name, root, ReIDSplit("train", by_split["train"]), val, ReIDSplit("test", by_split["test"]))
