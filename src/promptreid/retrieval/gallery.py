"""Search a folder of pedestrian crops by a sentence or an image."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from promptreid.data.records import ReIDSplit
from promptreid.defaults import NUM_HITS
from promptreid.evaluation.calibration import Calibration
from promptreid.evaluation.metrics import Array, as_tensor
from promptreid.model.encoding import EncodingOptions, check_prompted
from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.retrieval.editing import (
    Changes,
    ImageSource,
    Prune,
    add_features,
    add_images,
    find_images,
    keyed_images,
    known_metadata,
    update_images,
)
from promptreid.retrieval.encode import Query, check_features, check_identity, model_identity, needed
from promptreid.retrieval.export import export_features
from promptreid.retrieval.filters import Metadata, Where, plain_metadata
from promptreid.retrieval.gallery_files import DTYPES, Storage
from promptreid.retrieval.gallery_state import (
    GalleryState,
    choose_threshold,
    kept_calibration,
    lowest_score,
    search_store,
)
from promptreid.retrieval.index import ExactIndex, Index
from promptreid.retrieval.removal import Images, edit_images, remove_images, restore_images
from promptreid.retrieval.table import Hit, ImageTable, check_passes, known_values
from promptreid.values import check_choice

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from promptreid.retrieval.stored_gallery import StoredGallery


class Gallery:
    """Features of images, to be searched and kept in a folder.

    A gallery that was saved or loaded is bound to its folder: `add`, `update` and `remove` then change the files too,
    in one step that a kill cannot halve. Features of people can count as biometric data, so the files are readable by
    their owner only, and removed images are gone from them.

    Args:
        model: Encodes queries; the one that encoded the images. `None` allows only features as queries.
        paths: The images.
        features: Their features, of unit length.
        metadata: What is known of each image, to filter by.
        index: What searches, empty (see `promptreid.retrieval.index.Index`); `None` compares every feature.

    Shape:
        - features: (G, E) floating point; float16 stays so, any other is kept as float32

    Raises:
        ValueError: Features are not finite, not of unit length or not one per image, or the metadata are too few.

    Example:
        >>> gallery = Gallery.build(model, "crops/")  # doctest: +SKIP
        >>> gallery.search("a woman in a red coat with a black backpack", k=5)  # doctest: +SKIP
        >>> gallery.save("index/")  # doctest: +SKIP
    """

    def __init__(
        self,
        model: PromptedCLIP | None,
        paths: Sequence[str | Path],
        features: Array,
        *,
        metadata: Sequence[Metadata] | None = None,
        index: Index | None = None,
    ) -> None:
        features = as_tensor(features, "features")
        names = [str(path) for path in paths]
        table = ImageTable.of(names, first_id=0, metadata=known_metadata(names, metadata))
        self._store = GalleryState(ExactIndex(table, check_features(features, len(paths))), index=index)
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
        index: Index | None = None,
        **options: "Unpack[EncodingOptions]",
    ) -> "Gallery":
        """Encode a folder of images with its sub-folders, a split, or a list of records or files.

        Images that cannot be read are left out, counted and named in one warning.

        Args:
            model: The model.
            images: The images.
            metadata: What is known of each, with a list: numbers, texts, dates, and lists and dictionaries of them.
            directory: Save there at intervals and at the end, so that a build that is killed can be resumed by `load`
                and `update`; `None` keeps the gallery in memory until `save`.
            storage: `"float16"` takes half the memory; scores change by less than 0.001.
            notes: Anything to keep with the gallery, as JSON holds it.
            index: What searches, empty; `None` compares every feature.
            **options: `batch_size=64`: images at a time; `num_threads=4`: threads that read images ahead;
                `progress=True`: show a progress bar.

        Raises:
            DatasetError: There is no image, or none that can be read.
            FileExistsError: `directory` holds a store, or a gallery already, or somebody is building one there; an
                empty one that was abandoned is replaced.
            ValueError: A setting is out of range, or the model gives NaN or infinity.
            TypeError: Metadata or notes are of a kind that JSON does not take, or arguments are swapped.
        """
        check_prompted(model)
        check_choice("storage", storage, DTYPES)
        files = find_images(images, metadata=metadata)
        gallery = cls(model, [], torch.empty(0, model.embed_dim, dtype=DTYPES[storage]), index=index)
        gallery.notes.update(plain_metadata(notes or {}, "notes"))
        with ExitStack() as build:
            if directory is not None:
                gallery._store.save(Path(directory), is_new=True, build=build)
            add_images(gallery._store, model, files, **options)
        return gallery

    @classmethod
    def load(cls, directory: str | Path, model: PromptedCLIP | None = None, *, index: Index | None = None) -> "Gallery":
        """Read what `save` wrote. Features are mapped from disk: loading is quick and takes little memory.

        Args:
            directory: The folder.
            model: The model that encoded the images; `None` if only features are to be queries.
            index: What searches, empty; `None` compares every feature.

        Raises:
            CheckpointError: Files are missing, corrupt, of another format version, or of another model.
        """
        if model is not None:
            check_prompted(model)
        store = GalleryState.load(Path(directory), index=index)
        if model is not None:
            check_identity(store.header.get("model"), model, source=str(directory))
        gallery = cls.__new__(cls)
        gallery.model, gallery._store = model, store
        _ = gallery.calibration  # refuses a damaged one
        return gallery

    def __len__(self) -> int:
        return len(self._store)

    def __repr__(self) -> str:
        exact = self._store.exact
        shape = f"{len(exact)} images, {exact.dimensions} dimensions, {exact.dtype}"
        return f"{type(self).__name__}({shape}, {self.directory})"

    @property
    def features(self) -> Tensor:
        """(G, E) features of unit length, in one tensor: of a gallery in several segments it is made when asked for."""
        return self._store.exact.features

    @property
    def paths(self) -> tuple[Path, ...]:
        """The images, in the order of the features."""
        return tuple(Path(path) for path in self._store.images.paths)

    @property
    def ids(self) -> Tensor:
        """(G,) int64, the number of each image, which never changes."""
        return self._store.images.ids

    @property
    def metadata(self) -> Sequence[Metadata]:
        """The metadata of each image."""
        return self._store.images.metadata

    @property
    def directory(self) -> Path | None:
        """The folder it is bound to."""
        return self._store.directory

    @property
    def notes(self) -> dict[str, Any]:
        """Anything that the caller keeps with the gallery, as JSON holds it; `save` writes it."""
        return self._store.header["notes"]

    @property
    def calibration(self) -> Calibration | None:
        """The calibrated threshold."""
        return kept_calibration(self._store.header, self.directory)

    def add(
        self,
        images: ImageSource | Sequence[Any],
        *,
        keys: Sequence[str] | None = None,
        metadata: Sequence[Metadata] | None = None,
        **options: "Unpack[EncodingOptions]",
    ) -> Changes:
        """Encode more images; the arguments are those of `build`.

        Images that were removed earlier come back if they are given one by one; those of a folder stay out.

        Args:
            images: The images; with `keys` PIL images, uint8 arrays (H, W, 3) or uint8 tensors (3, H, W), such as crops
                that a detector has just made.
            keys: What to call images that are not files, such as `"cam_a/000017"`: their `path` in a hit.
            metadata: What is known of each.
            **options: Those of `build`.

        Raises:
            ValueError: An image or key is in the gallery already, or the gallery has no model.
            TypeError: With `keys`, an image is a file's name or of another kind.
            DatasetError: There is no image.
        """
        files = find_images(images, metadata=metadata) if keys is None else keyed_images(images, keys, metadata)
        with self._store.building():
            return add_images(
                self._store, needed(self.model), files, named=not isinstance(images, str | Path), **options
            )

    def add_features(
        self, features: Array, keys: Sequence[str], *, metadata: Sequence[Metadata] | None = None
    ) -> Changes:
        """Add features that were made elsewhere, by the model of this gallery.

        Args:
            features: The features, of unit length.
            keys: What to call each image: a path, or any name.
            metadata: What is known of each.

        Shape:
            - features: (images, E) floating point

        Raises:
            ValueError: Features are not finite, not of unit length or of another shape, or a key is known already.
        """
        return add_features(self._store, as_tensor(features, "features"), keys, metadata)

    def update(self, images: ImageSource, *, prune: Prune = False, **options: "Unpack[EncodingOptions]") -> Changes:
        """Encode only images that are new or whose file has changed in size or time.

        Features of a file that has changed and cannot be read any more are removed. Images that were removed with
        `remove`, and copies of them, do not come back.

        Args:
            images: The images as they are now.
            prune: Remove images that the gallery knows and that are not among `images`. More than a quarter of the
                gallery, or images that may be in a folder that cannot be read, only `"anyway"` removes.
            **options: Those of `build`.

        Returns:
            What was done.

        Raises:
            DatasetError: There is no image, or `prune` needs to be `"anyway"`; then nothing was changed.
        """
        closed: list[str] = []
        with self._store.building():
            files = find_images(images, closed=closed)
            return update_images(self._store, needed(self.model), files, prune=prune, closed=closed, **options)

    def remove(
        self,
        images: Images | None = None,
        *,
        where: Where | None = None,
        older_than: date | timedelta | None = None,
    ) -> int:
        """Remove images, and their features from the files too, at once.

        Their paths and the digests of their files are kept, so that `update`, and `add` of a folder, leave them out.

        Args:
            images: One or several: numbers, paths, or patterns of paths in which `*` matches a part of a name and
                `**` for folders too.
            where: Instead, all images with these metadata, as in `search`.
            older_than: Instead, or of those, the images from before this date, or older than this age:
                `timedelta(days=30)`. The time of an image is its metadata's `"time"` (ISO text or Unix seconds, local
                time if it names no zone), else that of its file's last change, or when it was added by a key.

        Returns:
            How many were removed; with `older_than` it may be 0.

        Raises:
            KeyError: One of `images` is not in the gallery; then none is removed.
            ValueError: No image passes `where`, or the time of one is unknown; then none is removed.
            TypeError: Nothing is named, or something else than images and numbers.
            OSError: The files or the audit log cannot be written; then none is removed.
        """
        return remove_images(self._store, images, where=where, older_than=older_than)

    def compact(self) -> None:
        """Join the many files that many additions left; they are also joined automatically every few additions."""
        self._store.change(compact=True)

    def keep_audit_log(self, keep: bool = True) -> None:
        """Log searches and removals from now on, by anybody who opens this gallery, in `audit.jsonl` in its folder.

        A line of JSON each: when, who, the sentences and filter and how many images were found or removed; no images.
        A search that cannot be logged is refused.

        Raises:
            ValueError: The gallery was never saved, so it has no folder.
        """
        if self.directory is None:
            raise ValueError("the audit log is kept in the gallery's folder, and the gallery was never saved; save it")
        self._store.change(header={"audit": bool(keep)})

    def restore(self, images: Images) -> int:
        """Forget that images were removed, by path or pattern, so that `update` takes them in again.

        Returns:
            How many removals were forgotten.

        Raises:
            KeyError: One was not removed; then nothing is changed.
        """
        return restore_images(self._store, images)

    def edit(self, *, remove: Images = (), restore: Images = ()) -> tuple[list[str], int]:
        """`remove` images and then `restore` some, of which those may be, for example to encode them again.

        Returns:
            The paths of the removed images, as they were given, and how many removals were forgotten.

        Raises:
            KeyError: One is not in the gallery, or one to restore was not removed; then nothing is changed.
        """
        return edit_images(self._store, remove, restore)

    @overload
    def search(
        self,
        query: list[Query] | list[str],
        k: int = ...,
        *,
        threshold: float | str | None = ...,
        where: Where | None = ...,
    ) -> list[list[Hit]]: ...

    @overload
    def search(
        self, query: Query | Tensor, k: int = ..., *, threshold: float | str | None = ..., where: Where | None = ...
    ) -> list[Hit]: ...

    def search(
        self,
        query: Query | Array | list[Query] | list[str],
        k: int = NUM_HITS,
        *,
        threshold: float | str | None = None,
        where: Where | None = None,
    ) -> list[Hit] | list[list[Hit]]:
        """Find the images most similar to a query, or to each of several.

        Args:
            query: A sentence, an image (a `Path` or a PIL image) or features (E,); or a list of sentences and
                images or features (Q, E), for a list of results.
            k: How many at most; a smaller gallery gives what it has.
            threshold: Leave out scores below it, so that a result may be empty: no good match. `"calibrated"` takes
                the one that `calibrate` chose.
            where: Search only images with these metadata, such as `{"folder": ["cam_a", "cam_b"]}` (any of these),
                `{"time": (start, end)}` (from start to end, `Between`), `{"folder": Prefix("roof/")}`, or a function
                of the value (`promptreid.retrieval.filters`). Or those for which a function of all metadata is true.

        Returns:
            The best first; of equal scores the earlier image in the gallery comes first.

        Raises:
            ValueError: The gallery is empty, `k` is less than 1, a sentence is empty or the name of an image, features
                are not finite, no image passes `where`, or the gallery was never calibrated.
            TypeError: A query or `where` is of another kind, or `k` is not an integer.
            DatasetError: An image cannot be read.
            CheckpointError: Features of the gallery are damaged.
            OSError: The audit log cannot be written; then nothing is returned.
        """
        lowest = lowest_score(self.calibration, threshold, query)
        return search_store(self._store, self.model, query, k, lowest=lowest, where=where)

    def calibrate(
        self,
        split: ReIDSplit | None = None,
        *,
        sentences: Sequence[str] | None = None,
        false_alarm_rate: float = 0.05,
        progress: bool = True,
    ) -> Calibration:
        """Choose the threshold of `search(threshold="calibrated")`; saved with the gallery.

        Without labels, the gallery is searched for 400 made-up sentences about people: nearly all in vain, so that
        their best scores say what an absent person scores here. Only labelled data can tell how often a person in the
        gallery is found. Choose again once the gallery has grown, in either case.

        Args:
            split: Labelled images that look like the gallery's, with captions; best a validation split.
            sentences: Instead, your own sentences about people who are not in the gallery, at least
                1 / `false_alarm_rate`: the closer to real queries, the closer the rate.
            false_alarm_rate: How often a search for an absent person may find something.
            progress: Show progress bars.

        Raises:
            ValueError: The gallery has no model or no image, the split has only one person, there are fewer sentences
                than 1 / `false_alarm_rate`, or both are given.
        """
        index = self._store.snapshot()[1]
        chosen = choose_threshold(
            needed(self.model),
            split,
            sentences=sentences,
            false_alarm_rate=false_alarm_rate,
            best_scores=lambda queries: [found[0][1] for found in index.search(queries, 1)],
            images=len(self),
            progress=progress,
        )
        self._store.change(header={"calibration": asdict(chosen)})
        return chosen

    def to(self, device: str | torch.device) -> "Gallery":
        """Compare features on a device from now on; returns the gallery itself."""
        self._store.exact = self._store.exact.to(device)
        return self

    def save(self, directory: str | Path | None = None, *, exist_ok: bool = True) -> Path:
        """Write the gallery to a folder and bind it there.

        Args:
            directory: The folder; `None` for the one it is bound to.
            exist_ok: Replace another gallery in that folder; `False` replaces only an abandoned, empty one.

        Returns:
            The folder.

        Raises:
            ValueError: No folder is given and the gallery is not bound to one.
            FileExistsError: The folder holds a store; or another gallery, or one that is being built, and `exist_ok` is
                `False`.
            CheckpointError: Another process has changed the gallery since it was loaded.
            OSError: The files cannot be written; what was there is untouched.
        """
        folder = self.directory if directory is None else Path(directory)
        if folder is None:
            raise ValueError("the gallery was never saved; give a folder")
        self._store.save(folder, is_new=not exist_ok)
        return folder

    def export(self, path: str | Path) -> Path:
        """Write ids, paths, metadata and features to a `.parquet` or `.npz` file, readable only by its owner.

        Raises:
            ValueError: The file name has another suffix.
            MissingExtraError: Parquet is asked for and pyarrow is not installed.
        """
        return export_features(Path(path), self.features, self._store.images)

    def to_store(self, url: str | Path, *, storage_options: Mapping[str, str] | None = None) -> "StoredGallery":
        """Copy the gallery into a store, which any number of processes and machines fill and search.

        Called again, it completes the copy, and erases from it what was removed from the gallery.

        Args:
            url: A folder, or `s3://bucket/name` or `gs://bucket/name`.
            storage_options: LanceDB's for the object store, over what the environment says.

        Raises:
            FileExistsError: A store of another model is there, or a gallery.
            StoreError: The place cannot be reached or refuses.
            MissingExtraError: LanceDB is not installed.
        """
        from promptreid.retrieval.stored_gallery import copy_to_store

        return copy_to_store(self._store, self.model, url, storage_options)

    def check_filter(self, where: Where) -> None:
        """Refuse a filter of `search` that no image passes, before anything is encoded.

        Raises:
            ValueError: No image passes; names what is unknown, and what is known.
        """
        check_passes([segment.images for segment in self._store.exact.segments], where)

    def values_of(self, key: str) -> list[Any]:
        """The different values that images have for a key of their metadata, such as all cameras."""
        return known_values([segment.images for segment in self._store.exact.segments], key)
