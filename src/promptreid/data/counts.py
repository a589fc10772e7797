"""Counts of a data set against those its authors publish."""

from collections.abc import Mapping
from dataclasses import dataclass, fields


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
    for name in (field.name for field in fields(SplitCounts)):
        number = getattr(found, name)
        wanted = number if expected is None else getattr(expected, name)
        parts.append(f"{number:,} {name}" if number == wanted else f"{number:,} of {wanted:,} {name}")
    return ", ".join(parts)
