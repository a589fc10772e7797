"""The problems that a check of a dataset finds."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from promptreid.values import shown

Severity = Literal["error", "warning"]

# Kind of problem: whether it stops training, and what a report calls it.
KINDS: dict[str, tuple[Severity, str]] = {
    "record": ("error", "malformed records"),
    "caption": ("error", "captions that are empty or not text"),
    "path": ("error", "paths that leave the image folder"),
    "split": ("error", "splits that are empty, share a person or cannot be trained on"),
    "conflict": ("error", "images that are given to two persons, splits or cameras"),
    "missing": ("error", "images missing"),
    "empty file": ("error", "image files of zero bytes"),
    "unreadable": ("error", "images that cannot be read"),
    "truncated": ("error", "truncated images"),
    "oversized": ("error", "absurdly large images"),
    "id": ("warning", "annotations with ids that are not written as whole numbers"),
    "duplicate": ("warning", "duplicate records"),
    "same picture": ("warning", "images that have copies under another person or split"),
    "tiny": ("warning", "images of a few pixels"),
    "extension": ("warning", "images of another format than their name says"),
    "animated": ("warning", "animated images, of which the first frame is used"),
    "long caption": ("warning", "captions longer than the context, which are cut"),
    "counts": ("warning", "counts that differ from the published ones"),
}

# Errors of a single record or its image: without the record, the others can be used.
LEFT_OUT = frozenset(("record", "caption", "path", "missing", "empty file", "unreadable", "truncated", "oversized"))


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a dataset, a record or an image file.

    Attributes:
        kind: One of `KINDS`, such as `"missing"`.
        message: What is wrong; once it is `located`, with the annotation file and the record.
        position: The record's index in the annotation (line number in CSV and JSONL), or `None`.
        path: The image below the image folder, or `None`.
    """

    kind: str
    message: str
    position: int | None = None
    path: str | None = None

    @property
    def severity(self) -> Severity:
        """`"error"` stops training, `"warning"` does not."""
        return KINDS[self.kind][0]

    def located(self, where: str, position: int, path: str | None = None) -> "Problem":
        """The same problem with where it was found before its message."""
        return Problem(self.kind, f"{where} {self.message}", position, path)

    def as_dict(self) -> dict[str, Any]:
        """The entries for JSON."""
        return {
            "severity": self.severity,
            "kind": self.kind,
            "message": self.message,
            "record": self.position,
            "path": self.path,
        }


class RepeatedKeyError(ValueError):
    """What stands for the values of a JSON object's key that says two things, of which `json` would keep the last."""


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as `json` makes it (`object_pairs_hook`), with the error as value of a key that says two things."""
    made = dict(pairs)
    if len(made) < len(pairs):
        for key in {key for key, value in pairs if value != made[key]}:
            made[key] = RepeatedKeyError(
                f"has {shown(key, longest=200)} more than once, with different values; write it once"
            )
    return made


def repeated_keys(fields: Mapping[Any, Any], read: Iterable[str]) -> list[Problem]:
    """The errors of the keys that say two things, of those that are read and the camera."""
    found = (fields.get(key) for key in (*read, "camera"))
    return [Problem("record", str(value)) for value in found if isinstance(value, RepeatedKeyError)]


@dataclass(frozen=True)
class CheckReport:
    """Everything that `check_dataset` found.

    Attributes:
        name: The dataset's usual name.
        root: Its folder.
        annotation: Its annotation file.
        summary: One line: what was found in each split, and what was expected.
        problems: All problems, errors first, those of one kind together.
        num_records: Records in the annotation, malformed ones included.
        num_captions: Captions of well-formed records.
        num_images_opened: Images that were opened.
        longest_caption: Tokens of the longest caption, start and end included, if a tokenizer was given.
        context_length: Tokens that the tokenizer has room for, if one was given.
        left_out: With `on_bad="skip"`, the errors of the records that are left out.
    """

    name: str
    root: Path
    annotation: Path
    summary: str
    problems: tuple[Problem, ...] = field(repr=False)
    num_records: int
    num_captions: int
    num_images_opened: int
    longest_caption: int | None = None
    context_length: int | None = None
    left_out: tuple[Problem, ...] = field(default=(), repr=False)

    @property
    def errors(self) -> tuple[Problem, ...]:
        """The problems that stop training."""
        return tuple(problem for problem in self.problems if problem.severity == "error")

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """The problems that do not."""
        return tuple(problem for problem in self.problems if problem.severity == "warning")

    @property
    def ok(self) -> bool:
        """Whether a model can be trained on it: there is no error."""
        return not self.errors

    def lines(self, *, limit: int = 10) -> list[str]:
        """The report as text.

        Args:
            limit: How many problems of each kind are named; the others are counted.

        Returns:
            The summary, a heading and messages for each kind of problem, and the verdict.
        """
        lines = [self.summary]
        for kind, (severity, title) in KINDS.items():
            for label, problems in ((severity, self.problems), ("left out", self.left_out)):
                found = [problem for problem in problems if problem.kind == kind]
                if found:
                    folders = _by_folder(found) if kind == "missing" else ""
                    lines += [f"{label}: {len(found):,} {title}{folders}", *_first(found, limit)]
        if self.longest_caption is not None:
            lines.append(f"longest caption: {self.longest_caption} tokens; the context has {self.context_length}")
        opened = f"{self.num_images_opened:,} images opened" if self.num_images_opened else "images not opened"
        verdict = f"{len(self.errors):,} errors, {len(self.warnings):,} warnings"
        lines.append(f"{'ready' if self.ok else 'not ready'} for training: {verdict} ({opened})")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values that JSON can hold."""
        values = {**asdict(self), "root": str(self.root), "annotation": str(self.annotation), "ok": self.ok}
        values["problems"] = [problem.as_dict() for problem in self.problems]
        values["left_out"] = [problem.as_dict() for problem in self.left_out]
        return values


def in_order(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Problems by kind, in the order of `KINDS`, and within a kind as they were found."""
    order = list(KINDS)
    return tuple(sorted(problems, key=lambda problem: order.index(problem.kind)))


def _first(problems: list[Problem], limit: int) -> list[str]:
    more = [f"  and {len(problems) - limit:,} more"] if len(problems) > limit else []
    return [*(f"  {problem.message}" for problem in problems[:limit]), *more]


def _by_folder(missing: Iterable[Problem]) -> str:
    folders = Counter(str(PurePosixPath(problem.path or "").parent) for problem in missing)
    return f" ({', '.join(f'{folder}: {count:,}' for folder, count in sorted(folders.items()))})"
