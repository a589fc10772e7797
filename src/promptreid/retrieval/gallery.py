"""Search a folder of pedestrian crops by a sentence or a picture."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor

from promptreid.data.records import ReIDSplit
from promptreid.evaluation.calibration import Calibration, calibrate_split
from promptreid.evaluation.evaluate import encode_split
from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.retrieval.contents import GalleryContents, new_store
from promptreid.retrieval.editing import (
    Changes,
    ImageSource,
    Pace,
    add_pictures,
    list_pictures,
    remove_pictures,
    update_pictures,
)
from promptreid.retrieval.encode import Query, is_one_query
from promptreid.retrieval.gallery_files import GalleryStore
from promptreid.retrieval.identity import check_identity, model_identity
from promptreid.retrieval.searching import lowest_score, search_pictures
from promptreid.retrieval.table import Hit, Metadata, Where

Storage = Literal["float32", "float16"]
_DTYPES = {"float32": torch.float32, "float16": torch.float16}


class Gallery(GalleryContents):
    """Features of pictures, to be searched exactly and kept in a folder.

    A gallery that was saved or loaded is bound to its folder: `add`, `update` and `remove` then change the files too,
    in one step that a kill cannot halve. Features of people can count as biometric data, so the files are readable by
    their owner alone, and what is removed is gone from them.

    Args:
        model: Encodes queries; the one that encoded the pictures. `None` allows only features as queries.
        paths: The pictures.
        features: Their features, of unit length.
        metadata: What is known of each picture, to filter by.

    Attributes:
        model: The model.

    Shape:
        - features: (G, E) float32 or float16

    Raises:
        ValueError: Not finite, not one feature a picture, or another number of metadata.

    Example:
        >>> gallery = Gallery.build(model, "crops/")  # doctest: +SKIP
        >>> gallery.search("a woman in a red coat with a black backpack", k=5)  # doctest: +SKIP
        >>> gallery.save("index/")  # doctest: +SKIP
    """

    def __init__(
        self,
        model: PromptedCLIP | None,
        paths: Sequence[str | Path],
        features: Tensor,
        *,
        metadata: Sequence[Metadata] | None = None,
    ) -> None:
        super().__init__(new_store(paths, features, metadata))
        self.model = model
        if model is not None:
            self._store.header["model"] = model_identity(model)

    @classmethod
    def build(
        cls,
        model: PromptedCLIP,
        images: ImageSource,
        *,
        metadata: Sequence[Metadata] | None = None,
        directory: str | Path | None = None,
        storage: Storage = "float32",
        notes: Mapping[str, Any] | None = None,
        batch_size: int = 64,
        num_threads: int = 4,
        progress: bool = True,
    ) -> "Gallery":
        """Encode a folder of pictures with its sub-folders, a split, or a list of records or files.

        Pictures that cannot be read are left out, counted and named in one warning.

        Args:
            model: The model.
            images: The pictures.
            metadata: What is known of each, with a list.
            directory: Save there now and then and at the end, so that a build that is killed can go on by `load` and
                `update`; `None` keeps the gallery in memory until `save`.
            storage: `"float16"` takes half the room; scores change by less than 0.001.
            notes: Whatever is to be kept with the gallery, as JSON holds it.
            batch_size: Pictures at a time.
            num_threads: Threads that read pictures ahead.
            progress: Show a progress bar.

        Raises:
            DatasetError: There is no picture, or none that can be read.
            FileExistsError: `directory` holds a gallery already.
            ValueError: A setting is out of range, or the model gives NaN or infinity.
        """
        if storage not in _DTYPES:
            raise ValueError(f"storage is {storage!r}, expected one of {', '.join(_DTYPES)}")
        files = list_pictures(images, metadata=metadata)
        gallery = cls(model, [], torch.empty(0, model.embed_dim, dtype=_DTYPES[storage]))
        gallery.notes.update(notes or {})
        if directory is not None:
            gallery._store.bind(Path(directory))
        changes = add_pictures(gallery._store, model, files, Pace(batch_size, num_threads, progress))
        changes.warn_unreadable(len(files))
        return gallery

    def add(
        self,
        images: ImageSource,
        *,
        metadata: Sequence[Metadata] | None = None,
        batch_size: int = 64,
        num_threads: int = 4,
        progress: bool = True,
    ) -> Changes:
        """Encode more pictures; the arguments are those of `build`.

        Raises:
            ValueError: A picture is in the gallery already, or the gallery has no model.
            DatasetError: There is no picture.
        """
        files = list_pictures(images, metadata=metadata)
        pace = Pace(batch_size, num_threads, progress)
        changes = add_pictures(self._store, self._encoder(), files, pace)
        changes.warn_unreadable(len(files))
        return changes

    def update(
        self,
        images: ImageSource,
        *,
        prune: bool = False,
        batch_size: int = 64,
        num_threads: int = 4,
        progress: bool = True,
    ) -> Changes:
        """Encode only pictures that are new or whose file has changed in size or time.

        Args:
            images: The pictures as they are now.
            prune: Remove pictures that the gallery knows and that are not among `images`.
            batch_size: Pictures at a time.
            num_threads: Threads that read pictures ahead.
            progress: Show a progress bar.

        Returns:
            What was done.

        Raises:
            DatasetError: There is no picture.
        """
        files = list_pictures(images)
        pace = Pace(batch_size, num_threads, progress)
        changes = update_pictures(self._store, self._encoder(), files, pace, prune=prune)
        changes.warn_unreadable(len(files))
        return changes

    def remove(self, pictures: Sequence[int | str | Path]) -> int:
        """Remove pictures by number or path, and their features from the files too.

        Returns:
            How many were removed.

        Raises:
            KeyError: One is not in the gallery; then none is removed.
        """
        return remove_pictures(self._store, pictures)

    @overload
    def search(
        self,
        query: list[Query] | list[str],
        k: int = 10,
        *,
        threshold: float | str | None = None,
        where: Where | None = None,
    ) -> list[list[Hit]]: ...

    @overload
    def search(
        self, query: Query | Tensor, k: int = 10, *, threshold: float | str | None = None, where: Where | None = None
    ) -> list[Hit]: ...

    def search(
        self,
        query: Query | Tensor | list[Query] | list[str],
        k: int = 10,
        *,
        threshold: float | str | None = None,
        where: Where | None = None,
    ) -> list[Hit] | list[list[Hit]]:
        """Find the pictures most similar to a query, or to each of several.

        Args:
            query: A sentence, a picture (a `Path` or a PIL image) or features (E,); or a list of sentences and
                pictures or features (Q, E), for a list of results.
            k: How many at most.
            threshold: Leave out scores below it, so that a result may be empty: no good match. `"calibrated"` takes
                the one that `calibrate` chose.
            where: Search only pictures with these metadata, such as `{"folder": ["cam_a", "cam_b"]}`, or those for
                which a function of the metadata is true.

        Returns:
            The best first; of equal scores the earlier picture in the gallery comes first.

        Raises:
            ValueError: The gallery is empty, `k` is not from 1 to its size, a sentence is empty, features are not
                finite, no picture has a key of `where`, or the gallery was never calibrated.
            TypeError: A query is of another kind.
            DatasetError: A picture cannot be read.
        """
        found = search_pictures(
            self._store.state,
            self.model,
            query,
            k,
            lowest=lowest_score(threshold, self.calibration),
            where=where,
        )
        return found[0] if is_one_query(query) else found

    def calibrate(self, split: ReIDSplit, *, false_alarm_rate: float = 0.05, progress: bool = True) -> Calibration:
        """Choose the threshold of `search(threshold="calibrated")` on a labelled split; saved with the gallery.

        Args:
            split: Pictures that look like the gallery's, with captions; best a validation split.
            false_alarm_rate: How often a search for somebody absent may find something.
            progress: Show progress bars.

        Raises:
            ValueError: The gallery has no model, or the split has only one person.
        """
        encoded = encode_split(self._encoder(), split, progress=progress)
        chosen = calibrate_split(encoded, false_alarm_rate=false_alarm_rate)
        self._store.header["calibration"] = asdict(chosen)
        self._store.save_header()
        return chosen

    def to(self, device: str | torch.device) -> "Gallery":
        """Search on a device from now on; returns the gallery itself."""
        table, features = self._store.state
        self._store.state = (table, features.to(device))
        return self

    def save(self, directory: str | Path | None = None) -> Path:
        """Write the gallery to a folder and bind it there.

        Args:
            directory: The folder; `None` for the one it is bound to. A gallery that is there is replaced.

        Returns:
            The folder.

        Raises:
            ValueError: No folder is given and the gallery is not bound to one.
            CheckpointError: Another process has changed the gallery meanwhile.
            OSError: The files cannot be written; what was there is untouched.
        """
        folder = self.directory if directory is None else Path(directory)
        if folder is None:
            raise ValueError("the gallery was never saved; give a folder")
        self._store.save(folder)
        return folder

    @classmethod
    def load(cls, directory: str | Path, model: PromptedCLIP | None = None) -> "Gallery":
        """Read what `save` wrote. Features are mapped from disk: loading is quick and takes little memory.

        Args:
            directory: The folder.
            model: The model that encoded the pictures; `None` if only features are to be queries.

        Raises:
            CheckpointError: Files are missing, corrupt, of another format version, or of another model.
        """
        store = GalleryStore.load(Path(directory))
        if model is not None:
            check_identity(store.header.get("model"), model, source=str(directory))
        gallery = cls(None, [], torch.empty(0, store.state[1].shape[1]))
        gallery.model, gallery._store = model, store
        gallery.check_calibration()
        return gallery

    def _encoder(self) -> PromptedCLIP:
        if self.model is None:
            raise ValueError(
                "this gallery was loaded without a model; load it with the one that encoded it: "
                "Gallery.load(directory, model)"
            )
        return self.model
