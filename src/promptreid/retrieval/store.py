"""Features and what they belong to, in memory and in a folder."""

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from promptreid.errors import CheckpointError
from promptreid.retrieval.gallery_files import exists, read_gallery, write_gallery
from promptreid.retrieval.table import PictureTable


class GalleryStore:
    """One gallery's state, written through to its folder once it has one.

    Args:
        table: The pictures.
        features: (G, E).
        header: What else is kept, as JSON holds it.

    Attributes:
        state: Table and features; replaced as one and never changed, so that a search in another thread sees all of
            one state.
        header: What else is kept.
        directory: The folder, or `None`.
    """

    def __init__(self, table: PictureTable, features: Tensor, *, header: dict[str, Any] | None = None) -> None:
        self.state: tuple[PictureTable, Tensor] = (table, features)
        self.header: dict[str, Any] = dict(header or {})
        self.directory: Path | None = None
        self._generation: str | None = None
        self._next_id = 1 + int(table.ids.max()) if len(table) else 0

    def take_ids(self, count: int) -> int:
        """The first of `count` numbers that no picture ever had."""
        first, self._next_id = self._next_id, self._next_id + count
        return first

    def replace(self, table: PictureTable, features: Tensor) -> None:
        """Put another state in place: first in the folder, if there is one, then here."""
        if self.directory is None:
            self.state = (table, features)
            return
        device = features.device
        self._write(self.directory, table, features, replaces=self._generation)
        # Mapped anew, because the old mapping would keep what was removed on the disk.
        self.state = (table, read_gallery(self.directory).features.to(device))

    def save(self, directory: Path) -> None:
        """Write to a folder and stay bound to it."""
        same = self.directory is not None and directory.resolve() == self.directory.resolve()
        self._write(directory, *self.state, replaces=self._generation if same else None)
        self.directory = directory

    def save_header(self) -> None:
        """Write what changed in the header, if there is a folder."""
        if self.directory is not None:
            self._write(self.directory, *self.state, replaces=self._generation)

    def bind(self, directory: Path) -> None:
        """Write every later state to a new folder.

        Raises:
            FileExistsError: It holds a gallery already.
        """
        if exists(directory):
            raise FileExistsError(
                f"{directory} holds a gallery already; go on with Gallery.load and update, or choose another folder"
            )
        self.save(directory)

    @classmethod
    def load(cls, directory: Path) -> "GalleryStore":
        """Read a folder; features stay on disk until they are looked at.

        Raises:
            CheckpointError: Files are missing, corrupt or of another format version.
        """
        saved = read_gallery(directory)
        header, next_id = saved.header.get("header"), saved.header.get("next_id")
        if not isinstance(header, dict):
            raise CheckpointError(f"{directory} is damaged (its header is {header!r}); build the gallery again")
        store = cls(saved.table, saved.features, header=cast("dict[str, Any]", header))
        if not isinstance(next_id, int) or (len(saved.table) and next_id <= int(torch.max(saved.table.ids))):
            raise CheckpointError(f"{directory} is damaged (next_id is {next_id!r}); build the gallery again")
        store.directory, store._generation, store._next_id = directory, saved.generation, next_id
        return store

    def _write(self, directory: Path, table: PictureTable, features: Tensor, *, replaces: str | None) -> None:
        header = {"header": self.header, "next_id": self._next_id}
        self._generation = write_gallery(directory, features, table, header, replaces=replaces)
