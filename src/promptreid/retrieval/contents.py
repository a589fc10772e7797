"""What a gallery holds, to be looked at."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from promptreid.errors import CheckpointError
from promptreid.evaluation.calibration import Calibration
from promptreid.retrieval.export import export_features
from promptreid.retrieval.gallery_files import GalleryStore
from promptreid.retrieval.searching import check_unit_length
from promptreid.retrieval.table import Metadata, PictureTable


class GalleryContents:
    """Features, paths, numbers and metadata of a gallery, each in the order of the features.

    Args:
        store: Where they are kept.
    """

    def __init__(self, store: GalleryStore) -> None:
        self._store = store

    def __len__(self) -> int:
        return len(self._store.state[0])

    def __repr__(self) -> str:
        table, features = self._store.state
        shape = f"{len(table)} pictures, {features.shape[1]} dimensions, {features.dtype}"
        return f"{type(self).__name__}({shape}, {self.directory})"

    @property
    def features(self) -> Tensor:
        """(G, E) features of unit length."""
        return self._store.state[1]

    @property
    def paths(self) -> tuple[Path, ...]:
        """The pictures, in the order of the features."""
        return tuple(Path(path) for path in self._store.state[0].paths)

    @property
    def ids(self) -> Tensor:
        """(G,) int64, the number of each picture, which never changes."""
        return self._store.state[0].ids

    @property
    def metadata(self) -> Sequence[Metadata]:
        """What is known of each picture."""
        return self._store.state[0].metadata

    @property
    def directory(self) -> Path | None:
        """The folder it is bound to."""
        return self._store.directory

    @property
    def notes(self) -> dict[str, Any]:
        """Whatever the caller likes to keep with the gallery, as JSON holds it; `save` writes it."""
        return self._store.header.setdefault("notes", {})

    @property
    def calibration(self) -> Calibration | None:
        """The calibrated threshold."""
        values = self._store.header.get("calibration")
        return None if values is None else Calibration(**values)

    def check_calibration(self) -> None:
        """Refuse a calibration that is not one.

        Raises:
            CheckpointError: It is damaged.
        """
        try:
            _ = self.calibration
        except TypeError as error:
            raise CheckpointError(
                f"{self.directory} has a damaged calibration ({error}); calibrate it again"
            ) from error

    def export(self, path: str | Path) -> Path:
        """Write ids, paths, metadata and features to a `.parquet` or `.npz` file, readable by its owner alone.

        Raises:
            ValueError: Another ending.
            MissingExtraError: Parquet is asked for and pyarrow is not installed.
        """
        table, features = self._store.state
        return export_features(Path(path), features, table)


def new_store(
    paths: Sequence[str | Path], features: Tensor, metadata: Sequence[Metadata] | None = None
) -> GalleryStore:
    """A store of pictures that are encoded already.

    Raises:
        ValueError: Features are not finite, not of unit length or not one a picture, or the metadata are too few.
    """
    if features.ndim != 2 or len(features) != len(paths) or not features.is_floating_point():
        raise ValueError(
            f"{len(paths)} paths and features of shape {tuple(features.shape)} and dtype {features.dtype}, "
            "expected floating point (pictures, dim)"
        )
    if metadata is not None and len(metadata) != len(paths):
        raise ValueError(f"{len(paths)} paths but metadata for {len(metadata)}; give one entry a picture")
    table = PictureTable.of([str(path) for path in paths], first_id=0, metadata=metadata)
    return GalleryStore(table, check_unit_length(features))
